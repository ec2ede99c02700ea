#pragma once

#include <stdint.h>

#include "sslfast/pool.h"

namespace sslfast {

template <class T>
struct Normalize {
  int64_t rows, features;
  double eps;
  Pool pool;
  const T* x;   // (N, D)
  const T* dy;  // (N, D); backward
  T* norm;      // (N): written by the forward pass, read by the backward
  T* out;       // (N, D): y or dx
};

struct NormalizeKernels {
  void (*forward_float)(const Normalize<float>&);
  void (*forward_double)(const Normalize<double>&);
  void (*backward_float)(const Normalize<float>&);
  void (*backward_double)(const Normalize<double>&);
};

}  // namespace sslfast
