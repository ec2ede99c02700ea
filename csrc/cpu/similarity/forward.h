// lse_i = log sum_j exp(s_ij): forward pass. One template, compiled once per instruction set.
#pragma once

#include "cpu/similarity/logsumexp.h"
#include "cpu/similarity/operands.h"

namespace sslfast::SSLFAST_ISA {

// Running sums of exp(x - shift), in double; the shift is common or, when tracked, per row and key.
struct Sums {
  double *row, *col;  // col is `row` in the symmetric form, null where columns are not asked for
};

// One tile with the fixed shift. keep(i, j, exponentials) takes each register tile, of which
// ahead(i, j) is told before.
template <class T, bool kIds, class A, class K>
void sum_tile(const Operands<T>& o, int64_t I, int64_t J, bool columns, const Scratch<T>& scratch,
              const Sums& sums, const A& ahead, const K& keep) {
  const int64_t i0 = o.row_blocks.first(I), j0 = o.key_blocks.first(J);
  const int64_t rows = o.row_blocks.width(I, o.rows), keys = o.key_blocks.width(J, o.keys);
  const int64_t stride = o.key_blocks.size;
  for (int64_t n = 0; n < o.row_blocks.size * kLanes<T>; ++n) scratch.row_acc[n] = T(0);
  for (int64_t n = 0; n < stride; ++n) scratch.key_acc[n] = T(0);

  for_each_register_tile(o, I, J, ahead, [&](int64_t i, int64_t j, const RegisterTile<T>& s) {
    RegisterTile<T> exponentials;
    Vec<T> key_acc[kTileVectors], offset[kTileVectors];
    SSLFAST_UNROLL
    for (int v = 0; v < kTileVectors; ++v) {
      key_acc[v] = load(scratch.key_acc + j + v * kLanes<T>);
      offset[v] = load(o.key_offset + j0 + j + v * kLanes<T>);
    }
    SSLFAST_UNROLL
    for (int r = 0; r < kTileRows; ++r) {
      const int64_t row = i0 + i + r;
      T* row_acc = scratch.row_acc + (i + r) * kLanes<T>;
      Vec<T> total = load(row_acc);
      SSLFAST_UNROLL
      for (int v = 0; v < kTileVectors; ++v) {
        Vec<T> e = exp<T>(logits(o, row, s.acc[r][v]) + offset[v] + o.row_offset[row]);
        if constexpr (kIds) e = zero_where<T>(excluded(o, row, j0 + j + v * kLanes<T>), e);
        total += e;
        key_acc[v] += e;
        exponentials.acc[r][v] = e;
      }
      store(row_acc, total);
    }
    SSLFAST_UNROLL
    for (int v = 0; v < kTileVectors; ++v) store(scratch.key_acc + j + v * kLanes<T>, key_acc[v]);
    keep(i, j, exponentials);
  });

  for (int64_t i = 0; i < rows; ++i)
    sums.row[i0 + i] += sum<T>(load(scratch.row_acc + i * kLanes<T>));
  if (columns)
    for (int64_t j = 0; j < keys; ++j) sums.col[j0 + j] += scratch.key_acc[j];
}

// Register tile (i, j) of a row-major tile of numbers.
template <class T>
SSLFAST_INLINE void store_tile(T* tile, int64_t stride, int64_t i, int64_t j,
                               const RegisterTile<T>& numbers) {
  SSLFAST_UNROLL
  for (int r = 0; r < kTileRows; ++r) SSLFAST_UNROLL
  for (int v = 0; v < kTileVectors; ++v)
    store(tile + (i + r) * stride + j + v * kLanes<T>, numbers.acc[r][v]);
}

// Scalar running (maximum, sum) of one row or key, to which a tile's terms are added.
struct Tracked {
  double *max, *sum;

