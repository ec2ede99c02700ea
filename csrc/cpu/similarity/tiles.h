// The tile loop of q k^T: geometry, packed operands, visiting orders. Every similarity primitive
// is this loop with another epilogue.
#pragma once

#include <sched.h>

#include "sslfast/packed.h"

namespace sslfast::SSLFAST_ISA {

// Blocks of n rows: at least 16 of them where there are rows enough, so that many threads find
// work. The size depends on n alone: a result may not depend on the machine's number of threads.
inline Blocks make_blocks(int64_t n) {
  const int64_t size = round_up((n + 15) / 16, kBlockGranule);
  const int64_t bounded = size < kLargestBlock ? size : kLargestBlock;
  return {bounded, (n + bounded - 1) / bounded};
}

// Queries and one strip of keys, packed; per-row and per-key constants of the exponent, padded to
// whole blocks. The exponent is
//   x_ij = scale_i <q_i, k_j> + key_offset_j + row_offset_i, in this order,
// each step rounded: the saved sum (in row_offset) lies on the grid of the largest logits, and so
// must the logits where the difference is a small part of both.
template <class T>
struct Operands {
  int64_t rows, keys, features;
  Blocks row_blocks, key_blocks;
  Packed<T> q, k;
  const T* scale;
  T* row_offset;
  T* key_offset;
  const Int<T>* row_ids;  // null: nothing is excluded
  const Int<T>* key_ids;
};

// Where block pair (I, J) lies.
template <class T>
Area area_of(const Operands<T>& o, int64_t I, int64_t J) {
  return {o.row_blocks.first(I), o.row_blocks.width(I, o.rows), o.key_blocks.first(J),
          o.key_blocks.width(J, o.keys)};
}

// f(i, j, tile) for every register tile of block pair (I, J); i and j count within the blocks.
// ahead(i, j): see packed.h.
template <class T, class A, class F>
SSLFAST_INLINE void for_each_register_tile(const Operands<T>& o, int64_t I, int64_t J,
                                           const A& ahead, const F& f) {
  for_each_register_tile(o.q, o.k, area_of(o, I, J), ahead, f);
}
template <class T, class F>
SSLFAST_INLINE void for_each_register_tile(const Operands<T>& o, int64_t I, int64_t J, const F& f) {
  for_each_register_tile(o, I, J, [](int64_t, int64_t) {}, f);
}

// Logits of one register row, without its offsets.
template <class T>
SSLFAST_INLINE Vec<T> logits(const Operands<T>& o, int64_t row, Vec<T> similarity) {
  return rounded<T>(similarity * o.scale[row]);
}

// Same-id pairs of one register row.
template <class T>
SSLFAST_INLINE IntVec<T> excluded(const Operands<T>& o, int64_t row, int64_t key) {
  return load_ids<T>(o.key_ids + key) == o.row_ids[row];
}

// Tiles add to the rows of two blocks in place. `Turns` puts the tiles of each block in one order,
// so that the sums do not depend on the threads; tiles that share no block run at the same time.
class Turns {
 public:
  Turns(const Workspace& workspace, int64_t blocks) : done_(workspace.take<int64_t>(blocks)) {
    for (int64_t block = 0; block < blocks; ++block) done_[block] = 0;
  }
  // Until `turn` tiles of the block are done. Tasks are handed out in order and wait for earlier
  // ones only, so the earliest unfinished task never waits.
  void wait(int64_t block, int64_t turn) const {
    for (int spins = 0; __atomic_load_n(done_ + block, __ATOMIC_ACQUIRE) != turn;) {
      if (spins < kSpins)
        ++spins;
      else
        sched_yield();
    }
  }
  void finish(int64_t block, int64_t turn) const {
    __atomic_store_n(done_ + block, turn + 1, __ATOMIC_RELEASE);
  }

 private:
  static constexpr int kSpins = 2000;  // some microseconds, less than a tile takes
  int64_t* done_;
};

// Neighbouring blocks that one task takes together: a pair of groups reads each block from the
// outer cache once and uses it as often as the other has blocks. As with the size of a block, only
// where there are so many that threads find work.
struct Groups {
  int64_t blocks, size, count;

