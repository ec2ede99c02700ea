// ||A^T B||_F^2 and its gradient through N x N or D x E products.
#pragma once

#include "cpu/correlation/frobenius.h"
#include "sslfast/products.h"

namespace sslfast::SSLFAST_ISA {

template <class T>
Columns<T> columns_from(const T* of, int64_t features) {
  return of ? Columns<T>{of, of + features, of + 2 * features} : Columns<T>{};
}

// bfloat16 terms of the matrices and of their products, where products are of bfloat16 alone. What
// is computed from half precision, standardised rows and products, has more digits than one term.
template <class T>
Terms terms_of(const FrobeniusProblem<T>& p) {
  if (p.a.element != Element::kBf16 && p.a.element != Element::kHalf)
    return {p.float_terms, p.float_terms};
  return {p.a.element == Element::kBf16 ? 1 : 2, 2};
}

// d_i = sum_n a_ni b_ni, for so many columns at a time that memory is read in long runs.
template <class T>
void column_dots(const FrobeniusProblem<T>& p, const Operand<T>& a, const Operand<T>& b,
                 T* diagonal) {
  constexpr int64_t kColumns = 256;
  for_each(p.pool, (p.features + kColumns - 1) / kColumns, [&](int, int64_t task) {
    const int64_t first = task * kColumns;
    const int64_t width = p.features - first < kColumns ? p.features - first : kColumns;
    double sum[kColumns] = {};
    T of_a[kColumns], of_b[kColumns];
    for (int64_t n = 0; n < p.rows; ++n) {
      const T* x = widened(a.source, a.index(n, first), width, of_a);
      const T* y = widened(b.source, b.index(n, first), width, of_b);
      const Columns<T> of_x = a.columns.from(first), of_y = b.columns.from(first);
      if (of_x) {
        for (int64_t c = 0; c < width; ++c)
          sum[c] += double(of_x.of(x[c], c)) * double(of_y.of(y[c], c));
      } else {
        for (int64_t c = 0; c < width; ++c) sum[c] += double(x[c]) * double(y[c]);
      }
    }
    for (int64_t c = 0; c < width; ++c) diagonal[first + c] = T(sum[c]);
  });
}

// sum_ij x_ij y_ij over one tile of two matrices of one shape.
template <class T>
double tile_dot(const Tile& tile, const T* x, const T* y, int64_t stride) {
  double sum = 0;
  for (int64_t i = 0; i < tile.rows; ++i) {
    const int64_t from = (tile.row + i) * stride + tile.column;
    sum += dot(x + from, y + from, tile.columns);
  }
  return sum;
}

// The products of one problem: whole where they are kept or fit the scratch, else so many of their
// rows at a time (N of a Gram, D of a^T b) as fit it.
template <class T>
class Products {
 public:
  Products(const FrobeniusProblem<T>& p, bool kept)
      : p_(p),
        a_(rows_of<T>(p.a, p.rows, p.features, columns_from(p.a_columns, p.features))),
        b_(p.b ? rows_of<T>(p.b, p.rows, p.others, columns_from(p.b_columns, p.others)) : a_),
        terms_(terms_of(p)),
        height_(p.gram ? p.rows : p.features),
        width_(p.gram ? p.rows : p.others) {
    const int64_t matrices = p.gram && p.b ? 2 : 1;
    const int64_t fit = p.strip_elements / (matrices * width_);
    strip_ = kept || fit >= height_ ? height_ : fit > 1 ? fit : 1;
    if (!kept) scratch_ = p.workspace.template take<T>(matrices * strip_ * width_);
    // The largest operands of any product below: rows or features against rows or features.
    const int64_t most = p.others > p.features ? p.others : p.features;
    const int most_terms = terms_.rows > terms_.weights ? terms_.rows : terms_.weights;
    packing_ = p.workspace.template take<T>(
        2 * Product<T>::packing_size(p.rows > most ? p.rows : most, most_terms));
    const auto blocks = [](int64_t n) { return (n + kBlockGranule - 1) / kBlockGranule; };
    sums_ = p.workspace.template take<double>(blocks(strip_) * blocks(width_));
  }

