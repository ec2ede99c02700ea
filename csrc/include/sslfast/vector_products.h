// Products by multiply-adds: packed panels, register tiles of x y^T, and the products of a tile of
// weights with the rows it weighs. `matrix_products.h` has the same by matrix instructions.
#pragma once

#include "sslfast/tiles.h"

namespace sslfast::SSLFAST_ISA {

// kPanel rows from row r on, `depth` deep from k on -> panel[depth][row], zero padded. One copy
// serves both operands of a product: a register tile broadcasts from it and loads from it.
template <bool kColumns, class S, class T>
void pack_panel_of(const S* data, const Operand<T>& x, int64_t r, int64_t k, int64_t depth,
                   T* panel) {
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
      store(panel + d * P + v * L, treats[v](load_wide(data + x.index(r + v * L, k + d))));
  }
  for (; along && d + L <= depth; d += L) {
    const Treat treated = treat(k + d);
    SSLFAST_UNROLL
    for (int v = 0; v < kTileVectors; ++v) {
      const S* from = data + x.index(r + v * L, k + d);
      transpose_square([&](int row) { return treated(load_wide(from + row * x.row_stride)); },
                       panel + d * P + v * L, P);
    }
  }
  for (; d < depth; ++d) {
    for (int64_t c = 0; c < P; ++c) {
      const int64_t column = x.transposed ? r + c : k + d;
      panel[d * P + c] = c < rows ? x.columns.of(wide(data[x.index(r + c, k + d)]), column) : T(0);
    }
  }
}

// All rows of an operand, `depth` of each; panels follow each other.
template <class T>
class Packed {
 public:
  static constexpr bool kSidesDiffer = false;  // a left operand serves as the right one too

  // Numbers of T that `rows` take.
  static int64_t size(int64_t rows, int64_t depth, int) {
    return round_up(rows, kPanel<T>) * depth;
  }
  // Whether a product is taken again sooner than its exponentials are read.
  static bool repeats_sooner(int) { return false; }
  // Depth that is packed at a time where a product is deep: so that the output, whose rows may
  // share a few sets of the cache, is seldom touched.
  static int64_t chunk(int) { return kPackedDepth; }
  static int64_t panels(int64_t rows) { return (rows + kPanel<T> - 1) / kPanel<T>; }

  Packed() = default;
  Packed(T* memory, int64_t depth, Side, int) : memory_(memory), depth_(depth) {}

  int64_t depth() const { return depth_; }
  // A panel of the operand, from depth k on.
  void pack(const Operand<T>& x, int64_t panel, int64_t k) const {
    T* to = memory_ + panel * kPanel<T> * depth_;
    with_elements<T>(x.source.data, x.source.element, [&](auto* data) {
      if (x.columns)
        pack_panel_of<true>(data, x, panel * kPanel<T>, k, depth_, to);
      else
        pack_panel_of<false>(data, x, panel * kPanel<T>, k, depth_, to);
    });
  }
  // Where row r begins.
  const T* at(int64_t r) const {
    constexpr int P = kPanel<T>;
    return memory_ + r / P * P * depth_ + r % P;
  }

