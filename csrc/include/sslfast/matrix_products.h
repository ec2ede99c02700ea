// Products by matrix instructions, in the place of `vector_products.h`: the same names, operands
// packed as bfloat16 terms, sums in float32. It serves float alone; double has no such
// instructions.
#pragma once

#include "sslfast/matrix/unit.h"
#include "sslfast/tiles.h"

namespace sslfast::SSLFAST_ISA {

static_assert(kPanel<float> == kBlock && kBlock % kTileRows == 0);

// Whether several terms stand for the numbers of a matrix: none is infinite or rounds to infinity,
// which its further terms would have to take back, and the largest is so far above the smallest
// normal number that what the last term has lost does not count. NaN stays NaN.
inline bool terms_hold(const Pool& pool, const Workspace& w, const Source& x, int64_t rows,
                       int64_t features) {
  float* largest = w.take<float>(rows);
  for_each_row(pool, rows, [&](int64_t i) {
    float most = 0;
    for_each_piece<float>(x, i * features, features, [&](const float* piece, int64_t, int64_t n) {
      for (int64_t d = 0; d < n; ++d) {
        const float size = __builtin_fabsf(piece[d]);
        most = size > most ? size : most;
      }
    });
    largest[i] = most;
  });
  float most = 0;
  for (int64_t i = 0; i < rows; ++i) most = largest[i] > most ? largest[i] : most;
  return most == 0 || (most >= 0x1p-90f && most <= 0x1p127f);
}

// A tile of an operand, 16 rows from row r and 32 deep from k: number `n` of 16 vectors is, of rows
// of a matrix, row n / 2 and half n % 2 of the depth; of its columns, depth n, across the rows.
struct TileNumbers {
  static constexpr int kVectors = 32;
  alignas(64) float numbers[kVectors * 16];
  Vec<float> vector(int n) const { return load(numbers + n * 16); }
};

// `depth` is what is left from k on. Rows of a matrix may have weights, where its columns are
// meant.
template <class S>
void read_tile(const S* data, const Operand<float>& x, const float* weights, int64_t r, int64_t k,
               int64_t depth, TileNumbers& to) {
  const int64_t rows = x.rows - r;
  for (int n = 0; n < TileNumbers::kVectors; ++n) {
    float* vector = to.numbers + n * 16;
    const int64_t row = x.transposed ? 0 : n / 2, deep = x.transposed ? n : n % 2 * 16;
    const int64_t column = x.transposed ? r : k + deep;  // of the matrix
    const int64_t count =
        x.transposed ? (deep < depth ? rows : 0) : (row < rows ? depth - deep : 0);
    const S* from = data + x.index(r + row, k + deep);
    if (count >= 16) {
      Vec<float> v = load_wide(from);
      if (x.columns)
        v = ((v - load(x.columns.mean + column)) - load(x.columns.rest + column)) *
            load(x.columns.scale + column);
      store(vector, weights ? v * weights[k + deep] : v);
      continue;
    }
    for (int64_t c = 0; c < 16; ++c) {
      vector[c] = c < count ? x.columns.of(wide(from[c]), column + c) : 0.0f;
      if (weights && c < count) vector[c] *= weights[k + deep];
    }
  }
}

// Two tiles make a step; a step's terms follow each other, then steps, then panels of 32 rows.
SSLFAST_INLINE void write_tile_of(const TileNumbers& from, bool transposed, Side side, int terms,
                                  uint16_t* to) {
  Vec<float> left[TileNumbers::kVectors];
  for (int n = 0; n < TileNumbers::kVectors; ++n) left[n] = from.vector(n);
  for (int t = 0; t < terms; ++t, to += kStepElements) {
    Words term[TileNumbers::kVectors], words[16];
    take_term(left, term, t + 1 == terms);
    for (int n = 0; n < 16; ++n)
      words[n] = transposed ? pairs(term[2 * n], term[2 * n + 1])
                            : neighbours(term[2 * n], term[2 * n + 1]);
    // Rows of a matrix lie as the left side wants them, its columns as the right side does.
    if (transposed == (side == Side::kRight)) {
      for (int n = 0; n < 16; ++n) store_words(to + n * 32, words[n]);
    } else {
      transpose_square<float>([&](int n) { return reinterpret_cast<Vec<float>>(words[n]); },
                              reinterpret_cast<float*>(to), 16);
    }
  }
}

// All rows of an operand for one side of a product.
template <class T>
class Packed {
 public:
  static_assert(sizeof(T) == 4, "matrix instructions serve float32 alone");
  static constexpr bool kSidesDiffer = true;

