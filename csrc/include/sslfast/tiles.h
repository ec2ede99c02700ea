// Blocks, work for a pool, operands of a product, and the register tile that it leaves.
#pragma once

#include "sslfast/constants.h"
#include "sslfast/elements.h"
#include "sslfast/pool.h"

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
constexpr int64_t kBlockGranule = 32;
static_assert(kLargestBlock % kBlockGranule == 0);

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

// A matrix as an operand: element (r, k) is number `index(r, k)` of the source. r counts its rows,
// or its columns where it is transposed.
template <class T>
struct Operand {
  Source source;
  int64_t first, rows, row_stride, depth_stride;
  Columns<T> columns;
  bool transposed;  // strides do not tell, where the matrix has one column

  int64_t index(int64_t r, int64_t k) const { return first + r * row_stride + k * depth_stride; }
  // `count` rows from row r on, of an operand that is not transposed.
  Operand strip(int64_t r, int64_t count) const {
    Operand o = *this;
    o.first = index(r, 0);
    o.rows = count;
    return o;
  }
};

// Rows of a matrix, and its columns; `first` is where they begin.
template <class T>
Operand<T> rows_of(const Source& x, int64_t rows, int64_t stride, Columns<T> columns = {},
                   int64_t first = 0) {
  return {x, first, rows, stride, 1, columns, false};
}
template <class T>
Operand<T> columns_of(const Source& x, int64_t count, int64_t stride, Columns<T> columns = {},
                      int64_t first = 0) {
  return {x, first, count, 1, stride, columns, true};
}
template <class T>
constexpr Element kElement = sizeof(T) == 8 ? Element::kDouble : Element::kFloat;

// Which operand of a product a packed matrix is, and which products a tile of weights takes part
// in.
enum class Side { kLeft, kRight };
struct Sides {
  bool rows, columns;  // W x, W^T x
};

// How many bfloat16 terms stand for a number, where products are of bfloat16 alone.
struct Terms {
  int rows = 1, weights = 1;
};

// Part of a matrix of products; of one on the diagonal of a symmetric one, what lies above it.
struct Area {
  int64_t row, rows, column, columns;
  bool upper = false;
};

// Rows that weights multiply: x (count, features), each times its weight where there are weights.
template <class T>
struct WeightedRows {
  Source source;
  int64_t features;
  const T* weight;  // (count) or null
};

template <class T>
struct RegisterTile {
  Vec<T> acc[kTileRows][kTileVectors];  // (kTileRows, kPanel)
};

// Zero beyond `rows` and `columns`. Whole tiles, the most, stay in registers.
template <class T>
SSLFAST_INLINE void zero_beyond(RegisterTile<T>& t, int64_t rows, int64_t columns) {
  if (__builtin_expect(rows >= kTileRows && columns >= kPanel<T>, 1)) return;
  T numbers[kTileRows * kPanel<T>];
  SSLFAST_UNROLL
  for (int r = 0; r < kTileRows; ++r) SSLFAST_UNROLL
  for (int v = 0; v < kTileVectors; ++v)
    store(numbers + r * kPanel<T> + v * kLanes<T>, t.acc[r][v]);
  for (int r = 0; r < kTileRows; ++r)
    for (int c = 0; c < kPanel<T>; ++c)
      if (r >= rows || c >= columns) numbers[r * kPanel<T> + c] = T(0);
  SSLFAST_UNROLL
  for (int r = 0; r < kTileRows; ++r) SSLFAST_UNROLL
  for (int v = 0; v < kTileVectors; ++v)
    t.acc[r][v] = load(numbers + r * kPanel<T> + v * kLanes<T>);
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

}  // namespace sslfast::SSLFAST_ISA
