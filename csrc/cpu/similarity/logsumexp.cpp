// CPU launcher and registration of similarity_logsumexp.
#include "cpu/similarity/logsumexp.h"

#include <tuple>

#include "cpu/similarity/keep.h"
#include "cpu/similarity/launch.h"
#include "sslfast/isa.h"

SSLFAST_DECLARE_KERNELS(SimilarityKernels, similarity_kernels)
SSLFAST_DECLARE_MATRIX_KERNELS(SimilarityKernels, similarity_kernels)

namespace sslfast {
namespace {

struct Arguments {
  const Tensor& queries;
  const MaybeTensor& keys;
  const Tensor& scale;
  const MaybeTensor& bias;
  const MaybeTensor& query_ids;
  const MaybeTensor& key_ids;
  bool columns;
  int64_t float_terms, isa;

  int64_t n() const { return queries.size(0); }
  int64_t m() const { return keys ? keys->size(0) : queries.size(0); }

  void check_all() const {
    const ScalarType dtype = check_rows(queries, keys, query_ids, key_ids);
    check(scale, "scale", dtype);
    STD_TORCH_CHECK(scale.numel() == 1 || (keys && !columns && scale.numel() == n()),
                    "scale must have 1 element, or N in the rows-only rectangular form");
    STD_TORCH_CHECK(!columns || (keys && !bias), "columns need keys and no bias");
    if (bias) {
      check(*bias, "bias", dtype);
      STD_TORCH_CHECK(keys && bias->numel() == m(), "bias must be (M), with keys");
    }
  }

  template <class T>
  void fill(SimilarityProblem<T>& p, const Ids<typename IdOf<T>::type>& ids,
            TorchWorkspace& workspace) const {
    fill_rows(p, queries, keys, ids, int(float_terms), workspace);
    p.scale = data<T>(scale);
    p.row_scale = scale.numel() > 1;
    p.bias = bias ? data<T>(*bias) : nullptr;
    p.columns = columns;
  }

  template <class P>
  void run(bool (*SimilarityKernels::*kernel)(const P&), const P& p) const {
    run_kernel(isa, p.q.element, p.float_terms, similarity_kernels_by_matrix(int(isa)),
               similarity_kernels_for(int(isa)), kernel, p);
  }
};

Keep keep_of(int64_t keep) {
  STD_TORCH_CHECK(keep >= 0 && keep <= int64_t(Keep::kExponentials), "keep is none of Keep");
  return Keep(keep);
}

// The cache tensor: room for two numbers of each sum, of which the residual is used; then either
// the exponentials or the means of the keys, each only where there is room for it.
template <class T>
struct CacheLayout {
  T *row_residual = nullptr, *col_residual = nullptr, *exponentials = nullptr, *means = nullptr;
  T* means_valid = nullptr;
  int64_t exponential_elements = 0;