  // float32 numbers of memory that `rows` take.
  static int64_t size(int64_t rows, int64_t depth, int terms) {
    return round_up(rows, kBlock) * round_up(depth, kBlock) * terms / 2;
  }
  // Whether a product is taken again sooner than its exponentials are read.
  static bool repeats_sooner(int terms) { return terms == 1; }
  // Depth that is packed at a time where a product is deep: 1 to 1.5 KiB of each row.
  static int64_t chunk(int terms) { return terms == 1 ? 512 : terms == 2 ? 384 : 256; }
  static int64_t panels(int64_t rows) { return (rows + kBlock - 1) / kBlock; }

  Packed() = default;
  Packed(T* memory, int64_t depth, Side side, int terms)
      : memory_(reinterpret_cast<uint16_t*>(memory)),
        depth_(depth),
        steps_((depth + kBlock - 1) / kBlock),
        side_(side),
        terms_(terms) {}

  int64_t depth() const { return depth_; }
  int64_t steps() const { return steps_; }
  int terms() const { return terms_; }
  // A panel of the operand, from depth k on.
  void pack(const Operand<T>& x, int64_t panel, int64_t k) const {
    pack_steps(x, nullptr, panel, k, depth_, 0, steps_);
  }
  // Steps [first, last) of a panel whose `depth` begins at depth k of the operand.
  void pack_steps(const Operand<T>& x, const T* weights, int64_t panel, int64_t k, int64_t depth,
                  int64_t first, int64_t last) const {
    TileNumbers numbers;
    with_elements<T>(x.source.data, x.source.element, [&](auto* data) {
      for (int64_t step = first; step < last; ++step)
        for (int half = 0; half < 2; ++half) {
          read_tile(data, x, weights, panel * kBlock + half * 16, k + step * kBlock,
                    depth - step * kBlock, numbers);
          write_tile_of(numbers, x.transposed, side_, terms_,
                        at(panel, step) + half * kTileElements);
        }
    });
  }
  // The panel's rows from step `step` on.
  Factor factor(int64_t panel, int64_t step = 0) const { return {at(panel, step), terms_}; }

 private:
  uint16_t* at(int64_t panel, int64_t step) const {
    return memory_ + (panel * steps_ + step) * terms_ * kStepElements;
  }

