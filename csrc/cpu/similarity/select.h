// The k largest <q_i, k_j> of every query, in the order (similarity descending, index ascending).
// That order is total, so what is found depends neither on the order of visits nor on threads.
#pragma once

#include "cpu/similarity/operands.h"
#include "cpu/similarity/topk.h"

namespace sslfast::SSLFAST_ISA {

// The k best neighbours of one query so far, the worst of them at the root.
template <class T>
struct Heap {
  T* values;         // (k)
  int64_t* indices;  // (k)
  int64_t k;

  // Without branches: which child is the worse one, nobody can predict.
  static bool worse(T x, int64_t i, T y, int64_t j) {
    return bool(int(x < y) | (int(x == y) & int(i > j)));
  }

  void clear() const {
    for (int64_t n = 0; n < k; ++n) {
      values[n] = T(-__builtin_inf());
      indices[n] = -1;
    }
  }

  T worst() const { return values[0]; }
  bool takes(T x, int64_t i) const { return worse(values[0], indices[0], x, i); }

  // (x, i) in place of the root of the first `size` neighbours.
  void replace_worst(T x, int64_t i, int64_t size) const {
    int64_t at = 0;
    for (int64_t child = 1; child < size; child = 2 * at + 1) {
      if (child + 1 < size)
        child += worse(values[child + 1], indices[child + 1], values[child], indices[child]);
      if (!worse(values[child], indices[child], x, i)) break;
      values[at] = values[child];
      indices[at] = indices[child];
      at = child;
    }
    values[at] = x;
    indices[at] = i;
  }

  // Best first: the worst of those left goes to the end of those left.
  void sort() const {
    for (int64_t last = k - 1; last > 0; --last) {
      const T x = values[last];
      const int64_t i = indices[last];
      values[last] = values[0];
      indices[last] = indices[0];
      replace_worst(x, i, last);
    }
  }

  // A row that met a NaN takes no further neighbour: its threshold is infinite.
  void spoil() const { values[0] = T(__builtin_nan("")); }
  bool spoiled() const { return values[0] != values[0]; }
  void write_spoiled() const {
    for (int64_t n = 0; n < k; ++n) {
      values[n] = T(__builtin_nan(""));
      indices[n] = -1;
    }
  }
};

// The heaps of all queries, for one part of the keys. The threshold of a query is its worst
// neighbour, in a row of its own that a tile reads at once.
template <class T>
struct Found {
  T* values;
  int64_t* indices;
  T* threshold;  // (padded rows), infinite beyond the last row
  int64_t k;