 private:
  T* memory_ = nullptr;
  int64_t depth_ = 0;
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

// Depth of one chain of multiply-adds, where products are deep: rounding grows with its length.
constexpr int64_t kChainDepth = 128;

// A register tile of two packed panels, in chains that are added up.
template <class T>
SSLFAST_INLINE RegisterTile<T> multiply_in_chains(const T* x, const T* y, int64_t depth) {
  constexpr int P = kPanel<T>;
  RegisterTile<T> total = multiply(x, 1, P, y, P, depth < kChainDepth ? depth : kChainDepth);
  for (int64_t k = kChainDepth; k < depth; k += kChainDepth) {
    const int64_t left = depth - k;
    const RegisterTile<T> chain =
        multiply(x + k * P, 1, P, y + k * P, P, left < kChainDepth ? left : kChainDepth);
    SSLFAST_UNROLL
    for (int r = 0; r < kTileRows; ++r) SSLFAST_UNROLL
    for (int v = 0; v < kTileVectors; ++v) total.acc[r][v] += chain.acc[r][v];
  }
  return total;
}

// f(i, j, tile) for every register tile of an area of x y^T; i and j count from its corner.
template <class T, class A, class F>
SSLFAST_INLINE void for_each_register_tile(const Packed<T>& x, const Packed<T>& y, const Area& area,
                                           const A&, const F& f) {
  constexpr int P = kPanel<T>;
  for (int64_t j = 0; j < area.columns; j += P) {
    const T* b = y.at(area.column + j);
    for (int64_t i = 0; i < area.rows; i += kTileRows)
      f(i, j, multiply(x.at(area.row + i), 1, P, b, P, x.depth()));
  }
}

// out = x y^T, or += x y^T, over an area whose corner is `out`.
template <bool kAdd, class T>
void multiply_area(const Packed<T>& x, const Packed<T>& y, const Area& area, T* out,
                   int64_t stride) {
  constexpr int P = kPanel<T>;
  for (int64_t j = 0; j < area.columns; j += P) {
    const T* b = y.at(area.column + j);
    for (int64_t i = 0; i < area.rows; i += kTileRows) {
      if (area.upper && i >= j + P) break;
      T* corner = out + i * stride + j;
      prefetch_tile(corner, stride, area.rows - i);
      write_tile<kAdd>(multiply_in_chains(x.at(area.row + i), b, x.depth()), corner, stride,
                       area.rows - i, area.columns - j);
    }
  }
}

// kPanel features of `depth` rows, from feature d on, side by side and zero padded. In place they
// would lie a row apart, all in a few sets of the innermost cache.
template <class S, class T>
void pack_features(const S* x, const T* weight, int64_t depth, int64_t features, int64_t d,
                   T* panel) {
  constexpr int P = kPanel<T>;
  const int64_t width = features - d < P ? features - d : P;
  for (int64_t k = 0; k < depth; ++k, panel += P) {
    const S* row = x + k * features + d;
    const T w = weight ? weight[k] : T(1);
    if (width == P) {
      SSLFAST_UNROLL
      for (int v = 0; v < kTileVectors; ++v)
        store(panel + v * kLanes<T>, load_wide(row + v * kLanes<T>) * w);
    } else {
      for (int64_t c = 0; c < P; ++c) panel[c] = c < width ? wide(row[c]) * w : T(0);
    }
  }
}

// out (rows, features) += a (rows, depth) x, rows [first, first + depth) of x; strides of a as in
// multiply. `panel` is scratch for depth x kPanel numbers.
template <class T>
void add_product(const T* a, int64_t row_stride, int64_t depth_stride, int64_t rows,
                 const WeightedRows<T>& x, int64_t first, int64_t depth, T* panel, T* out) {
  const int64_t features = x.features;
  for (int64_t d = 0; d < features; d += kPanel<T>) {
    with_elements<T>(x.source.data, x.source.element, [&](auto* data) {
      pack_features(data + first * features, x.weight ? x.weight + first : nullptr, depth, features,
                    d, panel);
    });
    for (int64_t r = 0; r < rows; r += kTileRows) {
      T* corner = out + r * features + d;
      prefetch_tile(corner, features, rows - r);
      write_tile<true>(
          multiply(a + r * row_stride, row_stride, depth_stride, panel, kPanel<T>, depth), corner,
          features, rows - r, features - d);
    }
  }
}

// A tile of weights, as the products that follow read it, and scratch for them. It belongs to one
// worker; `rows` and `columns` are the most it holds.
template <class T>
class WeightTile {
 public:
  static int64_t size(int64_t rows, int64_t columns, Sides, int) {
    return rows * columns + (rows > columns ? rows : columns) * kPanel<T>;
  }
  WeightTile(T* memory, int64_t rows, int64_t columns, Sides, int)
      : numbers_(memory), panel_(memory + rows * columns), stride_(columns) {}

  // Rows that are put, of so many that count.
  static int64_t whole_rows(int64_t rows) { return round_up(rows, kTileRows); }
  void prefetch(int64_t, int64_t) const {}
  // Register tile (i, j).
  SSLFAST_INLINE void put(int64_t i, int64_t j, const RegisterTile<T>& w) const {
    SSLFAST_UNROLL
    for (int r = 0; r < kTileRows; ++r) SSLFAST_UNROLL
    for (int v = 0; v < kTileVectors; ++v)
      store(numbers_ + (i + r) * stride_ + j + v * kLanes<T>, w.acc[r][v]);
  }

  // out (area.rows, features) += W x, of rows from area.column on.
  void add_rows(const Area& area, const WeightedRows<T>& x, T* out) const {
    add_product(numbers_, stride_, 1, area.rows, x, area.column, area.columns, panel_, out);
  }
  // out (area.columns, features) += W^T x, of rows from area.row on.
  void add_columns(const Area& area, const WeightedRows<T>& x, T* out) const {
    add_product(numbers_, 1, stride_, area.columns, x, area.row, area.rows, panel_, out);
  }

 private:
  T *numbers_, *panel_;
  int64_t stride_;
};

// out (count, features) += W x, a tile of W at a time.
template <class T>
class RowProduct {
 public:
  RowProduct() = default;
  RowProduct(const Workspace&, const Pool&, const WeightedRows<T>& x, int64_t, Terms, T* out,
             int64_t)
      : x_(x), out_(out) {}

  explicit operator bool() const { return out_ != nullptr; }
  // Rows [first, first + count) of x come next.
  void prepare(const Pool&, int64_t, int64_t) const {}
  // W of rows from area.row of `out` on and of rows from area.column of x on.
  void add(const WeightTile<T>& w, const Area& area) const {
    w.add_rows(area, x_, out_ + area.row * x_.features);
  }
  void finish(const Pool&) const {}

 private:
  WeightedRows<T> x_{};
  T* out_ = nullptr;
};

// out (count, features) += W^T x, a tile of W at a time.
template <class T>
class ColumnProduct {
 public:
  ColumnProduct() = default;
  ColumnProduct(const Workspace&, const Pool&, const WeightedRows<T>& x, int64_t, Terms, T* out,
                int64_t)
      : x_(x), out_(out) {}

  explicit operator bool() const { return out_ != nullptr; }
  void add(const WeightTile<T>& w, const Area& area) const {
    w.add_columns(area, x_, out_ + area.column * x_.features);
  }
  void finish(const Pool&) const {}

 private:
  WeightedRows<T> x_{};
  T* out_ = nullptr;
};

}  // namespace sslfast::SSLFAST_ISA
