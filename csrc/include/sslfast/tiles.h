// Packed panels and the register tile: the two products that every similarity kernel is made of.
#pragma once

#include "sslfast/pool.h"
#include "sslfast/vector.h"

namespace sslfast::SSLFAST_ISA {

SSLFAST_INLINE int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

struct Blocks {
  int64_t size, count;

  int64_t first(int64_t block) const { return block * size; }
  // How many of the n rows the block holds; the last block may be ragged.
  int64_t width(int64_t block, int64_t n) const {
    return n - first(block) < size ? n - first(block) : size;
  }
};

// Rows of a block: a multiple of every panel width, and at most so many that a tile of both takes
// 144 KiB, where each row of an operand is read from the outer cache once for 192 of the other.
constexpr int64_t kBlockGranule = 32, kLargestBlock = 192;

// f(worker, task) for every task; which worker runs a task is left to a shared counter, so a task
// must own what it writes, and then the result does not depend on the number of workers.
template <class F>
void for_each(const Pool& pool, int64_t tasks, const F& f) {
  struct Shared {
    const F* f;
    int64_t tasks, next;
  } shared{&f, tasks, 0};
  if (pool.workers == 1 || tasks == 1) {
    for (int64_t task = 0; task < tasks; ++task) f(0, task);
    return;
  }
  const int workers = tasks < pool.workers ? int(tasks) : pool.workers;
  pool.run(
      workers,
      [](void* data, int worker) {
        Shared& s = *static_cast<Shared*>(data);
        for (;;) {
          const int64_t task = __atomic_fetch_add(&s.next, 1, __ATOMIC_RELAXED);
          if (task >= s.tasks) return;
          (*s.f)(worker, task);
        }
      },
      &shared);
}

// f(row) for every row, in tasks of 64.
template <class F>
void for_each_row(const Pool& pool, int64_t rows, const F& f) {
  constexpr int64_t kRowsPerTask = 64;
  for_each(pool, (rows + kRowsPerTask - 1) / kRowsPerTask, [&](int, int64_t task) {
    const int64_t last = (task + 1) * kRowsPerTask;
    for (int64_t i = task * kRowsPerTask; i < last && i < rows; ++i) f(i);
  });
}

// Four accumulators hide the latency of the multiply-add.
template <class T>
T dot(const T* a, const T* b, int64_t n) {
  constexpr int L = kLanes<T>;
  Vec<T> acc[4] = {};
  int64_t d = 0;
  for (; d + 4 * L <= n; d += 4 * L) SSLFAST_UNROLL
  for (int u = 0; u < 4; ++u) acc[u] += load(a + d + u * L) * load(b + d + u * L);
  T total = sum<T>((acc[0] + acc[1]) + (acc[2] + acc[3]));
  for (; d < n; ++d) total += a[d] * b[d];
  return total;
}

// What is done to the columns of a matrix as it is read: ((x - mean) - rest) scale; null: nothing.
template <class T>
struct Columns {
  const T* mean = nullptr;
  const T* rest = nullptr;
  const T* scale = nullptr;

  explicit operator bool() const { return mean; }
  Columns from(int64_t column) const {
    return mean ? Columns{mean + column, rest + column, scale + column} : Columns{};
  }
  SSLFAST_INLINE T of(T x, int64_t column) const {
    return mean ? ((x - mean[column]) - rest[column]) * scale[column] : x;
  }
};

// Element (r, k) is base[r * row_stride + k * depth_stride]: rows of a matrix, or its columns as
// rows.
template <class T>
struct Operand {
  const T* base;
  int64_t rows, row_stride, depth_stride;
  Columns<T> columns;
  bool transposed;  // r counts the columns; strides do not tell, where the matrix has one