  CacheLayout(T* memory, int64_t elements, Keep keep, const Arguments& a) {
    const int64_t sums = a.n() + (a.columns ? a.m() : 0);
    const int64_t residuals = (2 * sums + kCacheHeader - 1) / kCacheHeader * kCacheHeader;
    if (elements < residuals) return;
    row_residual = memory;
    if (a.columns) col_residual = memory + a.n();
    const int64_t rest = elements - residuals;
    if (keep == Keep::kMeanKeys) {
      if (rest < kCacheHeader + a.queries.numel()) return;
      means_valid = memory + residuals;
      means = means_valid + kCacheHeader;
    } else if (keep == Keep::kExponentials) {
      exponentials = memory + residuals;
      exponential_elements = rest;
    }
  }
};

template <class T>
std::tuple<Tensor, Tensor, Tensor> forward(
    const Arguments& a, int64_t cache_elements, Keep keep,
    bool (*SimilarityKernels::*kernel)(const SimilarityForward<T>&)) {
  Tensor rows = empty({a.n()}, kDtype<T>), cols = empty({a.columns ? a.m() : 0}, kDtype<T>);
  // The means are added up in place.
  Tensor cache = keep == Keep::kMeanKeys ? zeros({cache_elements}, kDtype<T>)
                                         : empty({cache_elements}, kDtype<T>);
  const Ids<typename IdOf<T>::type> ids(a.query_ids, a.key_ids);
  TorchWorkspace workspace;
  SimilarityForward<T> p;
  a.fill(p, ids, workspace);
  p.row_lse = mutable_data<T>(rows);
  p.col_lse = mutable_data<T>(cols);
  const CacheLayout<T> layout(mutable_data<T>(cache), cache_elements, keep, a);
  p.row_residual = layout.row_residual;
  p.col_residual = layout.col_residual;
  p.cache = layout.exponentials;
  p.cache_elements = layout.exponential_elements;
  p.mean_keys = {layout.means, layout.means_valid};
  a.run(kernel, p);
  return {rows, cols, cache};
}

struct Gradients {
  bool queries, keys, scale, bias;
};

template <class T>
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
    const Arguments& a, const Tensor& drows, const Tensor& dcols, const Tensor& rows,
    const Tensor& cols, const Tensor& cache, Keep keep, Gradients need,
    bool (*SimilarityKernels::*kernel)(const SimilarityBackward<T>&)) {
  const int64_t d = a.queries.size(1);
  // The gradient of the scale is read off that of the queries; in the symmetric form the queries
  // are the keys.
  const bool with_dq = need.queries || need.scale, with_dk = a.keys && need.keys;
  // Each output has storage of its own: outputs of an op may not alias.
  const auto gradient = [&](bool wanted, int64_t rows) {
    return wanted ? zeros({rows, d}, kDtype<T>) : empty({0}, kDtype<T>);
  };
  Tensor dq = gradient(with_dq, a.n()), dk = gradient(with_dk, a.m());
  Tensor dscale = zeros({need.scale ? a.scale.numel() : 0}, kDtype<T>);
  Tensor dbias = zeros({a.bias && need.bias ? a.m() : 0}, kDtype<T>);
  const Ids<typename IdOf<T>::type> ids(a.query_ids, a.key_ids);
  TorchWorkspace workspace;
  SimilarityBackward<T> p;
  a.fill(p, ids, workspace);
  p.drows = data<T>(drows);
  p.dcols = a.columns ? data<T>(dcols) : nullptr;
  p.row_lse = data<T>(rows);
  p.col_lse = a.columns ? data<T>(cols) : nullptr;
  const CacheLayout<const T> layout(cache.numel() ? data<T>(cache) : nullptr, cache.numel(), keep,
                                    a);
  p.row_residual = layout.row_residual;
  p.col_residual = layout.col_residual;
  p.cache = layout.exponentials;
  p.cache_elements = layout.exponential_elements;
  p.mean_keys = layout.means && *layout.means_valid == T(1) ? layout.means : nullptr;
  p.dq = mutable_data<T>(dq);
  p.dk = mutable_data<T>(dk);
  p.dscale = mutable_data<T>(dscale);
  p.dbias = mutable_data<T>(dbias);
  if (p.dq || p.dk || p.dbias) a.run(kernel, p);
  return {need.queries ? dq : empty({0}, kDtype<T>), dk, dscale, dbias};
}

std::tuple<Tensor, Tensor, Tensor> similarity_logsumexp_cpu(Tensor queries, MaybeTensor keys,
                                                            Tensor scale, MaybeTensor bias,
                                                            MaybeTensor query_ids,
                                                            MaybeTensor key_ids, bool columns,
                                                            int64_t keep, int64_t cache_elements,
                                                            int64_t float_terms, int64_t isa) {
  const Arguments a{queries, keys, scale, bias, query_ids, key_ids, columns, float_terms, isa};
  a.check_all();
  STD_TORCH_CHECK(cache_elements >= 0, "cache_elements must not be negative");
  const Keep kept = keep_of(keep);
  STD_TORCH_CHECK(kept != Keep::kMeanKeys || (keys && !columns),
                  "the means need keys and no columns");
  using Kernels = SimilarityKernels;
  return accumulator(queries) == ScalarType::Float
             ? forward<float>(a, cache_elements, kept, &Kernels::forward_float)
             : forward<double>(a, cache_elements, kept, &Kernels::forward_double);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> similarity_logsumexp_backward_cpu(
    Tensor drows, Tensor dcols, Tensor queries, MaybeTensor keys, Tensor scale, MaybeTensor bias,
    MaybeTensor query_ids, MaybeTensor key_ids, bool columns, Tensor rows, Tensor cols,
    Tensor cache, int64_t keep, bool need_queries, bool need_keys, bool need_scale, bool need_bias,
    int64_t float_terms, int64_t isa) {
  const Arguments a{queries, keys, scale, bias, query_ids, key_ids, columns, float_terms, isa};
  a.check_all();
  const ScalarType dtype = accumulator(queries);
  check(drows, "drows", dtype);
  check(rows, "rows", dtype);
  check(cache, "cache", dtype);
  STD_TORCH_CHECK(drows.numel() == a.n() && rows.numel() == a.n(), "drows and rows must be (N)");
  if (columns) {
    check(dcols, "dcols", dtype);
    check(cols, "cols", dtype);
    STD_TORCH_CHECK(dcols.numel() == a.m() && cols.numel() == a.m(), "dcols and cols must be (M)");
  }
  using Kernels = SimilarityKernels;
  const Keep kept = keep_of(keep);
  const Gradients need{need_queries, need_keys, need_scale, need_bias};
  return dtype == ScalarType::Float ? backward<float>(a, drows, dcols, rows, cols, cache, kept,
                                                      need, &Kernels::backward_float)
                                    : backward<double>(a, drows, dcols, rows, cols, cache, kept,
                                                       need, &Kernels::backward_double);
}

}  // namespace
}  // namespace sslfast

STABLE_TORCH_LIBRARY_FRAGMENT(sslfast_native, m) {
  m.def(
      "similarity_logsumexp_cpu(Tensor queries, Tensor? keys, Tensor scale, Tensor? bias, "
      "Tensor? query_ids, Tensor? key_ids, bool columns, int keep, int cache_elements, "
      "int float_terms, int isa) "
      "-> (Tensor, Tensor, Tensor)");
  m.def(
      "similarity_logsumexp_backward_cpu(Tensor drows, Tensor dcols, Tensor queries, Tensor? keys, "
      "Tensor scale, Tensor? bias, Tensor? query_ids, Tensor? key_ids, bool columns, Tensor rows, "
      "Tensor cols, Tensor cache, int keep, bool need_queries, bool need_keys, "
      "bool need_scale, bool need_bias, int float_terms, int isa) -> (Tensor, Tensor, Tensor, "
      "Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(sslfast_native, CPU, m) {
  m.impl("similarity_logsumexp_cpu", TORCH_BOX(&sslfast::similarity_logsumexp_cpu));
  m.impl("similarity_logsumexp_backward_cpu",
         TORCH_BOX(&sslfast::similarity_logsumexp_backward_cpu));
}
