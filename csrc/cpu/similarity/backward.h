// Gradient of lse_i = log sum_j exp(s_ij), from tiles computed again:
//   G_ij = drow_i exp(s_ij - row_i) + dcol_j exp(s_ij - col_j),
//   dq_i = scale_i sum_j G_ij k_j,   dk_j = sum_i G_ij scale_i q_i,   dbias_j = sum_i G_ij.
// In the symmetric form drow and dcol are one vector, G is symmetric, and dq is the whole gradient.
#pragma once

#include "cpu/similarity/logsumexp.h"
#include "cpu/similarity/operands.h"

namespace sslfast::SSLFAST_ISA {

enum class Exponentials {
  kRows,    // exp(s - row_i): columns were not asked for
  kShared,  // one exp(s - c) times (a_i + b_j), a_i = drow_i exp(c - row_i): all lse lie close
  kSplit,   // one exponential a side
};

// Per-row and per-key weights of a tile; the key arrays are the row arrays in the symmetric form.
template <class T>
struct Weights {
  T *row, *key;
  T* key_shift;  // -col_j; kSplit

  // Those of the strip that begins with key `first`.
  Weights from(int64_t first) const {
    return {row, key + first, key_shift ? key_shift + first : nullptr};
  }
};

// f(i, j, weights) for every register tile of G, zero beyond the last row and key.
template <class T, bool kIds, Exponentials kMode, class A, class F>
void gradient_tile(const Operands<T>& o, int64_t I, int64_t J, const Weights<T>& w, const A& ahead,
                   const F& f) {
  const Area area = area_of(o, I, J);
  const int64_t i0 = area.row, j0 = area.column;
  for_each_register_tile(o, I, J, ahead, [&](int64_t i, int64_t j, const RegisterTile<T>& s) {
    RegisterTile<T> g;
    SSLFAST_UNROLL
    for (int r = 0; r < kTileRows; ++r) {
      const int64_t row = i0 + i + r;
      SSLFAST_UNROLL
      for (int v = 0; v < kTileVectors; ++v) {
        const int64_t key = j0 + j + v * kLanes<T>;
        const Vec<T> x = logits(o, row, s.acc[r][v]);
        Vec<T> y = exp<T>(x + load(o.key_offset + key) + o.row_offset[row]);
        if constexpr (kMode == Exponentials::kRows) y = y * w.row[row];
        if constexpr (kMode == Exponentials::kShared) y = y * (load(w.key + key) + w.row[row]);
        if constexpr (kMode == Exponentials::kSplit)
          y = y * w.row[row] + load(w.key + key) * exp<T>(x + load(w.key_shift + key));
        // Last, since an excluded pair may exceed the sum that it is not part of.
        if constexpr (kIds) y = zero_where<T>(excluded(o, row, key), y);
        g.acc[r][v] = y;
      }
    }
    zero_beyond(g, area.rows - i, area.columns - j);
    f(i, j, g);
  });
}

// The same from cached exponentials; exclusion is in them already.
template <class T, class F>
void gradient_tile_from_cache(const Operands<T>& o, int64_t I, int64_t J, const Weights<T>& w,
                              const T* e, const F& f) {
  const Area area = area_of(o, I, J);
  const int64_t stride = o.key_blocks.size;
  const int64_t rows = WeightTile<T>::whole_rows(area.rows);
  for (int64_t i = 0; i < rows; i += kTileRows)
    for (int64_t j = 0; j < area.columns; j += kPanel<T>) {
      RegisterTile<T> g;
      SSLFAST_UNROLL
      for (int r = 0; r < kTileRows; ++r) SSLFAST_UNROLL
      for (int v = 0; v < kTileVectors; ++v) {
        const int64_t at = j + v * kLanes<T>;
        g.acc[r][v] = load(e + (i + r) * stride + at) *
                      (load(w.key + area.column + at) + w.row[area.row + i + r]);
      }
      zero_beyond(g, area.rows - i, area.columns - j);
      f(i, j, g);
    }
}

// <x_i, y> in double.
template <class T>
double exact_dot(const Source& x, int64_t i, int64_t features, const T* y) {
  double sum = 0;
  for_each_piece<T>(x, i * features, features, [&](const T* piece, int64_t at, int64_t count) {
    for (int64_t d = 0; d < count; ++d) sum += double(piece[d]) * y[at + d];
  });
  return sum;
}

// Where only queries and scales learn, from the forward pass's mean m_i of the keys:
//   dq_i = drow_i scale_i m_i,   dscale_i = drow_i <q_i, m_i>.
template <class T>
void gradient_from_means(const SimilarityBackward<T>& p) {
  double* dots = p.workspace.template take<double>(p.rows);
  for_each_row(p.pool, p.rows, [&](int64_t i) {
    const T* mean = p.mean_keys + i * p.features;
    T* dq = p.dq + i * p.features;
    const T weight = p.drows[i] * p.scale[p.row_scale ? i : 0];
    for (int64_t d = 0; d < p.features; ++d) dq[d] = weight * mean[d];
    dots[i] = p.dscale ? exact_dot(p.q, i, p.features, mean) * p.drows[i] : 0;
  });
  if (!p.dscale) return;
  double total = 0;
  for (int64_t i = 0; i < p.rows; ++i) {
    total += dots[i];
    if (p.row_scale) p.dscale[i] = T(dots[i]);
  }
  if (!p.row_scale) p.dscale[0] = T(total);
}

template <class T>
class BackwardPass {
 public:
  explicit BackwardPass(const SimilarityBackward<T>& p)
      : p_(p), tiling_(p), columns_(p.columns || tiling_.symmetric()) {
    const Workspace& w = p.workspace;
    Operands<T>& all = tiling_.all();
    const int64_t padded_rows = all.row_blocks.size * all.row_blocks.count;
    padded_keys_ = all.key_blocks.size * all.key_blocks.count;
    weights_.row = filled<T>(w, padded_rows, T(0));
    weights_.key = tiling_.symmetric() ? weights_.row : filled<T>(w, padded_keys_, T(0));
    choose_exponentials();
  }