  const T* at(int64_t r, int64_t k) const { return base + r * row_stride + k * depth_stride; }
};

// Rows of a matrix, and its columns.
template <class T>
Operand<T> rows_of(const T* x, int64_t rows, int64_t stride, Columns<T> columns = {}) {
  return {x, rows, stride, 1, columns, false};
}
template <class T>
Operand<T> columns_of(const T* x, int64_t count, int64_t stride, Columns<T> columns = {}) {
  return {x, count, 1, stride, columns, true};
}

// kPanel rows from row r on, `depth` deep from k on -> panel[depth][row], zero padded. One copy
// serves both operands of a product: a register tile broadcasts from it and loads from it.
template <bool kColumns, class T>
void pack_panel_of(const Operand<T>& x, int64_t r, int64_t k, int64_t depth, T* panel) {
  constexpr int P = kPanel<T>, L = kLanes<T>;
  const int64_t rows = x.rows - r < P ? x.rows - r : P;
  const bool across = x.transposed && rows == P, along = !x.transposed && rows == P;
  struct Treat {  // of so many columns as lanes
    Vec<T> mean, rest, scale;
    SSLFAST_INLINE Vec<T> operator()(Vec<T> v) const {
      return kColumns ? ((v - mean) - rest) * scale : v;
    }
  };
  const auto treat = [&](int64_t column) {
    const Columns<T>& c = x.columns;
    return kColumns ? Treat{load(c.mean + column), load(c.rest + column), load(c.scale + column)}
                    : Treat{};
  };
  int64_t d = 0;
  if (across) {
    Treat treats[kTileVectors];
    SSLFAST_UNROLL
    for (int v = 0; v < kTileVectors; ++v) treats[v] = treat(r + v * L);
    for (; d < depth; ++d) SSLFAST_UNROLL
    for (int v = 0; v < kTileVectors; ++v)
      store(panel + d * P + v * L, treats[v](load(x.at(r + v * L, k + d))));
  }
  for (; along && d + L <= depth; d += L) {
    const Treat treated = treat(k + d);
    SSLFAST_UNROLL
    for (int v = 0; v < kTileVectors; ++v)
      transpose_square(x.at(r + v * L, k + d), x.row_stride, panel + d * P + v * L, P, treated);
  }
  for (; d < depth; ++d) {
    for (int64_t c = 0; c < P; ++c) {
      const int64_t column = x.transposed ? r + c : k + d;
      panel[d * P + c] = c < rows ? x.columns.of(*x.at(r + c, k + d), column) : T(0);
    }
  }
}
template <class T>
void pack_operand(const Operand<T>& x, int64_t r, int64_t k, int64_t depth, T* panel) {
  if (x.columns)
    pack_panel_of<true>(x, r, k, depth, panel);
  else
    pack_panel_of<false>(x, r, k, depth, panel);
}

// All rows of x (rows, depth) -> panels that follow each other.
template <class T>
void pack_rows(const Pool& pool, const T* x, int64_t rows, int64_t depth, T* out) {
  constexpr int P = kPanel<T>;
  const Operand<T> operand = rows_of(x, rows, depth);
  for_each(pool, (rows + P - 1) / P, [=](int, int64_t panel) {
    pack_operand(operand, panel * P, 0, depth, out + panel * P * depth);
  });
}

template <class T>
struct RegisterTile {
  Vec<T> acc[kTileRows][kTileVectors];  // (kTileRows, kPanel)
};

// acc = sum_k a(r, k) b(k, :), where a(r, k) = a[r * row_stride + k * depth_stride] and
// b(k, :) = b[k * b_stride ...]. One of the two strides of a is 1.
template <class T>
SSLFAST_INLINE RegisterTile<T> multiply(const T* a, int64_t row_stride, int64_t depth_stride,
                                        const T* b, int64_t b_stride, int64_t depth) {
  RegisterTile<T> t{};
  for (int64_t k = 0; k < depth; ++k) {
    Vec<T> bk[kTileVectors];
    SSLFAST_UNROLL
    for (int v = 0; v < kTileVectors; ++v) bk[v] = load(b + v * kLanes<T>);
    SSLFAST_UNROLL
    for (int r = 0; r < kTileRows; ++r) {
      const Vec<T> ar = broadcast(a[r * row_stride]);
      SSLFAST_UNROLL
      for (int v = 0; v < kTileVectors; ++v) t.acc[r][v] += ar * bk[v];
    }
    a += depth_stride;
    b += b_stride;
  }
  return t;
}

// c (rows, columns) = tile, or += tile, c being a corner of a row-major matrix.
template <bool kAdd, class T>
SSLFAST_INLINE void write_tile(const RegisterTile<T>& t, T* c, int64_t stride, int64_t rows,
                               int64_t columns) {
  if (rows >= kTileRows && columns >= kPanel<T>) {
    SSLFAST_UNROLL
    for (int r = 0; r < kTileRows; ++r) SSLFAST_UNROLL
    for (int v = 0; v < kTileVectors; ++v) {
      T* to = c + r * stride + v * kLanes<T>;
      if constexpr (kAdd)
        store(to, load(to) + t.acc[r][v]);
      else
        store(to, t.acc[r][v]);
    }
    return;
  }
  T spill[kTileRows * kPanel<T>];
  SSLFAST_UNROLL
  for (int r = 0; r < kTileRows; ++r) SSLFAST_UNROLL
  for (int v = 0; v < kTileVectors; ++v) store(spill + r * kPanel<T> + v * kLanes<T>, t.acc[r][v]);
  for (int64_t r = 0; r < rows && r < kTileRows; ++r)
    for (int64_t d = 0; d < columns && d < kPanel<T>; ++d)
      c[r * stride + d] = (kAdd ? c[r * stride + d] : T(0)) + spill[r * kPanel<T> + d];
}

// Asks for the cache lines that write_tile will touch: they arrive during the product.
template <class T>
SSLFAST_INLINE void prefetch_tile(const T* c, int64_t stride, int64_t rows) {
  constexpr int kLine = 64 / int(sizeof(T));
  for (int64_t r = 0; r < rows && r < kTileRows; ++r)
    for (int d = 0; d < kPanel<T>; d += kLine) __builtin_prefetch(c + r * stride + d, 1);
}

// Rows that a product reads: x (count, features), each times its weight where there are weights.
template <class T>
struct WeightedRows {
  const T* x;
  const T* weight;  // (count) or null