  uint16_t* memory_ = nullptr;
  int64_t depth_ = 0, steps_ = 0;
  Side side_ = Side::kLeft;
  int terms_ = 1;
};

// Rows [first, first + count) of x, as columns: features are the rows of the packed operand.
template <class T>
void pack_columns(const Pool& pool, const WeightedRows<T>& x, int64_t first, int64_t count,
                  const Packed<T>& to) {
  constexpr int64_t kSteps = 16;  // a task's
  const Operand<T> columns =
      columns_of<T>(x.source, x.features, x.features, {}, first * x.features);
  const T* weights = x.weight ? x.weight + first : nullptr;
  const int64_t steps = Packed<T>::panels(count), chunks = (steps + kSteps - 1) / kSteps;
  for_each(pool, Packed<T>::panels(x.features) * chunks, [&](int, int64_t task) {
    const int64_t begin = task % chunks * kSteps, end = begin + kSteps;
    to.pack_steps(columns, weights, task / chunks, 0, count, begin, end < steps ? end : steps);
  });
}

// Rows [row, row + kTileRows) of a block.
SSLFAST_INLINE RegisterTile<float> register_tile(const float* c, int64_t row) {
  RegisterTile<float> t;
  SSLFAST_UNROLL
  for (int r = 0; r < kTileRows; ++r) SSLFAST_UNROLL
  for (int v = 0; v < kTileVectors; ++v)
    t.acc[r][v] = load(c + row / 16 * 512 + v * 256 + (row % 16 + r) * 16);
  return t;
}

// f(i, j, tile) for every register tile of an area of x y^T, and for those that fill its last
// blocks; i and j count from its corner, which lies at a block's. ahead(i, j) is told which block
// comes next: what f writes to then can arrive during the product.
template <class T, class A, class F>
SSLFAST_INLINE void for_each_register_tile(const Packed<T>& x, const Packed<T>& y, const Area& area,
                                           const A& ahead, const F& f) {
  const MatrixUnit unit;
  alignas(64) float c[kBlockNumbers];
  for (int64_t j = 0; j < area.columns; j += kBlock) {
    const Factor right = y.factor((area.column + j) / kBlock);
    for (int64_t i = 0; i < area.rows; i += kBlock) {
      ahead(i, j);
      unit.template multiply<false>(x.factor((area.row + i) / kBlock), right, x.steps(),
                                    BlockAt::packed(c));
      for (int64_t r = 0; r < kBlock; r += kTileRows) f(i + r, j, register_tile(c, r));
    }
  }
}

// out = x y^T, or += x y^T, over an area whose corner is `out`.
template <bool kAdd, class T>
void multiply_area(const Packed<T>& x, const Packed<T>& y, const Area& area, T* out,
                   int64_t stride) {
  const MatrixUnit unit;
  alignas(64) float c[kBlockNumbers];
  for (int64_t j = 0; j < area.columns; j += kBlock) {
    const Factor right = y.factor((area.column + j) / kBlock);
    for (int64_t i = 0; i < area.rows; i += kBlock) {
      if (area.upper && i > j) break;
      const Factor left = x.factor((area.row + i) / kBlock);
      const int64_t rows = area.rows - i, columns = area.columns - j;
      float* corner = out + i * stride + j;
      if (rows >= kBlock && columns >= kBlock) {
        if (kAdd && rows >= 2 * kBlock)
          prefetch(BlockAt::in_matrix(corner + kBlock * stride, stride));
        unit.template multiply<kAdd>(left, right, x.steps(), BlockAt::in_matrix(corner, stride));
        continue;
      }
      unit.template multiply<false>(left, right, x.steps(), BlockAt::packed(c));
      for (int64_t r = 0; r < rows && r < kBlock; r += kTileRows)
        write_tile<kAdd>(register_tile(c, r), corner + r * stride, stride, rows - r, columns);
    }
  }
}

// A tile of weights as terms, for the left side of W x and, transposed, for the right side of
// x^T W. It belongs to one worker; `rows` and `columns` are the most it holds.
template <class T>
class WeightTile {
 public:
  static int64_t size(int64_t rows, int64_t columns, Sides sides, int terms) {
    return rows * columns * terms / 2 * (int64_t(sides.rows) + int64_t(sides.columns));
  }
  WeightTile(T* memory, int64_t rows, int64_t columns, Sides sides, int terms)
      : sides_(sides), terms_(terms), row_steps_(rows / kBlock), column_steps_(columns / kBlock) {
    left_ = reinterpret_cast<uint16_t*>(memory);
    right_ = left_ + (sides.rows ? rows * columns * terms : 0);
  }

  // Rows that are put, of so many that count.
  static int64_t whole_rows(int64_t rows) { return round_up(rows, kBlock); }
  // Asks for where a block's register tiles go: stores that wait for it hold up the next loads.
  SSLFAST_INLINE void prefetch(int64_t i, int64_t j) const {
    const int64_t I = i / kBlock, J = j / kBlock, numbers = terms_ * kStepElements;
    for (int64_t at = 0; at < numbers; at += 32) {
      if (sides_.rows) __builtin_prefetch(left_ + (I * column_steps_ + J) * numbers + at, 1);
      if (sides_.columns) __builtin_prefetch(right_ + (J * row_steps_ + I) * numbers + at, 1);
    }
  }
  // Register tile (i, j).
  SSLFAST_INLINE void put(int64_t i, int64_t j, const RegisterTile<T>& w) const {
    const int64_t I = i / kBlock, J = j / kBlock, row = i % kBlock;
    uint16_t* left = left_ + (I * column_steps_ + J) * terms_ * kStepElements + row * 32;
    uint16_t* right = right_ + (J * row_steps_ + I) * terms_ * kStepElements + row / 2 * 32;
    if (terms_ == 1) return put_terms<1>(w, left, right);
    terms_ == 2 ? put_terms<2>(w, left, right) : put_terms<3>(w, left, right);
  }

