// The arithmetic limit of one instruction set, and hooks to test its vector mathematics.
#include "cpu/peak.h"

#include "sslfast/vector.h"

namespace sslfast::SSLFAST_ISA {

template <class T>
double fma_loop(int64_t rounds, double* checksum) {
  constexpr int kChains = 12;  // more than latency x pipes on every x86 core; fits 16 registers
  Vec<T> acc[kChains];
  for (int c = 0; c < kChains; ++c) acc[c] = broadcast(T(c) / kChains);
  const Vec<T> factor = broadcast(T(0.999)), term = broadcast(T(0.001));
  for (int64_t i = 0; i < rounds; ++i) {
    SSLFAST_UNROLL
    for (int c = 0; c < kChains; ++c) acc[c] = acc[c] * factor + term;
  }
  Vec<T> total{};
  for (int c = 0; c < kChains; ++c) total += acc[c];
  *checksum = sum<T>(total);
  return 2.0 * kChains * kLanes<T> * double(rounds);
}

template <class T>
void exp_each(const T* x, T* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = exp<T>(broadcast(x[i]))[0];
}

extern const PeakKernels peak_kernels;
const PeakKernels peak_kernels = {fma_loop<float>, fma_loop<double>, exp_each<float>,
                                  exp_each<double>};

}  // namespace sslfast::SSLFAST_ISA