  // Raises the maximum to at least `tile_max`; returns it (0 where there is no term yet).
  double raise(int64_t n, double tile_max) const {
    if (tile_max > max[n]) {
      sum[n] *= __builtin_exp(max[n] - tile_max);
      max[n] = tile_max;
    }
    return max[n] == -__builtin_inf() ? 0 : max[n];
  }
};

// The exponents of one tile, excluded pairs at -inf, into the scratch tile.
template <class T, bool kIds>
void exponent_tile(const Operands<T>& o, int64_t I, int64_t J, T* tile) {
  const int64_t i0 = o.row_blocks.first(I), j0 = o.key_blocks.first(J);
  const int64_t stride = o.key_blocks.size;
  const Vec<T> nothing = broadcast(T(-__builtin_inf()));
  for_each_register_tile(o, I, J, [&](int64_t i, int64_t j, const RegisterTile<T>& s) {
    RegisterTile<T> exponents;
    SSLFAST_UNROLL
    for (int r = 0; r < kTileRows; ++r) {
      const int64_t row = i0 + i + r;
      SSLFAST_UNROLL
      for (int v = 0; v < kTileVectors; ++v) {
        const int64_t key = j0 + j + v * kLanes<T>;
        Vec<T> x = logits(o, row, s.acc[r][v]) + load(o.key_offset + key) + o.row_offset[row];
        if constexpr (kIds) x = excluded(o, row, key) ? nothing : x;
        exponents.acc[r][v] = x;
      }
    }
    store_tile(tile, stride, i, j, exponents);
  });
}

template <class T>
void track_rows(const T* tile, int64_t stride, int64_t rows, int64_t width, const Tracked& to) {
  for (int64_t i = 0; i < rows; ++i) {
    const T* x = tile + i * stride;
    Vec<T> m = load(x);
    for (int64_t j = kLanes<T>; j < width; j += kLanes<T>) m = max<T>(m, load(x + j));
    const T shift = T(to.raise(i, largest<T>(m)));
    Vec<T> total{};
    for (int64_t j = 0; j < width; j += kLanes<T>) total += exp<T>(load(x + j) - shift);
    to.sum[i] += sum<T>(total);
  }
}

template <class T>
void track_keys(const T* tile, int64_t stride, int64_t rows, int64_t keys, const Tracked& to) {
  for (int64_t j = 0; j < keys; j += kLanes<T>) {
    const T* x = tile + j;
    const int64_t lanes = keys - j < kLanes<T> ? keys - j : kLanes<T>;
    Vec<T> m = load(x);
    for (int64_t i = 1; i < rows; ++i) m = max<T>(m, load(x + i * stride));
    T shift[kLanes<T>] = {}, added[kLanes<T>];
    for (int64_t l = 0; l < lanes; ++l) shift[l] = T(to.raise(j + l, m[l]));
    Vec<T> total{};
    for (int64_t i = 0; i < rows; ++i) total += exp<T>(load(x + i * stride) - load(shift));
    store(added, total);
    for (int64_t l = 0; l < lanes; ++l) to.sum[j + l] += added[l];
  }
}

// max_i |scale_i| |q_i| max_j |k_j| + max_j bias_j, an upper bound of every exponent (natural).
template <class T>
double exponent_bound(const SimilarityProblem<T>& p) {
  const auto longest = [&](const Source& x, int64_t n) {
    double* squares = p.workspace.template take<double>(n);
    for_each_row(p.pool, n, [&](int64_t i) {
      squares[i] = 0;
      for_each_piece<T>(x, i * p.features, p.features, [&](const T* piece, int64_t, int64_t count) {
        squares[i] += dot(piece, piece, count);
      });
    });
    double most = 0;
    for (int64_t i = 0; i < n; ++i) most = squares[i] <= most ? most : squares[i];
    return __builtin_sqrt(most);
  };
  const double q = longest(p.q, p.rows), k = p.k ? longest(p.k, p.keys) : q;
  double scale = 0, bias = p.bias ? p.bias[0] : 0;
  for (int64_t i = 0; i < (p.row_scale ? p.rows : 1); ++i)
    scale = __builtin_fabs(p.scale[i]) <= scale ? scale : __builtin_fabs(p.scale[i]);
  for (int64_t j = 1; p.bias && j < p.keys; ++j) bias = p.bias[j] > bias ? p.bias[j] : bias;
  return scale * q * k + bias;
}

template <class T>
class ForwardPass {
 public:
  explicit ForwardPass(const SimilarityForward<T>& p)
      : p_(p), tiling_(p), columns_(p.columns || tiling_.symmetric()) {
    const Workspace& w = p.workspace;
    row_sum_ = w.take<double>(p.rows);
    const Operands<T>& all = tiling_.all();
    cache_ = {p.cache, p.cache_elements, all.row_blocks, all.key_blocks, tiling_.symmetric()};
    if (cache_) cache_.shift() = T(__builtin_nan(""));
    if (Packed<T>::repeats_sooner(tiling_.terms().rows)) cache_ = {};
    col_sum_ = tiling_.symmetric() ? row_sum_ : columns_ ? w.take<double>(p.keys) : nullptr;
  }

