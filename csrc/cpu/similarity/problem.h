// Rows, ids and threads of a similarity primitive. Plain structs: this header is shared by files of
// every instruction set.
#pragma once

#include <stdint.h>

#include "sslfast/element.h"
#include "sslfast/pool.h"

namespace sslfast {

template <class T>
struct IdOf;
template <>
struct IdOf<float> {
  using type = int32_t;
};
template <>
struct IdOf<double> {
  using type = int64_t;
};

template <class T>
struct SimilarityProblem {
  using Id = typename IdOf<T>::type;
  int64_t rows, keys, features;  // N, M, D
  Source q;                      // (N, D)
  Source k;                      // (M, D); empty: the symmetric form, keys are the queries
  int float_terms = 3;           // bfloat16 terms of a float32, where products are of bfloat16
  const T* scale = nullptr;      // (1) or (N); null: 1
  bool row_scale = false;
  const T* bias = nullptr;  // (M) or null
  const Id* row_ids;        // (N) or null
  const Id* key_ids;        // (M) or null
  bool columns = false;
  Pool pool;
  Workspace workspace;
};

}  // namespace sslfast
