// What the launcher hands to the kernels of similarity_logsumexp. Plain structs: this header is
// shared by files of every instruction set.
#pragma once

#include "cpu/similarity/problem.h"

namespace sslfast {

// The mean of the keys under each query's softmax, from the forward pass; rows null: not asked for.
template <class T>
struct MeanKeys {
  T* rows = nullptr;   // (N, D)
  T* valid = nullptr;  // set to 1 where `rows` were computed, else to 0
};

template <class T>
struct SimilarityForward : SimilarityProblem<T> {
  T* row_lse;       // (N)
  T* col_lse;       // (M) or null
  T* row_residual;  // (N) or null: what rounding took from row_lse
  T* col_residual;  // (M) or null
  T* cache;         // exponentials for the backward pass, or null
  int64_t cache_elements;
  MeanKeys<T> mean_keys;
};

template <class T>
struct SimilarityBackward : SimilarityProblem<T> {
  const T* drows;    // (N)
  const T* dcols;    // (M) or null
  const T* row_lse;  // (N)
  const T* col_lse;  // (M) or null
  const T* row_residual;
  const T* col_residual;
  const T* cache;
  int64_t cache_elements;
  const T* mean_keys;  // (N, D) or null
  T* dq;               // (N, D), zeroed; null: not needed
  T* dk;               // (M, D), zeroed
  T* dscale;           // (1) or (N)
  T* dbias;            // (M), zeroed
};

// Kernels say whether they ran: those of matrix instructions decline what bfloat16 terms cannot
// hold, and have none for double.
struct SimilarityKernels {
  bool (*forward_float)(const SimilarityForward<float>&);
  bool (*forward_double)(const SimilarityForward<double>&);
  bool (*backward_float)(const SimilarityBackward<float>&);
  bool (*backward_double)(const SimilarityBackward<double>&);
};

}  // namespace sslfast
