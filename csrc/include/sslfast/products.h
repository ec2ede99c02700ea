// x y^T of packed operands: the matrix products that are not inside a similarity kernel. A product
// of a matrix with itself computes the tiles above the diagonal alone.
#pragma once

#include "sslfast/packed.h"

namespace sslfast::SSLFAST_ISA {

// Square blocks of an (n, m) matrix: at least 32 tiles where there are rows enough, so that many
// threads find work. The size depends on the shape alone: a sum over tiles may not depend on the
// machine's number of threads.
inline int64_t block_size(int64_t n, int64_t m, bool symmetric) {
  for (int64_t size = kLargestBlock; size > kBlockGranule; size -= kBlockGranule) {
    const int64_t tiles = ((n + size - 1) / size) * ((m + size - 1) / size);
    if ((symmetric ? tiles / 2 : tiles) >= 32) return size;
  }
  return kBlockGranule;
}

// Columns of packed rows that stay in a core's own cache while all rows go by.
constexpr int64_t kGroupBytes = 1 << 20;

struct Tile {
  int64_t index, row, rows, column, columns;
  // Of a symmetric product: its transpose is a tile too; or it is its own transpose.
  bool mirrored, diagonal;
};

// out (n, m) = x y^T; without y, x x^T, of which the tiles below the diagonal are copies.
template <class T>
class Product {
 public:
  // Numbers of memory that packing an operand takes, of whatever depth and side. The terms are the
  // most that either operand has.
  static int64_t packing_size(int64_t rows, int terms) {
    return Packed<T>::size(rows, Packed<T>::chunk(terms), terms);
  }

  // packing: memory for both operands. Terms are those of x and of y.
  Product(const Pool& pool, T* packing, const Operand<T>& x, int x_terms, const Operand<T>* y,
          int y_terms, int64_t depth)
      : pool_(pool),
        x_(x),
        y_(y ? *y : x),
        x_terms_(x_terms),
        y_terms_(y ? y_terms : x_terms),
        depth_(depth),
        symmetric_(!y),
        shared_(symmetric_ && !Packed<T>::kSidesDiffer),
        chunk_(Packed<T>::chunk(x_terms > y_terms ? x_terms : y_terms)),
        x_memory_(packing),
        y_memory_(packing + (shared_ ? 0 : Packed<T>::size(x.rows, chunk_, x_terms))) {
    const int64_t size = block_size(x_.rows, y_.rows, symmetric_);
    rows_ = {size, (x_.rows + size - 1) / size};
    columns_ = {size, (y_.rows + size - 1) / size};
    const int64_t bytes = Packed<T>::size(size, chunk_, y_terms_) * int64_t(sizeof(T));
    group_ = bytes < kGroupBytes ? kGroupBytes / bytes : 1;
  }

  int64_t tiles() const {
    return symmetric_ ? rows_.count * (rows_.count + 1) / 2 : rows_.count * columns_.count;
  }

  // Adds to `out` where `add`, else overwrites it; finished(tile) when a tile is complete, by the
  // thread that has it in its cache.
  template <class F>
  void run(T* out, int64_t stride, bool add, const F& finished) const {
    for (int64_t k = 0; k < depth_; k += chunk_) {
      const int64_t depth = depth_ - k < chunk_ ? depth_ - k : chunk_;
      const Packed<T> x(x_memory_, depth, Side::kLeft, x_terms_);
      const Packed<T> y(y_memory_, depth, Side::kRight, y_terms_);
      pack(x, y, k);
      for_each(pool_, tiles(), [&](int, int64_t task) {
        const Tile tile = locate(task);
        multiply_tile(x, y, tile, out, stride, add || k > 0);
        if (k + depth < depth_) return;
        if (tile.diagonal) mirror(tile, out, stride);
        finished(tile);
        if (tile.mirrored) mirror(tile, out, stride);
      });
    }
  }

 private:
  // Tiles go by groups of columns, and in a group row by row.
  Tile locate(int64_t task) const {
    int64_t I = 0, J = 0, left = task;
    for (int64_t first = 0; first < columns_.count; first += group_) {
      const int64_t last = first + group_ < columns_.count ? first + group_ : columns_.count;
      const int64_t rows = symmetric_ ? last : rows_.count;
      for (I = 0; I < rows; ++I) {
        J = symmetric_ && I > first ? I : first;
        if (left < last - J) break;
        left -= last - J;
      }
      if (I < rows) break;
    }
    J += left;
    return {task,
            rows_.first(I),
            rows_.width(I, x_.rows),
            columns_.first(J),
            columns_.width(J, y_.rows),
            symmetric_ && I != J,
            symmetric_ && I == J};
  }

  void pack(const Packed<T>& x, const Packed<T>& y, int64_t k) const {
    const int64_t of_x = Packed<T>::panels(x_.rows), of_y = Packed<T>::panels(y_.rows);
    for_each(pool_, of_x + (shared_ ? 0 : of_y), [&](int, int64_t task) {
      task < of_x ? x.pack(x_, task, k) : y.pack(y_, task - of_x, k);
    });
  }

  void multiply_tile(const Packed<T>& x, const Packed<T>& y, const Tile& tile, T* out,
                     int64_t stride, bool add) const {
    T* corner = out + tile.row * stride + tile.column;
    // The mirror image has what lies below the diagonal.
    const Area area{tile.row, tile.rows, tile.column, tile.columns, tile.diagonal};
    add ? multiply_area<true>(x, y, area, corner, stride)
        : multiply_area<false>(x, y, area, corner, stride);
  }

  // The transpose of a tile to where it belongs; of a diagonal tile what lies above its diagonal.
  static void mirror(const Tile& tile, T* out, int64_t stride) {
    constexpr int64_t L = kLanes<T>;
    for (int64_t i = 0; i < tile.rows; i += L) {
      for (int64_t j = tile.diagonal ? i : 0; j < tile.columns; j += L) {
        const T* from = out + (tile.row + i) * stride + tile.column + j;
        T* to = out + (tile.column + j) * stride + tile.row + i;
        if (from != to && i + L <= tile.rows && j + L <= tile.columns) {
          transpose_square([&](int r) { return load(from + r * stride); }, to, stride);
          continue;
        }
        for (int64_t c = 0; c < L && j + c < tile.columns; ++c)
          for (int64_t r = 0; r < L && i + r < tile.rows && (from != to || r < c); ++r)
            to[c * stride + r] = from[r * stride + c];
      }
    }
  }

  const Pool& pool_;
  Operand<T> x_, y_;
  int x_terms_, y_terms_;
  int64_t depth_;
  bool symmetric_, shared_;
  int64_t chunk_, group_;
  T *x_memory_, *y_memory_;
  Blocks rows_, columns_;
};

}  // namespace sslfast::SSLFAST_ISA