  // Rows of panel I, and columns of panel J.
  Factor left(int64_t I) const {
    return {left_ + I * column_steps_ * terms_ * kStepElements, terms_};
  }
  Factor right(int64_t J) const {
    return {right_ + J * row_steps_ * terms_ * kStepElements, terms_};
  }

 private:
  template <int kTerms>
  SSLFAST_INLINE void put_terms(const RegisterTile<T>& w, uint16_t* left, uint16_t* right) const {
    SSLFAST_UNROLL
    for (int r = 0; r < kTileRows; r += 2) {
      Vec<T> rest[2 * kTileVectors] = {w.acc[r][0], w.acc[r][1], w.acc[r + 1][0], w.acc[r + 1][1]};
      SSLFAST_UNROLL
      for (int t = 0; t < kTerms; ++t) {
        Words term[2 * kTileVectors];
        take_term(rest, term, t + 1 == kTerms);
        if (sides_.rows) {
          store_words(left + t * kStepElements + r * 32, neighbours(term[0], term[1]));
          store_words(left + t * kStepElements + (r + 1) * 32, neighbours(term[2], term[3]));
        }
        if (sides_.columns) {
          uint16_t* pair = right + t * kStepElements + r / 2 * 32;
          store_words(pair, pairs(term[0], term[2]));
          store_words(pair + kTileElements, pairs(term[1], term[3]));
        }
      }
    }
  }

  Sides sides_;
  int terms_;
  int64_t row_steps_, column_steps_;
  uint16_t *left_, *right_;
};

// Sums of blocks of products, which a worker adds to in place.
class BlockSums {
 public:
  BlockSums() = default;
  BlockSums(const Workspace& w, const Pool& pool, int64_t rows, int64_t columns)
      : columns_((columns + kBlock - 1) / kBlock) {
    const int64_t panels = (rows + kBlock - 1) / kBlock;
    memory_ = w.take<float>(panels * columns_ * kBlockNumbers);
    for_each(pool, panels, [&](int, int64_t panel) {
      __builtin_memset(block(panel, 0), 0, columns_ * kBlockNumbers * sizeof(float));
    });
  }
  float* block(int64_t I, int64_t J) const { return memory_ + (I * columns_ + J) * kBlockNumbers; }
  int64_t columns() const { return columns_; }

 private:
  float* memory_ = nullptr;
  int64_t columns_ = 0;
};

// out (count, features) += W x, a tile of W at a time.
template <class T>
class RowProduct {
 public:
  RowProduct() = default;
  // depth: the most rows of x that are prepared at a time.
  RowProduct(const Workspace& w, const Pool& pool, const WeightedRows<T>& x, int64_t depth,
             Terms terms, T* out, int64_t count)
      : x_(x), out_(out), count_(count), in_place_(!(x.features % kBlock || count % kBlock)) {
    if (!in_place_) sums_ = {w, pool, count, x.features};
    const int64_t size = Packed<T>::size(x.features, depth, terms.rows);
    packed_ = {w.take<T>(size), depth, Side::kRight, terms.rows};
  }