  void run() {
    const Terms terms = tiling_.terms();
    const bool symmetric = tiling_.symmetric();
    // dq += G k; dk += G^T q, each query times its own scale, or all times the common one at the
    // end. In the symmetric form both are the gradient of the queries.
    const WeightedRows<T> queries{p_.q, p_.features, p_.row_scale ? p_.scale : nullptr};
    const WeightedRows<T> keys{symmetric ? p_.q : p_.k, p_.features, nullptr};
    T* transposed = symmetric ? p_.dq : p_.dk;
    RowProduct<T> to_queries;
    if (p_.dq)
      to_queries = {p_.workspace, p_.pool, keys, tiling_.strip_keys(), terms, p_.dq, p_.rows};
    ColumnProduct<T> to_keys;
    if (transposed) to_keys = {p_.workspace, p_.pool, queries, p_.rows, terms, transposed, p_.keys};
    const ScratchPool<T> scratch(p_, tiling_.all(), Tile::kWeights,
                                 {bool(to_queries), bool(to_keys)}, terms.weights);
    for (int64_t first = 0; first < p_.keys; first += tiling_.strip_keys()) {
      const Operands<T> o = tiling_.strip(first);
      if (to_queries) to_queries.prepare(p_.pool, first, o.keys);
      const auto pair = [&](int worker, int64_t I, int64_t J) {
        const Scratch<T> own = scratch.of(worker);
        Area area = area_of(o, I, J);
        weigh(o, first, I, J, own);
        area.column += first;
        if (p_.dbias)
          for (int64_t j = 0; j < area.columns; ++j) p_.dbias[area.column + j] += own.key_acc[j];
        if (to_queries) to_queries.add(own.weights, area);
        if (to_keys && !(symmetric && I == J)) to_keys.add(own.weights, area);
      };
      if (symmetric)
        visit_symmetric(p_.pool, p_.workspace, o.row_blocks.count, pair);
      else if (p_.dk || p_.dbias)
        visit_two_way(p_.pool, p_.workspace, o.row_blocks.count, o.key_blocks.count, pair);
      else
        visit_rows(p_.pool, o.row_blocks.count, o.key_blocks.count, pair);
    }
    if (to_queries) to_queries.finish(p_.pool);
    if (to_keys) to_keys.finish(p_.pool);
    if (p_.dq) finish_queries();
    if (p_.dk && !p_.row_scale) scale_keys();
  }

 private:
  // A row whose sum is empty has no gradient: weight 0, whatever its incoming gradient.
  static bool empty(T lse) { return lse == T(-__builtin_inf()); }

