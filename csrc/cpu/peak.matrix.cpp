// The arithmetic limit of one set of matrix instructions.
#include "cpu/peak.h"

#include "sslfast/matrix/unit.h"

namespace sslfast::SSLFAST_ISA {

template <class P>
constexpr int kCount = sizeof(P::kAll) / sizeof(Pair);
static_assert(kCount<Pairs<1, 1>> == term_products(1) && kCount<Pairs<2, 2>> == term_products(2) &&
              kCount<Pairs<3, 3>> == term_products(3));

// Both operands and the block, 20 KiB, stay in the innermost cache.
static double multiply_loop(int64_t rounds, double* checksum) {
  constexpr int64_t kDepth = 128, kSteps = kDepth / kBlock;
  alignas(64) uint16_t x[kSteps * kStepElements], y[kSteps * kStepElements];
  alignas(64) float c[kBlockNumbers];
  for (int64_t n = 0; n < kSteps * kStepElements; ++n) {
    x[n] = uint16_t(0x3f80 + n % 7);  // from 1 on
    y[n] = uint16_t(0x3f80 + n % 5);
  }
  const MatrixUnit unit;
  for (int64_t round = 0; round < rounds; ++round) {
    unit.multiply<false>({x, 1}, {y, 1}, kSteps, BlockAt::packed(c));
    __asm__ volatile("" : : "r"(x), "r"(y), "r"(c) : "memory");  // no round is left out
  }
  *checksum = c[0];
  return 2.0 * kBlock * kBlock * kDepth * double(rounds);
}

extern const MatrixPeakKernels matrix_peak_kernels;
const MatrixPeakKernels matrix_peak_kernels = {multiply_loop};

}  // namespace sslfast::SSLFAST_ISA