  explicit operator bool() const { return out_ != nullptr; }
  // Rows [first, first + count) of x come next.
  void prepare(const Pool& pool, int64_t first, int64_t count) {
    first_ = first;
    pack_columns(pool, x_, first, count, packed_);
  }
  // W of rows from area.row of `out` on and of rows from area.column of x on.
  void add(const WeightTile<T>& w, const Area& area) const {
    const MatrixUnit unit;
    const int64_t step = (area.column - first_) / kBlock, steps = Packed<T>::panels(area.columns);
    const int64_t first = area.row / kBlock, count = Packed<T>::panels(area.rows);
    const int64_t panels = Packed<T>::panels(x_.features);
    for (int64_t d = 0; d < panels; ++d)
      for (int64_t I = 0; I < count; ++I) {
        if (I + 1 < count)
          prefetch(sums(first + I + 1, d));
        else if (d + 1 < panels)
          prefetch(sums(first, d + 1));
        unit.template multiply<true>(w.left(I), packed_.factor(d, step), steps, sums(first + I, d));
      }
  }
  void finish(const Pool& pool) const {
    if (in_place_) return;
    for_each(pool, Packed<T>::panels(count_), [&](int, int64_t I) {
      for (int64_t r = I * kBlock; r < count_ && r < (I + 1) * kBlock; r += kTileRows)
        for (int64_t d = 0; d < sums_.columns(); ++d)
          write_tile<true>(register_tile(sums_.block(I, d), r % kBlock),
                           out_ + r * x_.features + d * kBlock, x_.features, count_ - r,
                           x_.features - d * kBlock);
    });
  }

 private:
  // Those of a block: in `out` itself, where it has whole blocks alone.
  BlockAt sums(int64_t I, int64_t d) const {
    return in_place_ ? BlockAt::in_matrix(out_ + (I * x_.features + d) * kBlock, x_.features)
                     : BlockAt::packed(sums_.block(I, d));
  }

  WeightedRows<T> x_{};
  T* out_ = nullptr;
  int64_t count_ = 0, first_ = 0;
  bool in_place_ = false;
  Packed<T> packed_;
  BlockSums sums_;
};

// out (count, features) += W^T x, a tile of W at a time; sums are of its transpose, x^T W.
template <class T>
class ColumnProduct {
 public:
  ColumnProduct() = default;
  // rows: those of x.
  ColumnProduct(const Workspace& w, const Pool& pool, const WeightedRows<T>& x, int64_t rows,
                Terms terms, T* out, int64_t count)
      : x_(x), out_(out), count_(count), sums_(w, pool, count, x.features) {
    const int64_t size = Packed<T>::size(x.features, rows, terms.rows);
    packed_ = {w.take<T>(size), rows, Side::kLeft, terms.rows};
    pack_columns(pool, x, 0, rows, packed_);
  }

  explicit operator bool() const { return out_ != nullptr; }
  // W of rows from area.row of x on and of rows from area.column of `out` on.
  void add(const WeightTile<T>& w, const Area& area) const {
    const MatrixUnit unit;
    const int64_t step = area.row / kBlock, steps = Packed<T>::panels(area.rows);
    const int64_t first = area.column / kBlock;
    for (int64_t J = 0; J < Packed<T>::panels(area.columns); ++J)
      for (int64_t d = 0; d < sums_.columns(); ++d) {
        const bool more = d + 1 < sums_.columns();
        if (more) prefetch(BlockAt::packed(sums_.block(first + J, d + 1)));
        unit.template multiply<true>(packed_.factor(d, step), w.right(J), steps,
                                     BlockAt::packed(sums_.block(first + J, d)));
      }
  }
  void finish(const Pool& pool) const {
    for_each(pool, Packed<T>::panels(count_), [&](int, int64_t J) {
      alignas(64) float turned[kBlockNumbers];
      for (int64_t d = 0; d < sums_.columns(); ++d) {
        const float* block = sums_.block(J, d);  // (features, rows of out)
        for (int tile = 0; tile < 4; ++tile)
          transpose_square<float>([&](int r) { return load(block + tile * 256 + r * 16); },
                                  turned + (tile % 2 * 2 + tile / 2) * 256, 16);
        for (int64_t r = J * kBlock; r < count_ && r < (J + 1) * kBlock; r += kTileRows)
          write_tile<true>(register_tile(turned, r % kBlock), out_ + r * x_.features + d * kBlock,
                           x_.features, count_ - r, x_.features - d * kBlock);
      }
    });
  }

 private:
  WeightedRows<T> x_{};
  T* out_ = nullptr;
  int64_t count_ = 0;
  Packed<T> packed_;
  BlockSums sums_;
};

}  // namespace sslfast::SSLFAST_ISA