  double forward(const FrobeniusForward<T>& p) {
    double total = 0;
    if (p.gram && p.split_diagonal) {
      column_dots(p_, a_, b_, p.diagonal);
      for (int64_t i = 0; i < p.features; ++i) total -= double(p.diagonal[i]) * p.diagonal[i];
    }
    for (int64_t first = 0; first < height_; first += strip_)
      total += p.gram ? gram_sum(first, p.cache) : cross_sum(first, p.cache, p.diagonal);
    return total;
  }

  void backward(const FrobeniusBackward<T>& p) {
    const T sides = p.b ? T(1) : T(2);
    factor_ = 2 * sides * p.dtotal;
    if (p.split_diagonal) {
      weight_ = p.workspace.template take<T>(p.features);
      // On the direct route the product that was kept has no diagonal.
      for (int64_t i = 0; i < p.features; ++i)
        weight_[i] = sides * (p.ddiagonal[i] - (p.gram ? 2 * p.dtotal * p.diagonal[i] : T(0)));
    }
    for (int64_t first = 0; first < height_; first += strip_)
      p.gram ? gram_gradients(p, first) : cross_gradients(p, first);
  }

 private:
  int64_t rows(int64_t first) const { return height_ - first < strip_ ? height_ - first : strip_; }

  // x y^T -> out, without y x x^T; f(tile), summed in the order of the tiles.
  template <class F>
  double sum_tiles(const Operand<T>& x, const Operand<T>* y, int64_t depth, T* out, const F& f) {
    const Product<T> product(p_.pool, packing_, x, terms_.rows, y, terms_.rows, depth);
    product.run(out, width_, false,
                [&](const Tile& tile) { sums_[tile.index] = f(tile) * (tile.mirrored ? 2 : 1); });
    double total = 0;
    for (int64_t n = 0; n < product.tiles(); ++n) total += sums_[n];
    return total;
  }

  // Rows of x x^T -> out.
  template <class F>
  double gram(const Operand<T>& x, int64_t depth, int64_t first, T* out, const F& f) {
    const Operand<T> strip = x.strip(first, rows(first));
    return sum_tiles(strip, strip_ == height_ ? nullptr : &x, depth, out, f);
  }
  static double no_sum(const Tile&) { return 0; }

  double gram_sum(int64_t first, T* cache) {
    T* of_b = cache ? cache : scratch_;
    T* of_a = p_.b ? of_b + strip_ * width_ : of_b;
    if (p_.b) gram(a_, p_.features, first, of_a, no_sum);
    return gram(b_, p_.others, first, of_b,
                [&](const Tile& tile) { return tile_dot(tile, of_a, of_b, width_); });
  }

  // Rows of a^T b -> out, the diagonal taken out where it is split off.
  double cross_sum(int64_t first, T* cache, T* diagonal) {
    T* out = cache ? cache : scratch_;
    const Operand<T> a =
        columns_of<T>(a_.source, rows(first), p_.features, a_.columns.from(first), first);
    const Operand<T> b = columns_of<T>(b_.source, p_.others, p_.others, b_.columns);
    const bool symmetric = !p_.b && strip_ == height_;
    return sum_tiles(a, symmetric ? nullptr : &b, p_.rows, out, [&](const Tile& tile) {
      for (int64_t i = tile.row; p_.split_diagonal && i < tile.row + tile.rows; ++i) {
        const int64_t j = first + i;
        if (j < tile.column || j >= tile.column + tile.columns) continue;
        if (diagonal) diagonal[j] = out[i * width_ + j];
        out[i * width_ + j] = T(0);
      }
      return tile_dot(tile, out, out, width_);
    });
  }