  void run() {
    const double bound = exponent_bound(p_);
    if (p_.mean_keys.rows) *p_.mean_keys.valid = T(0);
    // Above this reach a row may well have no term within range of the shift: do not try.
    if (bound <= 2.2 * kHead<T>) {
      // A whole number, so that taking it from a large logit rounds nothing away.
      const T shift = T(bound > kHead<T> ? __builtin_ceil(bound - kHead<T>) : 0);
      p_.row_ids ? fixed<true>(shift) : fixed<false>(shift);
      if (sums_in_range()) {
        if (cache_) cache_.shift() = shift;
        if (p_.mean_keys.rows) divide_means();
        const auto common = [=](int64_t) { return double(shift); };
        return finish(common, common);
      }
    }
    row_max_ = filled<double>(p_.workspace, p_.rows, -__builtin_inf());
    col_max_ = tiling_.symmetric() ? row_max_
               : columns_          ? filled<double>(p_.workspace, p_.keys, -__builtin_inf())
                                   : nullptr;
    p_.row_ids ? tracked<true>() : tracked<false>();
    finish([&](int64_t i) { return row_max_[i]; }, [&](int64_t j) { return col_max_[j]; });
  }

 private:
  // prepare(operands of the strip, first key of the strip), then tile(worker, operands, first, I,
  // J)
  template <class P, class F>
  void visit(const P& prepare, const F& tile) {
    for (int64_t first = 0; first < p_.keys; first += tiling_.strip_keys()) {
      const Operands<T> o = tiling_.strip(first);
      prepare(o, first);
      const auto pair = [&](int worker, int64_t I, int64_t J) { tile(worker, o, first, I, J); };
      if (tiling_.symmetric())
        visit_symmetric(p_.pool, p_.workspace, o.row_blocks.count, pair);
      else if (columns_)
        visit_two_way(p_.pool, p_.workspace, o.row_blocks.count, o.key_blocks.count, pair);
      else
        visit_rows(p_.pool, o.row_blocks.count, o.key_blocks.count, pair);
    }
  }

  void clear(double* x, int64_t n) {
    for (int64_t i = 0; x && i < n; ++i) x[i] = 0;
  }

  template <bool kIds>
  void fixed(T shift) {
    Operands<T>& all = tiling_.all();
    clear(row_sum_, p_.rows);
    clear(col_sum_, p_.keys);
    for (int64_t i = 0; i < all.row_blocks.size * all.row_blocks.count; ++i)
      all.row_offset[i] = i < p_.rows ? -shift : T(-__builtin_inf());
    for (int64_t j = p_.keys; j < all.key_blocks.size * all.key_blocks.count; ++j)
      all.key_offset[j] = T(-__builtin_inf());
    const Terms terms = tiling_.terms();
    // Unnormalised means of the keys, += E k_J: each row block is in one hand.
    RowProduct<T> means;
    if (p_.mean_keys.rows)
      means = {
          p_.workspace,      p_.pool, {p_.k, p_.features, nullptr}, tiling_.strip_keys(), terms,
          p_.mean_keys.rows, p_.rows};
    const ScratchPool<T> scratch(p_, all, means ? Tile::kWeights : Tile::kNone, {true, false},
                                 terms.weights);
    const auto prepare = [&](const Operands<T>& o, int64_t first) {
      if (means) means.prepare(p_.pool, first, o.keys);
    };
    visit(prepare, [&](int worker, const Operands<T>& o, int64_t first, int64_t I, int64_t J) {
      const Scratch<T> own = scratch.of(worker);
      const bool off_diagonal = !tiling_.symmetric() || I != J;
      const auto sum = [&](const auto& ahead, const auto& keep) {
        sum_tile<T, kIds>(o, I, J, columns_ && off_diagonal, own,
                          {row_sum_, col_sum_ ? col_sum_ + first : nullptr}, ahead, keep);
      };
      if (!cache_ && !means)
        return sum([](int64_t, int64_t) {}, [](int64_t, int64_t, const RegisterTile<T>&) {});
      T* kept = cache_ ? cache_.tile(I, J, first) : nullptr;
      sum(
          [&](int64_t i, int64_t j) {
            if (!kept) own.weights.prefetch(i, j);
          },
          [&](int64_t i, int64_t j, const RegisterTile<T>& e) {
            kept ? store_tile(kept, o.key_blocks.size, i, j, e) : own.weights.put(i, j, e);
          });
      if (kept) return;
      Area area = area_of(o, I, J);
      area.column += first;
      means.add(own.weights, area);
    });
    if (means) means.finish(p_.pool);
  }
  void divide_means() const {
    for_each_row(p_.pool, p_.rows, [&](int64_t i) {
      T* mean = p_.mean_keys.rows + i * p_.features;
      for (int64_t d = 0; d < p_.features; ++d) mean[d] = T(mean[d] / row_sum_[i]);
    });
    *p_.mean_keys.valid = T(1);
  }

