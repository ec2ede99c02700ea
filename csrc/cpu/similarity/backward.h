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

template <class T, bool kIds, Exponentials kMode>
void gradient_tile(const Operands<T>& o, int64_t I, int64_t J, const Weights<T>& w, T* g) {
  const int64_t i0 = o.row_blocks.first(I), j0 = o.key_blocks.first(J);
  const int64_t stride = o.key_blocks.size;
  for_each_register_tile(o, I, J, [&](int64_t i, int64_t j, const RegisterTile<T>& s) {
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
        store(g + (i + r) * stride + j + v * kLanes<T>, y);
      }
    }
  });
}

// The same from cached exponentials; exclusion is in them already.
template <class T>
void gradient_tile_from_cache(const Operands<T>& o, int64_t I, int64_t J, const Weights<T>& w,
                              const T* e, T* g) {
  const int64_t i0 = o.row_blocks.first(I), j0 = o.key_blocks.first(J);
  const int64_t stride = o.key_blocks.size, keys = o.key_blocks.width(J, o.keys);
  for (int64_t i = 0; i < o.row_blocks.width(I, o.rows); ++i)
    for (int64_t j = 0; j < keys; j += kLanes<T>)
      store(g + i * stride + j, load(e + i * stride + j) * (load(w.key + j0 + j) + w.row[i0 + i]));
}

// Where only queries and scales learn, from the forward pass's mean m_i of the keys:
//   dq_i = drow_i scale_i m_i,   dscale_i = drow_i <q_i, m_i>.
template <class T>
void gradient_from_means(const SimilarityBackward<T>& p) {
  double* dots = p.workspace.template take<double>(p.rows);
  for_each_row(p.pool, p.rows, [&](int64_t i) {
    const T *q = p.q + i * p.features, *mean = p.mean_keys + i * p.features;
    T* dq = p.dq + i * p.features;
    const T weight = p.drows[i] * p.scale[p.row_scale ? i : 0];
    for (int64_t d = 0; d < p.features; ++d) dq[d] = weight * mean[d];
    double dot = 0;
    if (p.dscale)
      for (int64_t d = 0; d < p.features; ++d) dot += double(q[d]) * mean[d];
    dots[i] = dot * p.drows[i];
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
    // dk is a product with the queries, each times its own scale, or all times the common one at
    // the end.
    q_ = {p.q, p.row_scale ? p.scale : nullptr};
    k_ = {p.k, nullptr};
  }

  void run() {
    const ScratchPool<T> scratch(p_, tiling_.all(), true);
    for (int64_t first = 0; first < p_.keys; first += tiling_.strip_keys()) {
      const Operands<T> o = tiling_.strip(first);
      const auto gradient = [&](int worker, int64_t I, int64_t J) {
        const Scratch<T> own = scratch.of(worker);
        if (cache_)
          gradient_tile_from_cache(o, I, J, weights_.from(first), cache_.tile(I, J, first),
                                   own.tile);
        else
          compute(o, first, I, J, own.tile);
        return own;
      };
      const auto pair = [&](int worker, int64_t I, int64_t J) {
        const Scratch<T> g = gradient(worker, I, J);
        if (p_.dq) add_queries(o, first, I, J, g);
        if (p_.dk) add_keys(o, first, I, J, g);
        if (p_.dbias) add_bias(o, first, I, J, g.tile);
      };
      if (tiling_.symmetric())
        visit_symmetric(p_.pool, p_.workspace, o.row_blocks.count,
                        [&](int worker, int64_t I, int64_t J) {
                          add_symmetric(o, I, J, gradient(worker, I, J));
                        });
      else if (p_.dk || p_.dbias)
        visit_two_way(p_.pool, p_.workspace, o.row_blocks.count, o.key_blocks.count, pair);
      else
        visit_rows(p_.pool, o.row_blocks.count, o.key_blocks.count, pair);
    }
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

  void compute(const Operands<T>& o, int64_t first, int64_t I, int64_t J, T* g) const {
    p_.row_ids ? compute_as<true>(o, first, I, J, g) : compute_as<false>(o, first, I, J, g);
  }
  template <bool kIds>
  void compute_as(const Operands<T>& o, int64_t first, int64_t I, int64_t J, T* g) const {
    const Weights<T> w = weights_.from(first);
    switch (mode_) {
      case Exponentials::kRows: return gradient_tile<T, kIds, Exponentials::kRows>(o, I, J, w, g);
      case Exponentials::kShared:
        return gradient_tile<T, kIds, Exponentials::kShared>(o, I, J, w, g);
      case Exponentials::kSplit: return gradient_tile<T, kIds, Exponentials::kSplit>(o, I, J, w, g);
    }
  }

  // dq_I += G k_J, without the scale.
  void add_queries(const Operands<T>& o, int64_t first, int64_t I, int64_t J,
                   const Scratch<T>& g) const {
    add_product(g.tile, o.key_blocks.size, 1, o.row_blocks.width(I, o.rows),
                o.key_blocks.width(J, o.keys), k_.from(first + o.key_blocks.first(J), o.features),
                o.features, g.panel, p_.dq + o.row_blocks.first(I) * o.features);
  }

  // dk_J += G^T q_I, without a common scale.
  void add_keys(const Operands<T>& o, int64_t first, int64_t I, int64_t J,
                const Scratch<T>& g) const {
    add_product(g.tile, 1, o.key_blocks.size, o.key_blocks.width(J, o.keys),
                o.row_blocks.width(I, o.rows), q_.from(o.row_blocks.first(I), o.features),
                o.features, g.panel, p_.dk + (first + o.key_blocks.first(J)) * o.features);
  }

  void add_symmetric(const Operands<T>& o, int64_t I, int64_t J, const Scratch<T>& g) const {
    const int64_t i0 = o.row_blocks.first(I), j0 = o.row_blocks.first(J);
    const int64_t rows = o.row_blocks.width(I, o.rows), keys = o.row_blocks.width(J, o.rows);
    add_product(g.tile, o.key_blocks.size, 1, rows, keys, q_.from(j0, o.features), o.features,
                g.panel, p_.dq + i0 * o.features);
    if (I != J)
      add_product(g.tile, 1, o.key_blocks.size, keys, rows, q_.from(i0, o.features), o.features,
                  g.panel, p_.dq + j0 * o.features);
  }

  void add_bias(const Operands<T>& o, int64_t first, int64_t I, int64_t J, const T* g) const {
    T* to = p_.dbias + first + o.key_blocks.first(J);
    for (int64_t i = 0; i < o.row_blocks.width(I, o.rows); ++i)
      for (int64_t j = 0; j < o.key_blocks.width(J, o.keys); ++j)
        to[j] += g[i * o.key_blocks.size + j];
  }

  // dscale_i = q_i . (dq_i / scale_i), taken before the scale is multiplied in; the symmetric form
  // counts every pair from both sides.
  void finish_queries() {
    double* dots = p_.workspace.template take<double>(p_.rows);
    for_each_row(p_.pool, p_.rows, [&](int64_t i) {
      const T* q = p_.q + i * p_.features;
      T* dq = p_.dq + i * p_.features;
      const T scale = p_.scale[p_.row_scale ? i : 0];
      double dot = 0;
      if (p_.dscale)
        for (int64_t d = 0; d < p_.features; ++d) dot += double(q[d]) * dq[d];
      dots[i] = dot;
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
  WeightedRows<T> q_{}, k_{};
};

}  // namespace sslfast::SSLFAST_ISA
