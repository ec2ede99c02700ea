#pragma once

#include <stdint.h>

#include "sslfast/pool.h"

namespace sslfast {

// One call: x (N, D) and its columns. Pointers that a pass has no use for are null.
template <class T>
struct Standardize {
  int64_t rows, features, ddof;
  double eps;
  bool eps_on_deviation, unit_variance;
  bool given;  // mean and variance are arguments, not those of x
  Pool pool;
  double* partial;                   // (groups, 2, D) of standardize_groups(), null for one group
  const T* x;                        // (N, D)
  T* out;                            // (N, D): y or dx
  T *mean, *variance, *rest;         // (D): own ones are written by the forward pass
  const T* dy;                       // (N, D); backward
  const T *dmean, *dvariance;        // (D); backward of own statistics
  T *dgiven_mean, *dgiven_variance;  // (D); backward of given ones that learn
};

// Rows whose sums are merged as one: by the shape alone, and so is the order of every sum. Narrow
// matrices need groups to have work for every thread, wide ones have a task for every strip.
inline int64_t standardize_group_rows(int64_t features) { return features >= 1024 ? 2048 : 512; }
inline int64_t standardize_groups(int64_t rows, int64_t features) {
  const int64_t group = standardize_group_rows(features);
  return rows > group ? (rows + group - 1) / group : 1;
}

struct StandardizeKernels {
  void (*forward_float)(const Standardize<float>&);
  void (*forward_double)(const Standardize<double>&);
  void (*backward_float)(const Standardize<float>&);
  void (*backward_double)(const Standardize<double>&);
};

}  // namespace sslfast