  void choose_exponentials() {
    Operands<T>& all = tiling_.all();
    double least = __builtin_inf(), most = -least;
    const auto widen = [&](const T* lse, int64_t n) {
      for (int64_t i = 0; i < n; ++i) {
        if (empty(lse[i])) continue;
        least = lse[i] >= least ? least : lse[i];  // NaN is taken up and fails the test below
        most = lse[i] <= most ? most : lse[i];
      }
    };
    widen(p_.row_lse, p_.rows);
    if (p_.columns) widen(p_.col_lse, p_.keys);
    if (least > most) least = most = 0;

    double shift = least;
    cache_ = {p_.cache, p_.cache_elements, all.row_blocks, all.key_blocks, tiling_.symmetric()};
    if (cache_ && cache_.shift() != cache_.shift()) cache_ = {};
    if (cache_) shift = cache_.shift();
    mode_ = cache_                     ? Exponentials::kShared
            : !columns_                ? Exponentials::kRows
            : most - least <= kHead<T> ? Exponentials::kShared
                                       : Exponentials::kSplit;
    // The rounding of a sum would scale its whole row; the residual takes it back.
    const auto weigh = [&](const T* lse, const T* residual, const T* gradient, int64_t n,
                           T* weight) {
      for (int64_t i = 0; i < n; ++i) {
        const double rest = residual ? residual[i] : 0;
        const double log_factor = mode_ == Exponentials::kShared ? shift - lse[i] - rest : -rest;
        weight[i] = empty(lse[i]) ? T(0) : T(gradient[i] * __builtin_exp(log_factor));
      }
    };
    weigh(p_.row_lse, p_.row_residual, p_.drows, p_.rows, weights_.row);
    if (p_.columns) weigh(p_.col_lse, p_.col_residual, p_.dcols, p_.keys, weights_.key);
    for (int64_t i = 0; i < p_.rows; ++i) {
      const double lse = mode_ == Exponentials::kShared ? shift : double(p_.row_lse[i]);
      all.row_offset[i] = empty(p_.row_lse[i]) ? T(0) : T(-lse);
    }
    if (mode_ != Exponentials::kSplit) return;
    weights_.key_shift = all.row_offset;
    if (!p_.columns) return;
    weights_.key_shift = filled<T>(p_.workspace, padded_keys_, T(0));
    for (int64_t j = 0; j < p_.keys; ++j)
      weights_.key_shift[j] = empty(p_.col_lse[j]) ? T(0) : -p_.col_lse[j];
  }

  // The tile of G as weights; where the bias learns, the sums of its columns too.
  void weigh(const Operands<T>& o, int64_t first, int64_t I, int64_t J,
             const Scratch<T>& own) const {
    const bool sums = p_.dbias;
    const auto ahead = [&](int64_t i, int64_t j) { own.weights.prefetch(i, j); };
    weigh_as(o, first, I, J, ahead, [&](int64_t i, int64_t j, const RegisterTile<T>& g) {
      own.weights.put(i, j, g);
      if (!sums) return;
      SSLFAST_UNROLL
      for (int v = 0; v < kTileVectors; ++v) {
        T* acc = own.key_acc + j + v * kLanes<T>;
        Vec<T> total = i == 0 ? Vec<T>{} : load(acc);
        SSLFAST_UNROLL
        for (int r = 0; r < kTileRows; ++r) total += g.acc[r][v];
        store(acc, total);
      }
    });
  }
  template <class A, class F>
  void weigh_as(const Operands<T>& o, int64_t first, int64_t I, int64_t J, const A& ahead,
                const F& f) const {
    const Weights<T> w = weights_.from(first);
    if (cache_) return gradient_tile_from_cache(o, I, J, w, cache_.tile(I, J, first), f);
    p_.row_ids ? compute<true>(o, I, J, w, ahead, f) : compute<false>(o, I, J, w, ahead, f);
  }
  template <bool kIds, class A, class F>
  void compute(const Operands<T>& o, int64_t I, int64_t J, const Weights<T>& w, const A& ahead,
               const F& f) const {
    using enum Exponentials;
    switch (mode_) {
      case kRows: return gradient_tile<T, kIds, kRows>(o, I, J, w, ahead, f);
      case kShared: return gradient_tile<T, kIds, kShared>(o, I, J, w, ahead, f);
      case kSplit: return gradient_tile<T, kIds, kSplit>(o, I, J, w, ahead, f);
    }
  }

  // dscale_i = q_i . (dq_i / scale_i), taken before the scale is multiplied in; the symmetric form
  // counts every pair from both sides.
  void finish_queries() {
    double* dots = p_.workspace.template take<double>(p_.rows);
    for_each_row(p_.pool, p_.rows, [&](int64_t i) {
      T* dq = p_.dq + i * p_.features;
      const T scale = p_.scale[p_.row_scale ? i : 0];
      dots[i] = p_.dscale ? exact_dot(p_.q, i, p_.features, dq) : 0;
      for (int64_t d = 0; d < p_.features; ++d) dq[d] *= scale;
    });
    if (!p_.dscale) return;
    double total = 0;
    for (int64_t i = 0; i < p_.rows; ++i) {
      total += dots[i];
      if (p_.row_scale) p_.dscale[i] = T(dots[i]);
    }
    if (!p_.row_scale) p_.dscale[0] = T(tiling_.symmetric() ? total / 2 : total);
  }

  void scale_keys() {
    for_each_row(p_.pool, p_.keys, [&](int64_t j) {
      for (int64_t d = 0; d < p_.features; ++d) p_.dk[j * p_.features + d] *= p_.scale[0];
    });
  }

  const SimilarityBackward<T>& p_;
  Tiling<T> tiling_;
  bool columns_;
  Exponentials mode_ = Exponentials::kRows;
  Cache<const T> cache_;
  int64_t padded_keys_;
  Weights<T> weights_{};
};

}  // namespace sslfast::SSLFAST_ISA
