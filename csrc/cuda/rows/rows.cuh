// Kernels that work row by row: a warp or a block takes a row, and parts of it stay in registers.
//
// The shape of the block says which: (32, R) gives each of R rows a warp, (32 W, 1) gives a row to
// W warps. Any number of blocks will do, and the result depends on the shape of a row alone.
#pragma once

#include "cuda/elements.cuh"

namespace sslfast::device {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 256;  // of a block
constexpr int kMinBlocks = 4;     // at a time on a processor: at most 64 registers a thread

// f(row) for every row of this warp or block, the same in all of its threads.
template <class F>
__device__ inline void for_each_row(long long rows, const F& f) {
  const long long step = (long long)gridDim.x * blockDim.y;
  for (long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y; row < rows; row += step)
    f(row);
}

// Packs of a row that a thread keeps in registers: 64 bytes an operand.
constexpr int kHeld = 4;

// This thread's packs of a row: held(pack, slot) for the first kHeld, with a slot known to the
// compiler, and rest(pack) for those beyond. A row has fewer than 2^31 of them.
template <class Held, class Rest>
__device__ inline void for_each_pack(int packs, const Held& held, const Rest& rest) {
#pragma unroll
  for (int slot = 0; slot < kHeld; ++slot) {
    const int pack = threadIdx.x + slot * blockDim.x;
    if (pack < packs) held(pack, slot);
  }
  for (unsigned pack = threadIdx.x + kHeld * blockDim.x; pack < unsigned(packs); pack += blockDim.x)
    rest(int(pack));
}

// The sum over the threads of a row, the same in each of them, in an order that never changes.
template <class A>
__device__ inline A row_sum(A value) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2)
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  if (blockDim.x == kWarp) return value;
  __shared__ A of_warp[kMaxThreads / kWarp];
  __syncthreads();  // the sum of the row before has been read
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = value;
  __syncthreads();
  A total = 0;
  for (int warp = 0; warp < int(blockDim.x) / kWarp; ++warp) total += of_warp[warp];
  return total;
}

}  // namespace sslfast::device