  explicit Groups(int64_t n) : blocks(n), size(n >= 32 ? 3 : 1), count((n + size - 1) / size) {}
  int64_t first(int64_t group) const { return group * size; }
  int64_t last(int64_t group) const {
    return (group + 1) * size < blocks ? (group + 1) * size : blocks;
  }
};

// Every unordered pair of n blocks once, diagonal included, in rounds in which a group is in one
// task at most (the circle method on an odd number of places; with n even one place is empty).
// tile(worker, I, J) may add to rows I and rows J in place.
template <class F>
void visit_symmetric(const Pool& pool, const Workspace& workspace, int64_t n, const F& tile) {
  const Groups groups(n);
  const int64_t places = groups.count | 1, tasks = (places + 1) / 2;
  const Turns turns(workspace, places);
  for_each(pool, places * tasks, [&](int worker, int64_t index) {
    const int64_t round = index / tasks, t = index % tasks;
    const int64_t A = (round + t) % places, B = (round + places - t) % places;
    turns.wait(A, round);
    turns.wait(B, round);
    if (A < groups.count && B < groups.count)
      for (int64_t I = groups.first(A); I < groups.last(A); ++I)
        for (int64_t J = A == B ? I : groups.first(B); J < groups.last(B); ++J) tile(worker, I, J);
    turns.finish(A, round);
    turns.finish(B, round);
  });
}

// Every pair of a row block and a key block once, in Latin-square rounds: no two tasks of a round
// share a group of rows or of keys. tile(worker, I, J) may add to rows I and keys J in place.
template <class F>
void visit_two_way(const Pool& pool, const Workspace& workspace, int64_t row_blocks,
                   int64_t key_blocks, const F& tile) {
  const Groups rows(row_blocks), keys(key_blocks);
  const bool wide = rows.count <= keys.count;
  const int64_t few = wide ? rows.count : keys.count, many = wide ? keys.count : rows.count;
  const Turns few_turns(workspace, few), many_turns(workspace, many);
  for_each(pool, few * many, [&](int worker, int64_t index) {
    const int64_t round = index / few, a = index % few, b = (a + round) % many;
    // Group b meets a = min(b, few - 1), ..., 1, 0 and, after the rounds in which it has no
    // partner, those from few - 1 down that are left.
    const int64_t turn = (b < few ? b : few - 1) - a + (round > b ? few : 0);
    const int64_t A = wide ? a : b, B = wide ? b : a;
    few_turns.wait(a, round);
    many_turns.wait(b, turn);
    for (int64_t I = rows.first(A); I < rows.last(A); ++I)
      for (int64_t J = keys.first(B); J < keys.last(B); ++J) tile(worker, I, J);
    few_turns.finish(a, round);
    many_turns.finish(b, turn);
  });
}

// Every pair once, each row block in one hand: only rows are written.
template <class F>
void visit_rows(const Pool& pool, int64_t row_blocks, int64_t key_blocks, const F& tile) {
  const Groups rows(row_blocks);
  for_each(pool, rows.count, [&](int worker, int64_t A) {
    for (int64_t J = 0; J < key_blocks; ++J)
      for (int64_t I = rows.first(A); I < rows.last(A); ++I) tile(worker, I, J);
  });
}

// Keys per strip of the rectangular form: about 2 MiB of packed keys, so that a long queue is
// packed a piece at a time and each piece is read from memory once for all rows.
template <class T>
int64_t strip_length(const Blocks& key_blocks, int64_t features, int terms) {
  const int64_t bytes = Packed<T>::size(key_blocks.size, features, terms) * int64_t(sizeof(T));
  const int64_t blocks = kStripBytes / bytes;
  return (blocks < kLeastStripBlocks ? kLeastStripBlocks : blocks) * key_blocks.size;
}

}  // namespace sslfast::SSLFAST_ISA
