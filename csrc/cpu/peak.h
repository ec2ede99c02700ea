#pragma once

#include <stdint.h>

namespace sslfast {

struct PeakKernels {
  // `rounds` rounds of independent multiply-adds in registers; returns the operations done and a
  // number that depends on all of them.
  double (*fma_float)(int64_t rounds, double* checksum);
  double (*fma_double)(int64_t rounds, double* checksum);
  // out[i] = exp(x[i]), for the tests of the vector mathematics.
  void (*exp_float)(const float* x, float* out, int64_t n);
  void (*exp_double)(const double* x, double* out, int64_t n);
};

struct MatrixPeakKernels {
  // `rounds` rounds of products of bfloat16 blocks in the innermost cache; returns as `fma_float`.
  double (*multiply)(int64_t rounds, double* checksum);
};

// Those of one instruction set; throws where this processor cannot run it.
const PeakKernels& find_peak_kernels(int isa);
// The same; null where the set has no matrix instructions.
const MatrixPeakKernels* find_matrix_peak_kernels(int isa);

}  // namespace sslfast
