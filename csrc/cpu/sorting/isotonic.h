#pragma once

#include <stdint.h>

#include "sslfast/pool.h"

namespace sslfast {

// One call: lists (B, n). Pointers that a pass has no use for are null.
template <class T>
struct IsotonicRank {
  int64_t rows, length;
  double strength;
  bool sort, kl;  // sorted values instead of ranks; the entropic regularization
  Pool pool;
  double* states;        // (workers, n, kIsotonicState): scratch of the forward pass
  const T* x;            // (B, n): forward in ascending order, backward as given
  const int64_t* order;  // (B, n): where the values in ascending order come from
  T* out;                // (B, n): ranks, sorted values or dx
  int32_t* blocks;       // (B, n): first position of the block; written forward, read backward
  const T* dout;         // (B, n); backward
};

constexpr int kIsotonicState = 2;  // numbers that describe a block, at most

struct IsotonicKernels {
  void (*forward_float)(const IsotonicRank<float>&);
  void (*forward_double)(const IsotonicRank<double>&);
  void (*backward_float)(const IsotonicRank<float>&);
  void (*backward_double)(const IsotonicRank<double>&);
};

}  // namespace sslfast
