// CPU launcher and registration of the relaxed sorting networks: one op for both primitives.
#include "cpu/sorting/network.h"

#include <optional>
#include <tuple>
#include <vector>

#include "cpu/launch.h"
#include "sslfast/isa.h"

SSLFAST_DECLARE_KERNELS(SortingKernels, sorting_kernels)

namespace sslfast {
namespace {

struct Wants {
  bool ordered, masses, cross_entropy, dvalues;
};
using Results = std::tuple<Tensor, Tensor, Tensor, Tensor>;

template <class T>
const T* optional_data(const std::optional<Tensor>& t, const char* name, const Tensor& values,
                       int64_t numel) {
  if (!t) return nullptr;
  check(*t, name, values.scalar_type());
  STD_TORCH_CHECK(t->numel() == numel, name, " has ", t->numel(), " numbers instead of ", numel);
  return data<T>(*t);
}

template <class T>
void sort(SortingProblem<T>& p, const Tensor& values, const std::optional<Tensor>& teacher,
          const std::optional<Tensor>& dordered, const std::optional<Tensor>& dmasses,
          const Results& results, void (*kernel)(const SortingProblem<T>&)) {
  TorchWorkspace scratch;
  p.pool = torch_pool();
  p.workspace = scratch;
  p.values = data<T>(values);
  p.teacher = optional_data<T>(teacher, "teacher", values, values.numel());
  p.dordered = optional_data<T>(dordered, "dordered", values, values.numel());
  p.dmasses = optional_data<T>(dmasses, "dmasses", values, values.numel() * p.groups);
  p.ordered = mutable_data<T>(std::get<0>(results));
  p.masses = mutable_data<T>(std::get<1>(results));
  p.cross_entropy = mutable_data<T>(std::get<2>(results));
  p.dvalues = mutable_data<T>(std::get<3>(results));
  if (p.lists) kernel(p);
}

template <class T>
SortingProblem<T> problem(const Tensor& values, const Tensor& pairs,
                          const std::vector<int64_t>& bounds, double steepness,
                          double teacher_steepness, double art_lambda) {
  SortingProblem<T> p{};
  p.lists = values.size(0);
  p.length = int(values.size(1));
  p.swaps = int(pairs.size(0));
  p.groups = bounds.empty() ? 0 : int(bounds.size()) - 1;
  p.pairs = data<int>(pairs);
  p.bounds = bounds.data();
  p.steepness = steepness;
  p.teacher_steepness = teacher_steepness;
  p.art_lambda = art_lambda;
  return p;
}

// The table is read without further checks: a wire must be one of the list's.
void check_table(const Tensor& pairs, int64_t length) {
  check(pairs, "pairs", ScalarType::Int);
  STD_TORCH_CHECK(pairs.dim() == 2 && pairs.size(1) == 2, "pairs must be (S, 2)");
  const int* wires = data<int>(pairs);
  for (int64_t n = 0; n < pairs.numel(); ++n)
    STD_TORCH_CHECK(wires[n] >= 0 && wires[n] < length, "pairs must hold wires below n");
}

Results sorting_network_cpu(Tensor values, std::optional<Tensor> teacher,
                            std::optional<Tensor> dordered, std::optional<Tensor> dmasses,
                            Tensor pairs, std::vector<int64_t> bounds, int64_t relaxation,
                            double steepness, double teacher_steepness, double art_lambda,
                            bool ordered, bool masses, bool cross_entropy, bool dvalues,
                            int64_t isa) {
  const ScalarType dtype = values.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                  "values must be float32 or float64");
  check(values, "values", dtype);
  STD_TORCH_CHECK(values.dim() == 2, "values must be (B, n)");
  STD_TORCH_CHECK(relaxation >= 0 && relaxation < 6, "relaxation must be one of six");
  const int64_t lists = values.size(0), length = values.size(1);
  const int64_t groups = bounds.empty() ? 0 : int64_t(bounds.size()) - 1;
  check_table(pairs, length);
  const Results results{ordered ? empty({lists, length}, dtype) : empty({0}, dtype),
                        masses ? empty({lists, length, groups}, dtype) : empty({0}, dtype),
                        cross_entropy ? empty({lists}, dtype) : empty({0}, dtype),
                        dvalues ? empty({lists, length}, dtype) : empty({0}, dtype)};
  const SortingKernels& kernels = sorting_kernels_for(int(isa));
  if (dtype == ScalarType::Float) {
    auto p = problem<float>(values, pairs, bounds, steepness, teacher_steepness, art_lambda);
    sort(p, values, teacher, dordered, dmasses, results, kernels.sort_float[relaxation]);
  } else {
    auto p = problem<double>(values, pairs, bounds, steepness, teacher_steepness, art_lambda);
    sort(p, values, teacher, dordered, dmasses, results, kernels.sort_double[relaxation]);
  }
  return results;
}

}  // namespace
}  // namespace sslfast

STABLE_TORCH_LIBRARY_FRAGMENT(sslfast_native, m) {
  m.def(
      "sorting_network_cpu(Tensor values, Tensor? teacher, Tensor? dordered, Tensor? dmasses, "
      "Tensor pairs, int[] bounds, int relaxation, float steepness, float teacher_steepness, "
      "float art_lambda, bool ordered, bool masses, bool cross_entropy, bool dvalues, int isa)"
      " -> (Tensor, Tensor, Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(sslfast_native, CPU, m) {
  m.impl("sorting_network_cpu", TORCH_BOX(&sslfast::sorting_network_cpu));
}