  Heap<T> of(int64_t row) const { return {values + row * k, indices + row * k, k}; }
};

// One similarity that exceeded the threshold when its tile was compared.
template <class T>
SSLFAST_INLINE void take(const Found<T>& found, int64_t row, int64_t key, T similarity) {
  const Heap<T> heap = found.of(row);
  if (similarity != similarity) {
    heap.spoil();
    found.threshold[row] = T(__builtin_inf());
  } else if (heap.takes(similarity, key)) {
    heap.replace_worst(similarity, key, heap.k);
    found.threshold[row] = heap.worst();
  }
}

// Keys come in ascending order of their panels, so a similarity that equals the threshold has the
// higher index and loses; within a panel the heap decides.
template <class T, bool kIds>
void select_tile(const Operands<T>& o, const Found<T>& found, int64_t I, int64_t J, int64_t first) {
  constexpr int L = kLanes<T>;
  const int64_t i0 = o.row_blocks.first(I), j0 = o.key_blocks.first(J);
  for_each_register_tile(o, I, J, [&](int64_t i, int64_t j, const RegisterTile<T>& s) {
    const int64_t row = i0 + i, key = j0 + j;
    IntVec<T> beyond{};  // in each lane a bit for every vector of the tile
    SSLFAST_UNROLL
    for (int r = 0; r < kTileRows; ++r) SSLFAST_UNROLL
    for (int v = 0; v < kTileVectors; ++v) {
      const IntVec<T> bit = IntVec<T>{} + (Int<T>(1) << (r * kTileVectors + v));
      beyond |= ~(s.acc[r][v] <= found.threshold[row + r]) & bit;  // NaN too
    }
    if (!any<T>(beyond)) return;
    T tile[kTileRows * kTileVectors * L];
    SSLFAST_UNROLL
    for (int r = 0; r < kTileRows; ++r) SSLFAST_UNROLL
    for (int v = 0; v < kTileVectors; ++v) store(tile + (r * kTileVectors + v) * L, s.acc[r][v]);
    Int<T> lanes[L];
    store_ids<T>(lanes, beyond);
    for (int lane = 0; lane < L; ++lane)
      for (uint32_t bits = uint32_t(lanes[lane]); bits; bits &= bits - 1) {
        const int at = __builtin_ctz(bits);
        const int64_t r = row + at / kTileVectors, c = key + at % kTileVectors * L + lane;
        // What lies beyond the last row or key is padding.
        if (r >= o.rows || c >= o.keys) continue;
        if (kIds && o.row_ids[r] == o.key_ids[c]) continue;
        take(found, r, first + c, tile[at * L + lane]);
      }
  });
}

template <class T>
class TopkPass {
 public:
  explicit TopkPass(const TopkProblem<T>& p) : p_(p), tiling_(p) {
    const Operands<T>& all = tiling_.all();
    // Few blocks of queries: several threads share one, each with a part of the keys.
    const int64_t blocks = all.row_blocks.count;
    parts_ = (p.pool.workers + blocks - 1) / blocks;
    parts_ = parts_ < kMostParts ? parts_ : kMostParts;
    padded_rows_ = all.row_blocks.size * blocks;
    threshold_ = p.workspace.template take<T>(parts_ * padded_rows_);
    if (parts_ == 1) return;
    values_ = p.workspace.template take<T>((parts_ - 1) * p.rows * p.k);
    indices_ = p.workspace.template take<int64_t>((parts_ - 1) * p.rows * p.k);
  }

  void run() {
    for_each_row(p_.pool, padded_rows_, [&](int64_t row) {
      const double bound = row < p_.rows ? -__builtin_inf() : __builtin_inf();
      for (int64_t part = 0; part < parts_; ++part) {
        if (row < p_.rows) found(part).of(row).clear();
        found(part).threshold[row] = T(bound);
      }
    });
    for (int64_t first = 0; first < p_.keys; first += tiling_.strip_keys()) {
      const Operands<T> o = tiling_.strip(first);
      p_.row_ids ? visit<true>(o, first) : visit<false>(o, first);
    }
    for_each_row(p_.pool, p_.rows, [&](int64_t row) { finish(row); });
  }

 private:
  static constexpr int64_t kMostParts = 8;

  // The heaps of the first part are the result.
  Found<T> found(int64_t part) const {
    T* threshold = threshold_ + part * padded_rows_;
    if (part == 0) return {p_.values, p_.indices, threshold, p_.k};
    const int64_t at = (part - 1) * p_.rows * p_.k;
    return {values_ + at, indices_ + at, threshold, p_.k};
  }

  // Keys of one strip, `first` and on.
  template <bool kIds>
  void visit(const Operands<T>& o, int64_t first) const {
    for_each(p_.pool, o.row_blocks.count * parts_, [&](int, int64_t task) {
      const int64_t I = task / parts_, part = task % parts_, blocks = o.key_blocks.count;
      const Found<T> own = found(part);
      for (int64_t J = blocks * part / parts_; J < blocks * (part + 1) / parts_; ++J)
        select_tile<T, kIds>(o, own, I, J, first);
    });
  }

  void finish(int64_t row) const {
    const Heap<T> heap = found(0).of(row);
    bool spoiled = heap.spoiled();
    for (int64_t part = 1; part < parts_; ++part) {
      const Heap<T> other = found(part).of(row);
      spoiled |= other.spoiled();
      for (int64_t n = 0; n < p_.k && !spoiled; ++n)
        if (other.indices[n] >= 0 && heap.takes(other.values[n], other.indices[n]))
          heap.replace_worst(other.values[n], other.indices[n], p_.k);
    }
    spoiled ? heap.write_spoiled() : heap.sort();
  }

  const TopkProblem<T>& p_;
  Tiling<T> tiling_;
  int64_t parts_, padded_rows_;
  T *threshold_, *values_ = nullptr;
  int64_t* indices_ = nullptr;
};

}  // namespace sslfast::SSLFAST_ISA
