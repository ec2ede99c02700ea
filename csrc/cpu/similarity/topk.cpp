// CPU launcher and registration of similarity_topk.
#include "cpu/similarity/topk.h"

#include <tuple>

#include "cpu/similarity/launch.h"
#include "sslfast/isa.h"

SSLFAST_DECLARE_KERNELS(TopkKernels, topk_kernels)
SSLFAST_DECLARE_MATRIX_KERNELS(TopkKernels, topk_kernels)

namespace sslfast {
namespace {

template <class T>
std::tuple<Tensor, Tensor> topk(const Tensor& queries, const MaybeTensor& keys,
                                const MaybeTensor& query_ids, const MaybeTensor& key_ids, int64_t k,
                                int64_t float_terms, int64_t isa,
                                bool (*TopkKernels::*kernel)(const TopkProblem<T>&)) {
  Tensor values = empty({queries.size(0), k}, kDtype<T>);
  Tensor indices = empty({queries.size(0), k}, ScalarType::Long);
  const Ids<typename IdOf<T>::type> ids(query_ids, key_ids);
  TorchWorkspace workspace;
  TopkProblem<T> p;
  fill_rows(p, queries, keys, ids, int(float_terms), workspace);
  p.k = k;
  p.values = mutable_data<T>(values);
  p.indices = mutable_data<int64_t>(indices);
  run_kernel(isa, p.q.element, p.float_terms, topk_kernels_by_matrix(int(isa)),
             topk_kernels_for(int(isa)), kernel, p);
  return {values, indices};
}

std::tuple<Tensor, Tensor> similarity_topk_cpu(Tensor queries, MaybeTensor keys,
                                               MaybeTensor query_ids, MaybeTensor key_ids,
                                               int64_t k, int64_t float_terms, int64_t isa) {
  const ScalarType dtype = check_rows(queries, keys, query_ids, key_ids);
  STD_TORCH_CHECK(k > 0 && k <= (keys ? *keys : queries).size(0), "k must be 1 to M");
  return dtype == ScalarType::Float ? topk<float>(queries, keys, query_ids, key_ids, k, float_terms,
                                                  isa, &TopkKernels::topk_float)
                                    : topk<double>(queries, keys, query_ids, key_ids, k,
                                                   float_terms, isa, &TopkKernels::topk_double);
}

}  // namespace
}  // namespace sslfast

STABLE_TORCH_LIBRARY_FRAGMENT(sslfast_native, m) {
  m.def(
      "similarity_topk_cpu(Tensor queries, Tensor? keys, Tensor? query_ids, Tensor? key_ids, "
      "int k, int float_terms, int isa) -> (Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(sslfast_native, CPU, m) {
  m.impl("similarity_topk_cpu", TORCH_BOX(&sslfast::similarity_topk_cpu));
}
