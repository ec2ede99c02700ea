// x y^T by packed panels: the matrix products that are not inside a similarity kernel. A product of
// a matrix with itself computes the tiles above the diagonal alone.
#pragma once

#include "sslfast/tiles.h"

namespace sslfast::SSLFAST_ISA {

// Element (r, k) is base[r * row_stride + k * depth_stride]; one of the strides is 1.
template <class T>
struct Operand {
  const T* base;
  int64_t rows, row_stride, depth_stride;

  const T* at(int64_t r, int64_t k) const { return base + r * row_stride + k * depth_stride; }
};

// Rows of a matrix, and its columns.
template <class T>
Operand<T> rows_of(const T* x, int64_t rows, int64_t stride) {
  return {x, rows, stride, 1};
}
template <class T>
Operand<T> columns_of(const T* x, int64_t columns, int64_t stride) {
  return {x, columns, 1, stride};
}

// Depth of the contraction that is packed at a time, for all rows of both operands; and of the
// panel that one pass over a block of rows keeps in the innermost cache.
constexpr int64_t kPackedDepth = 512;
template <class T>
constexpr int64_t kPanelDepth = 1024 / int64_t(sizeof(T));

// kPanel rows from row r on, `depth` deep from k on -> panel[depth][row], zero padded.
template <class T>
void pack_operand(const Operand<T>& x, int64_t r, int64_t k, int64_t depth, T* panel) {
  constexpr int P = kPanel<T>;
  constexpr int64_t kLine = 64 / int64_t(sizeof(T));
  const int64_t rows = x.rows - r < P ? x.rows - r : P;
  if (x.row_stride == 1) {
    for (int64_t d = 0; d < depth; ++d, panel += P) {
      const T* from = x.at(r, k + d);
      if (rows == P) {
        SSLFAST_UNROLL
        for (int v = 0; v < kTileVectors; ++v)
          store(panel + v * kLanes<T>, load(from + v * kLanes<T>));
      } else {
        for (int64_t c = 0; c < P; ++c) panel[c] = c < rows ? from[c] : T(0);
      }
    }
    return;
  }
  // A cache line of every row at a time, so that the lines written to stay in the innermost cache.
  for (int64_t first = 0; first < depth; first += kLine) {
    const int64_t last = first + kLine < depth ? first + kLine : depth;
    for (int64_t c = 0; c < P; ++c) {
      const T* from = x.at(r + c, k);
      for (int64_t d = first; d < last; ++d) panel[d * P + c] = c < rows ? from[d] : T(0);
    }
  }
}

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
  // Where row r lies, `k` deep in a chunk of `depth`.
  const T* at(int64_t r, int64_t k, int64_t depth) const {
    constexpr int P = kPanel<T>;
    return memory_ + r / P * P * depth + k * P + r % P;
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

struct Tile {
  int64_t index, row, rows, column, columns;
  bool mirrored;  // off the diagonal of a symmetric product: its transpose is a tile too
};

// out (n, m) = x y^T; without y, x x^T, of which the tiles below the diagonal are copies.
template <class T>
class Product {
 public:
  // Elements of packing memory.
  static int64_t packing(int64_t n, int64_t m, int64_t depth) {
    return PackedOperand<T>::size(n, depth) + PackedOperand<T>::size(m, depth);
  }
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
    for (int64_t k = 0; k < depth; k += kPanelDepth<T>) {
      const int64_t part = depth - k < kPanelDepth<T> ? depth - k : kPanelDepth<T>;
      for (int64_t j = 0; j < tile.columns; j += P) {
        const T* panel = y_packed_.at(tile.column + j, k, depth);
        for (int64_t i = 0; i < tile.rows; i += kTileRows) {
          T* corner = out + (tile.row + i) * stride + tile.column + j;
          const int64_t rows = tile.rows - i, columns = tile.columns - j;
          prefetch_tile(corner, stride, rows);
          const RegisterTile<T> product =
              multiply(x_packed_.at(tile.row + i, k, depth), 1, P, panel, P, part);
          if (add || k > 0)
            write_tile<true>(product, corner, stride, rows, columns);
          else
            write_tile<false>(product, corner, stride, rows, columns);
        }
      }
    }
  }

  // 16 x 16 elements at a time, so that the lines written to stay in the innermost cache.
  static void mirror(const Tile& tile, T* out, int64_t stride) {
    constexpr int64_t kSquare = 16;
    for (int64_t i = 0; i < tile.rows; i += kSquare)
      for (int64_t j = 0; j < tile.columns; j += kSquare)
        for (int64_t c = j; c < j + kSquare && c < tile.columns; ++c)
          for (int64_t r = i; r < i + kSquare && r < tile.rows; ++r)
            out[(tile.column + c) * stride + tile.row + r] =
                out[(tile.row + r) * stride + tile.column + c];
  }

  const Pool& pool_;
  Operand<T> x_, y_;
  int64_t depth_;
  bool symmetric_;
  PackedOperand<T> x_packed_, y_packed_;
  Blocks rows_, columns_;
};

}  // namespace sslfast::SSLFAST_ISA
