// What the launcher hands to the kernels of similarity_topk. Plain structs: this header is shared
// by files of every instruction set.
#pragma once

#include "cpu/similarity/problem.h"

namespace sslfast {

template <class T>
struct TopkProblem : SimilarityProblem<T> {
  int64_t k;
  T* values;         // (N, k), best first; -inf where no key is left, NaN in a row that met one
  int64_t* indices;  // (N, k); -1 there
};

// As those of similarity_logsumexp, kernels say whether they ran.
struct TopkKernels {
  bool (*topk_float)(const TopkProblem<float>&);
  bool (*topk_double)(const TopkProblem<double>&);
};

}  // namespace sslfast
