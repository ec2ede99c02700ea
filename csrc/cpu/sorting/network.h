#pragma once

#include <stdint.h>

#include "sslfast/pool.h"

namespace sslfast {

// One call over lists (B, n). What is null is not given, or not wanted.
template <class T>
struct SortingProblem {
  int64_t lists;
  int length, swaps, groups;
  Pool pool;
  Workspace workspace;
  double steepness, teacher_steepness, art_lambda;
  const int* pairs;       // (S, 2)
  const int64_t* bounds;  // (G + 1): first rank of each group, and n
  const T* values;        // (B, n)
  const T* teacher;       // (B, n)
  const T* dordered;      // (B, n)
  const T* dmasses;       // (B, n, G)
  T* ordered;             // (B, n)
  T* masses;              // (B, n, G)
  T* cross_entropy;       // (B)
  T* dvalues;             // (B, n): of the cross entropy, else of dordered and dmasses
};

struct SortingKernels {
  void (*sort_float[6])(const SortingProblem<float>&);  // by relaxation
  void (*sort_double[6])(const SortingProblem<double>&);
};

}  // namespace sslfast