  WeightedRows from(int64_t row, int64_t features) const {
    return {x + row * features, weight ? weight + row : nullptr};
  }
};

// kPanel features of `depth` rows, from feature d on, side by side and zero padded. In place they
// would lie a row apart, all in a few sets of the innermost cache.
template <class T>
void pack_panel(const WeightedRows<T>& rows, int64_t depth, int64_t features, int64_t d, T* panel) {
  constexpr int P = kPanel<T>;
  const int64_t width = features - d < P ? features - d : P;
  for (int64_t k = 0; k < depth; ++k, panel += P) {
    const T* x = rows.x + k * features + d;
    const T weight = rows.weight ? rows.weight[k] : T(1);
    if (width == P) {
      SSLFAST_UNROLL
      for (int v = 0; v < kTileVectors; ++v)
        store(panel + v * kLanes<T>, load(x + v * kLanes<T>) * weight);
    } else {
      for (int64_t c = 0; c < P; ++c) panel[c] = c < width ? x[c] * weight : T(0);
    }
  }
}

// out (rows, features) += a (rows, depth) x (depth, features); strides of a as in multiply. `panel`
// is scratch for depth x kPanel numbers.
template <class T>
void add_product(const T* a, int64_t row_stride, int64_t depth_stride, int64_t rows, int64_t depth,
                 const WeightedRows<T>& x, int64_t features, T* panel, T* out) {
  for (int64_t d = 0; d < features; d += kPanel<T>) {
    pack_panel(x, depth, features, d, panel);
    for (int64_t r = 0; r < rows; r += kTileRows) {
      T* corner = out + r * features + d;
      prefetch_tile(corner, features, rows - r);
      write_tile<true>(
          multiply(a + r * row_stride, row_stride, depth_stride, panel, kPanel<T>, depth), corner,
          features, rows - r, features - d);
    }
  }
}

}  // namespace sslfast::SSLFAST_ISA
