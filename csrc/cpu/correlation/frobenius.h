#pragma once

#include <stdint.h>

#include "sslfast/element.h"
#include "sslfast/pool.h"

namespace sslfast {

template <class T>
struct FrobeniusProblem {
  int64_t rows, features, others;  // N, D, E
  Source a;                        // (N, D)
  Source b;                        // (N, E), of a's dtype; empty: b is a
  int float_terms = 3;             // bfloat16 terms of a float32, where products are of bfloat16
  // (3, D) and (3, E): mean, what rounding left of it, and scale of the columns, which are taken as
  // ((x - mean) - rest) scale; null: as they are. Gradients are of what is taken.
  const T* a_columns;
  const T* b_columns;
  bool split_diagonal, gram;
  // Elements of scratch for products that are not kept: a strip of their rows at a time.
  int64_t strip_elements;
  Pool pool;
  Workspace workspace;
};

template <class T>
struct FrobeniusForward : FrobeniusProblem<T> {
  T* total;     // ()
  T* diagonal;  // (D), where it is split off
  // The products, kept for the backward pass, or null: b b^T (N, N) and, of two matrices, a a^T
  // after it; on the direct route a^T b (D, E), without its diagonal where that is split off.
  T* cache;
};

template <class T>
struct FrobeniusBackward : FrobeniusProblem<T> {
  T dtotal;
  const T* ddiagonal;  // (D), where it is split off
  const T* diagonal;
  const T* cache;
  T* da;  // (N, D) or null
  T* db;  // (N, E) or null
};

// Kernels say whether they ran: those of matrix instructions decline what bfloat16 terms cannot
// hold, and have none for double.
struct FrobeniusKernels {
  bool (*forward_float)(const FrobeniusForward<float>&);
  bool (*forward_double)(const FrobeniusForward<double>&);
  bool (*backward_float)(const FrobeniusBackward<float>&);
  bool (*backward_double)(const FrobeniusBackward<double>&);
};

}  // namespace sslfast
