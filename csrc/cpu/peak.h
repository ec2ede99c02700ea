#pragma once

#include <stdint.h>

namespace sslfast {

struct PeakKernels {
  // `rounds` rounds of independent multiply-adds in registers; returns the operations done and a
  // number that depends on all of them.
  double (*fma_float)(int64_t rounds, double* checksum);
  double (*fma_double)(int64_t rounds, double* checksum);
  // out[i] = 2^x[i], for the tests of the vector mathematics.
  void (*exp2_float)(const float* x, float* out, int64_t n);
  void (*exp2_double)(const double* x, double* out, int64_t n);
};

}  // namespace sslfast