  bool sums_in_range() const {
    const auto check = [](const double* x, int64_t n, int64_t terms) {
      const double least = double(terms) * __builtin_ldexp(1.0, int(kTiny<T>));
      bool ok = true;
      for (int64_t i = 0; i < n; ++i) ok &= x[i] >= least;
      return ok;
    };
    return check(row_sum_, p_.rows, p_.keys) && (!col_sum_ || check(col_sum_, p_.keys, p_.rows));
  }

  template <bool kIds>
  void tracked() {
    Operands<T>& all = tiling_.all();
    clear(row_sum_, p_.rows);
    clear(col_sum_, p_.keys);
    for (int64_t i = 0; i < all.row_blocks.size * all.row_blocks.count; ++i)
      all.row_offset[i] = T(0);
    for (int64_t j = p_.keys; j < all.key_blocks.size * all.key_blocks.count; ++j)
      all.key_offset[j] = T(-__builtin_inf());
    const ScratchPool<T> scratch(p_, all, Tile::kNumbers);
    const auto nothing = [](const Operands<T>&, int64_t) {};
    visit(nothing, [&](int worker, const Operands<T>& o, int64_t first, int64_t I, int64_t J) {
      T* tile = scratch.of(worker).tile;
      exponent_tile<T, kIds>(o, I, J, tile);
      const int64_t i0 = o.row_blocks.first(I), j0 = o.key_blocks.first(J);
      const int64_t rows = o.row_blocks.width(I, o.rows), keys = o.key_blocks.width(J, o.keys);
      track_rows(tile, o.key_blocks.size, rows, round_up(keys, kLanes<T>),
                 {row_max_ + i0, row_sum_ + i0});
      if (columns_ && (!tiling_.symmetric() || I != J))
        track_keys(tile, o.key_blocks.size, rows, keys,
                   {col_max_ + first + j0, col_sum_ + first + j0});
    });
  }

  template <class R, class C>
  void finish(const R& row_shift, const C& col_shift) {
    write(row_shift, row_sum_, p_.rows, p_.row_lse, p_.row_residual);
    if (p_.columns) write(col_shift, col_sum_, p_.keys, p_.col_lse, p_.col_residual);
  }

  template <class S>
  static void write(const S& shift, const double* sum, int64_t n, T* lse, T* residual) {
    for (int64_t i = 0; i < n; ++i) {
      const double exact = sum[i] == 0                   ? -__builtin_inf()
                           : shift(i) == __builtin_inf() ? shift(i)
                                                         : shift(i) + __builtin_log(sum[i]);
      lse[i] = T(exact);
      if (residual) residual[i] = __builtin_isinf(lse[i]) ? T(0) : T(exact - lse[i]);
    }
  }

  const SimilarityForward<T>& p_;
  Tiling<T> tiling_;
  bool columns_;
  Cache<T> cache_;
  double *row_sum_, *col_sum_, *row_max_ = nullptr, *col_max_ = nullptr;
};

}  // namespace sslfast::SSLFAST_ISA