  // out = factor x y^T + weight o other, from column `first` of both on; rows of `other` are as
  // wide as those of `out`. One of x and y is a product itself, and so are its terms.
  void gradient(const Operand<T>& x, int x_terms, const Operand<T>& y, int y_terms, int64_t depth,
                T* out, const Operand<T>& other, int64_t first, bool add, bool last) const {
    const int64_t stride = other.row_stride;
    const Product<T> product(p_.pool, packing_, x, x_terms, &y, y_terms, depth);
    product.run(out + first, stride, add, [&](const Tile& tile) {
      const int64_t column = first + tile.column;
      T of_other[kLargestBlock];
      for (int64_t i = tile.row; last && i < tile.row + tile.rows; ++i) {
        T* to = out + i * stride + column;
        for (int64_t j = 0; j < tile.columns; ++j) to[j] *= factor_;
        if (weight_)
          add_weighted(widened(other.source, other.index(i, column), tile.columns, of_other),
                       other.columns.from(column), weight_ + column, tile.columns, to);
      }
    });
  }
  static void add_weighted(const T* from, const Columns<T>& columns, const T* weight, int64_t count,
                           T* to) {
    if (columns) {
      for (int64_t j = 0; j < count; ++j) to[j] += weight[j] * columns.of(from[j], j);
    } else {
      for (int64_t j = 0; j < count; ++j) to[j] += weight[j] * from[j];
    }
  }

  void gram_gradients(const FrobeniusBackward<T>& p, int64_t first) {
    const T* of_b = p.cache ? p.cache : scratch_;
    const T* of_a = of_b + strip_ * width_;
    if (!p.cache && p.da) gram(b_, p.others, first, scratch_, no_sum);
    if (!p.cache && p.db) gram(a_, p.features, first, scratch_ + strip_ * width_, no_sum);
    const auto side = [&](const T* gram, const Operand<T>& mine, const Operand<T>& other, T* out) {
      if (!out) return;
      const int64_t features = mine.row_stride;
      // A whole Gram is its own transpose, and columns are packed with less effort.
      const Source products = numbers(gram);
      const Operand<T> x = strip_ == height_ ? columns_of<T>(products, width_, width_)
                                             : rows_of<T>(products, rows(first), width_);
      const Operand<T> y = columns_of<T>(mine.source, features, features, mine.columns);
      const Operand<T> opposite =
          rows_of<T>(other.source, rows(first), features, other.columns, first * features);
      gradient(x, terms_.weights, y, terms_.rows, p.rows, out + first * features, opposite, 0,
               false, true);
    };
    side(of_b, a_, b_, p.da);
    side(of_a, b_, a_, p.db);
  }

  void cross_gradients(const FrobeniusBackward<T>& p, int64_t first) {
    const T* product = p.cache ? p.cache : scratch_;
    if (!p.cache) cross_sum(first, nullptr, nullptr);
    const Source products = numbers(product);
    if (p.da) {
      const Operand<T> other = rows_of<T>(b_.source, p.rows, p.features, b_.columns);
      gradient(b_, terms_.rows, rows_of<T>(products, rows(first), width_), terms_.weights, p.others,
               p.da, other, first, false, true);
    }
    if (p.db) {
      const Operand<T> x = rows_of<T>(a_.source, p.rows, p.features, a_.columns.from(first), first);
      const Operand<T> other = rows_of<T>(a_.source, p.rows, p.others, a_.columns);
      gradient(x, terms_.rows, columns_of<T>(products, width_, width_), terms_.weights, rows(first),
               p.db, other, 0, first > 0, first + strip_ >= height_);
    }
  }
  static Source numbers(const T* x) { return {x, kElement<T>}; }

  const FrobeniusProblem<T>& p_;
  Operand<T> a_, b_;
  Terms terms_;
  int64_t height_, width_, strip_;
  T* scratch_ = nullptr;
  T* packing_;
  double* sums_;
  T factor_ = T(0);
  T* weight_ = nullptr;  // (D)
};

}  // namespace sslfast::SSLFAST_ISA
