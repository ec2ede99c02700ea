// x y^T by packed panels: the matrix products that are not inside a similarity kernel. A product of
// a matrix with itself computes the tiles above the diagonal alone.
#pragma once

#include "sslfast/tiles.h"

namespace sslfast::SSLFAST_ISA {

// Depth of the contraction that is packed at a time, for all rows of both operands. Deep enough
// that the output, whose rows may share a few sets of the cache, is seldom touched.
constexpr int64_t kPackedDepth = 384;
// Depth of one chain of multiply-adds: rounding grows with its length.
constexpr int64_t kChainDepth = 128;

// All rows of an operand for one chunk of depth; panels follow each other.
template <class T>
class PackedOperand {
 public:
  static int64_t size(int64_t rows, int64_t depth) {
    return round_up(rows, kPanel<T>) * (depth < kPackedDepth ? depth : kPackedDepth);
  }
  explicit PackedOperand(T* memory) : memory_(memory) {}

  void pack(const Operand<T>& x, int64_t panel, int64_t k, int64_t depth) const {
    pack_operand(x, panel * kPanel<T>, k, depth, memory_ + panel * kPanel<T> * depth);
  }
  // Where row r of a chunk of `depth` begins.
  const T* at(int64_t r, int64_t depth) const {
    constexpr int P = kPanel<T>;
    return memory_ + r / P * P * depth + r % P;
  }

 private:
  T* memory_;
};

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

// A register tile of two packed panels, in chains that are added up.
template <class T>
SSLFAST_INLINE RegisterTile<T> multiply_panels(const T* x, const T* y, int64_t depth) {
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

struct Tile {
  int64_t index, row, rows, column, columns;
  // Of a symmetric product: its transpose is a tile too; or it is its own transpose.
  bool mirrored, diagonal;
};

// out (n, m) = x y^T; without y, x x^T, of which the tiles below the diagonal are copies.
template <class T>
class Product {
 public:
  // packing: memory for `PackedOperand::size` of x, and of y where there is one.
  Product(const Pool& pool, T* packing, const Operand<T>& x, const Operand<T>* y, int64_t depth)
      : pool_(pool),
        x_(x),
        y_(y ? *y : x),
        depth_(depth),
        symmetric_(!y),
        x_packed_(packing),
        y_packed_(y ? packing + PackedOperand<T>::size(x.rows, depth) : packing) {
    const int64_t size = block_size(x_.rows, y_.rows, symmetric_);
    rows_ = {size, (x_.rows + size - 1) / size};
    columns_ = {size, (y_.rows + size - 1) / size};
  }

  int64_t tiles() const {
    return symmetric_ ? rows_.count * (rows_.count + 1) / 2 : rows_.count * columns_.count;
  }

  // Adds to `out` where `add`, else overwrites it; finished(tile) when a tile is complete, by the
  // thread that has it in its cache.
  template <class F>
  void run(T* out, int64_t stride, bool add, const F& finished) const {
    for (int64_t k = 0; k < depth_; k += kPackedDepth) {
      const int64_t depth = depth_ - k < kPackedDepth ? depth_ - k : kPackedDepth;
      pack(k, depth);
      for_each(pool_, tiles(), [&](int, int64_t task) {
        const Tile tile = locate(task);
        multiply_tile(tile, depth, out, stride, add || k > 0);
        if (k + depth < depth_) return;
        if (tile.diagonal) mirror(tile, out, stride);
        finished(tile);
        if (tile.mirrored) mirror(tile, out, stride);
      });
    }
  }

 private:
  Tile locate(int64_t task) const {
    int64_t I = 0, J = task;
    if (symmetric_) {
      for (; J >= columns_.count - I; ++I) J -= columns_.count - I;
      J += I;
    } else {
      I = task / columns_.count;
      J = task % columns_.count;
    }
    return {task,
            rows_.first(I),
            rows_.width(I, x_.rows),
            columns_.first(J),
            columns_.width(J, y_.rows),
            symmetric_ && I != J};
  }

  void pack(int64_t k, int64_t depth) const {
    const auto panels = [](const Operand<T>& x) { return (x.rows + kPanel<T> - 1) / kPanel<T>; };
    const int64_t of_x = panels(x_), of_y = symmetric_ ? 0 : panels(y_);
    for_each(pool_, of_x + of_y, [&](int, int64_t task) {
      if (task < of_x)
        x_packed_.pack(x_, task, k, depth);
      else
        y_packed_.pack(y_, task - of_x, k, depth);
    });
  }

  void multiply_tile(const Tile& tile, int64_t depth, T* out, int64_t stride, bool add) const {
    constexpr int P = kPanel<T>;
    for (int64_t j = 0; j < tile.columns; j += P) {
      const T* panel = y_packed_.at(tile.column + j, depth);
      for (int64_t i = 0; i < tile.rows; i += kTileRows) {
        if (tile.diagonal && i >= j + P) break;  // the mirror image has them
        T* corner = out + (tile.row + i) * stride + tile.column + j;
        const int64_t rows = tile.rows - i, columns = tile.columns - j;
        prefetch_tile(corner, stride, rows);
        const RegisterTile<T> product =
            multiply_panels(x_packed_.at(tile.row + i, depth), panel, depth);
        if (add)
          write_tile<true>(product, corner, stride, rows, columns);
        else
          write_tile<false>(product, corner, stride, rows, columns);
      }
    }
  }

  // The transpose of a tile to where it belongs; of a diagonal tile what lies above its diagonal.
  static void mirror(const Tile& tile, T* out, int64_t stride) {
    constexpr int64_t L = kLanes<T>;
    for (int64_t i = 0; i < tile.rows; i += L) {
      for (int64_t j = tile.diagonal ? i : 0; j < tile.columns; j += L) {
        const T* from = out + (tile.row + i) * stride + tile.column + j;
        T* to = out + (tile.column + j) * stride + tile.row + i;
        if (from != to && i + L <= tile.rows && j + L <= tile.columns) {
          transpose_square(from, stride, to, stride, [](Vec<T> row) { return row; });
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
  int64_t depth_;
  bool symmetric_;
  PackedOperand<T> x_packed_, y_packed_;
  Blocks rows_, columns_;
};

}  // namespace sslfast::SSLFAST_ISA
