// The tile loop of q k^T: geometry, packed operands, visiting orders. Every similarity primitive
// is this loop with another epilogue.
#pragma once

#include "sslfast/tiles.h"

namespace sslfast::SSLFAST_ISA {

struct Blocks {
  int64_t size, count;

  int64_t first(int64_t block) const { return block * size; }
  // How many of the n rows the block holds; the last block may be ragged.
  int64_t width(int64_t block, int64_t n) const {
    return n - first(block) < size ? n - first(block) : size;
  }
};

// Blocks of n rows: at least 16 of them where there are rows enough, so that many threads find
// work, and at most so large that the operands and gradients of a tile stay in a 1 MiB cache. The
// size depends on shapes alone: a result may not depend on the machine's number of threads.
inline Blocks make_blocks(int64_t n, int64_t features) {
  constexpr int64_t kGranule = 32;  // a multiple of every panel width
  const int64_t largest = features <= 192 ? 192 : features <= 384 ? 128 : 96;
  int64_t size = round_up((n + 15) / 16, kGranule);
  size = size < largest ? size : largest;
  return {size, (n + size - 1) / size};
}

// Queries and one strip of keys, packed; per-row and per-key constants of the exponent, padded to
// whole blocks. The exponent in units of log 2 is
//   x_ij = slope_i <q_i, k_j> + row_offset_i + key_offset_j.
template <class T>
struct Operands {
  int64_t rows, keys, features;
  Blocks row_blocks, key_blocks;
  const T* q_panels;  // pack_rows
  const T* k_panels;
  const T* slope;
  T* row_offset;
  T* key_offset;
  const Int<T>* row_ids;  // null: nothing is excluded
  const Int<T>* key_ids;
};

// f(i, j, tile) for every register tile of block pair (I, J); i and j count within the blocks.
template <class T, class F>
SSLFAST_INLINE void for_each_register_tile(const Operands<T>& o, int64_t I, int64_t J, const F& f) {
  constexpr int P = kPanel<T>;
  const int64_t i0 = o.row_blocks.first(I), j0 = o.key_blocks.first(J);
  const int64_t rows = o.row_blocks.width(I, o.rows), keys = o.key_blocks.width(J, o.keys);
  for (int64_t j = 0; j < keys; j += P)
    for (int64_t i = 0; i < rows; i += kTileRows) {
      const T* a = o.q_panels + (i0 + i) / P * P * o.features + (i0 + i) % P;
      const T* b = o.k_panels + (j0 + j) * o.features;
      f(i, j, multiply(a, 1, P, b, o.features));
    }
}

// Same-id pairs of one register row.
template <class T>
SSLFAST_INLINE IntVec<T> excluded(const Operands<T>& o, int64_t row, int64_t key) {
  return load_ids<T>(o.key_ids + key) == o.row_ids[row];
}

// Every unordered pair of n blocks once, diagonal included, in rounds in which a block is in one
// tile at most (the circle method on an odd number of places; with n even one place is empty).
// tile(worker, I, J, index) may therefore add to rows I and rows J in place.
template <class F>
void visit_symmetric(const Pool& pool, int64_t n, const F& tile) {
  const int64_t places = n | 1, tasks = (places + 1) / 2;
  for (int64_t round = 0; round < places; ++round)
    for_each(pool, tasks, [&](int worker, int64_t t) {
      const int64_t I = (round + t) % places, J = (round + places - t) % places;
      if (I < n && J < n) tile(worker, I, J, round * tasks + t);
    });
}

// Every pair of a row block and a key block once, in Latin-square rounds: no two tiles of a round
// share a row block or a key block.
template <class F>
void visit_two_way(const Pool& pool, int64_t row_blocks, int64_t key_blocks, const F& tile) {
  const bool wide = row_blocks <= key_blocks;
  const int64_t rounds = wide ? key_blocks : row_blocks, tasks = wide ? row_blocks : key_blocks;
  for (int64_t round = 0; round < rounds; ++round)
    for_each(pool, tasks, [&](int worker, int64_t t) {
      const int64_t other = (t + round) % rounds;
      wide ? tile(worker, t, other) : tile(worker, other, t);
    });
}

// Every pair once, each row block in one hand: only rows are written.
template <class F>
void visit_rows(const Pool& pool, int64_t row_blocks, int64_t key_blocks, const F& tile) {
  for_each(pool, row_blocks, [&](int worker, int64_t I) {
    for (int64_t J = 0; J < key_blocks; ++J) tile(worker, I, J);
  });
}

// Keys per strip of the rectangular form: about 2 MiB of packed keys, so that a long queue is
// packed a piece at a time and each piece is read from memory once for all rows.
template <class T>
int64_t strip_length(const Blocks& key_blocks, int64_t features) {
  const int64_t blocks = (int64_t(2) << 20) / (features * key_blocks.size * int64_t(sizeof(T)));
  return (blocks < 4 ? 4 : blocks) * key_blocks.size;
}

}  // namespace sslfast::SSLFAST_ISA
