// CPU launcher and registration of cross_frobenius.
#include "cpu/correlation/frobenius.h"

#include <tuple>

#include "cpu/launch.h"
#include "sslfast/isa.h"

SSLFAST_DECLARE_KERNELS(FrobeniusKernels, frobenius_kernels)
SSLFAST_DECLARE_MATRIX_KERNELS(FrobeniusKernels, frobenius_kernels)

namespace sslfast {
namespace {

using MaybeTensor = std::optional<Tensor>;

struct Arguments {
  const Tensor& a;
  const MaybeTensor& b;
  const MaybeTensor& a_columns;
  const MaybeTensor& b_columns;
  bool split_diagonal, gram;
  int64_t float_terms, isa;

  int64_t others() const { return b ? b->size(1) : a.size(1); }

  void check_all() const {
    element_of(a, "a");
    check(a, "a", a.scalar_type());
    const ScalarType dtype = accumulator(a);
    STD_TORCH_CHECK(float_terms >= 1 && float_terms <= 3, "float_terms must be 1, 2 or 3");
    STD_TORCH_CHECK(a.dim() == 2 && a.numel() > 0, "a must be (N, D), not empty");
    if (a_columns) {
      check(*a_columns, "a_columns", dtype);
      STD_TORCH_CHECK(a_columns->numel() == 3 * a.size(1), "a_columns must be (3, D)");
    }
    STD_TORCH_CHECK(b_columns.has_value() == (b.has_value() && a_columns.has_value()),
                    "b_columns go with a_columns and b");
    if (!b) return;
    if (b_columns) {
      check(*b_columns, "b_columns", dtype);
      STD_TORCH_CHECK(b_columns->numel() == 3 * b->size(1), "b_columns must be (3, E)");
    }
    check(*b, "b", a.scalar_type());
    STD_TORCH_CHECK(b->dim() == 2 && b->size(0) == a.size(0) && b->numel() > 0, "b must be (N, E)");
    STD_TORCH_CHECK(!split_diagonal || b->size(1) == a.size(1), "b must be (N, D)");
  }

  // Elements of the products that the backward pass takes over.
  int64_t product_elements() const {
    return gram ? a.size(0) * a.size(0) * (b ? 2 : 1) : a.size(1) * others();
  }

  template <class T>
  void fill(FrobeniusProblem<T>& p, int64_t strip_elements, TorchWorkspace& workspace) const {
    p.rows = a.size(0);
    p.features = a.size(1);
    p.others = others();
    p.a = source_of(a, "a");
    if (b) p.b = source_of(*b, "b");
    p.float_terms = int(float_terms);
    p.a_columns = a_columns ? data<T>(*a_columns) : nullptr;
    p.b_columns = b_columns ? data<T>(*b_columns) : nullptr;
    p.split_diagonal = split_diagonal;
    p.gram = gram;
    p.strip_elements = strip_elements;
    p.pool = torch_pool();
    p.workspace = workspace;
  }

  template <class P>
  void run(bool (*FrobeniusKernels::*kernel)(const P&), const P& p) const {
    run_kernel(isa, p.a.element, p.float_terms, frobenius_kernels_by_matrix(int(isa)),
               frobenius_kernels_for(int(isa)), kernel, p);
  }
};

template <class T>
std::tuple<Tensor, Tensor, Tensor> forward(
    const Arguments& args, int64_t cache_elements, int64_t strip_elements,
    bool (*FrobeniusKernels::*kernel)(const FrobeniusForward<T>&)) {
  Tensor total = empty({}, kDtype<T>);
  Tensor diagonal = empty({args.split_diagonal ? args.a.size(1) : 0}, kDtype<T>);
  Tensor cache = empty({cache_elements}, kDtype<T>);
  TorchWorkspace workspace;
  FrobeniusForward<T> p;
  args.fill(p, strip_elements, workspace);
  p.total = mutable_data<T>(total);
  p.diagonal = mutable_data<T>(diagonal);
  p.cache = mutable_data<T>(cache);
  args.run(kernel, p);
  return {total, diagonal, cache};
}

template <class T>
std::tuple<Tensor, Tensor> backward(
    const Arguments& args, double dtotal, const Tensor& ddiagonal, const Tensor& diagonal,
    const Tensor& cache, bool need_a, bool need_b, int64_t strip_elements,
    bool (*FrobeniusKernels::*kernel)(const FrobeniusBackward<T>&)) {
  const auto gradient = [&](bool wanted, int64_t features) {
    Tensor t = wanted ? empty({args.a.size(0), features}, kDtype<T>) : empty({0}, kDtype<T>);
    return t;
  };
  Tensor da = gradient(need_a, args.a.size(1));
  Tensor db = gradient(need_b && args.b, args.others());
  TorchWorkspace workspace;
  FrobeniusBackward<T> p;
  args.fill(p, strip_elements, workspace);
  p.dtotal = T(dtotal);
  p.ddiagonal = args.split_diagonal ? data<T>(ddiagonal) : nullptr;
  p.diagonal = args.split_diagonal ? data<T>(diagonal) : nullptr;
  p.cache = cache.numel() ? data<T>(cache) : nullptr;
  p.da = mutable_data<T>(da);
  p.db = mutable_data<T>(db);
  if (p.da || p.db) args.run(kernel, p);
  return {da, db};
}

std::tuple<Tensor, Tensor, Tensor> cross_frobenius_cpu(
    Tensor a, MaybeTensor b, MaybeTensor a_columns, MaybeTensor b_columns, bool split_diagonal,
    bool gram, int64_t cache_elements, int64_t strip_elements, int64_t float_terms, int64_t isa) {
  const Arguments args{a, b, a_columns, b_columns, split_diagonal, gram, float_terms, isa};
  args.check_all();
  STD_TORCH_CHECK(cache_elements == 0 || cache_elements >= args.product_elements(),
                  "cache_elements must be 0 or hold the products");
  using Kernels = FrobeniusKernels;
  return accumulator(a) == ScalarType::Float
             ? forward<float>(args, cache_elements, strip_elements, &Kernels::forward_float)
             : forward<double>(args, cache_elements, strip_elements, &Kernels::forward_double);
}

std::tuple<Tensor, Tensor> cross_frobenius_backward_cpu(
    double dtotal, Tensor ddiagonal, Tensor a, MaybeTensor b, MaybeTensor a_columns,
    MaybeTensor b_columns, bool split_diagonal, bool gram, Tensor diagonal, Tensor cache,
    bool need_a, bool need_b, int64_t strip_elements, int64_t float_terms, int64_t isa) {
  const Arguments args{a, b, a_columns, b_columns, split_diagonal, gram, float_terms, isa};
  args.check_all();
  const ScalarType dtype = accumulator(a);
  check(cache, "cache", dtype);
  STD_TORCH_CHECK(cache.numel() == 0 || cache.numel() >= args.product_elements(),
                  "cache must be empty or hold the products");
  if (split_diagonal) {
    check(ddiagonal, "ddiagonal", dtype);
    check(diagonal, "diagonal", dtype);
    STD_TORCH_CHECK(ddiagonal.numel() == a.size(1) && diagonal.numel() == a.size(1),
                    "ddiagonal and diagonal must be (D)");
  }
  using Kernels = FrobeniusKernels;
  return dtype == ScalarType::Float
             ? backward<float>(args, dtotal, ddiagonal, diagonal, cache, need_a, need_b,
                               strip_elements, &Kernels::backward_float)
             : backward<double>(args, dtotal, ddiagonal, diagonal, cache, need_a, need_b,
                                strip_elements, &Kernels::backward_double);
}

}  // namespace
}  // namespace sslfast

STABLE_TORCH_LIBRARY_FRAGMENT(sslfast_native, m) {
  m.def(
      "cross_frobenius_cpu(Tensor a, Tensor? b, Tensor? a_columns, Tensor? b_columns, "
      "bool split_diagonal, bool gram, "
      "int cache_elements, int strip_elements, int float_terms, int isa) -> (Tensor, Tensor, "
      "Tensor)");
  m.def(
      "cross_frobenius_backward_cpu(float dtotal, Tensor ddiagonal, Tensor a, Tensor? b, "
      "Tensor? a_columns, Tensor? b_columns, "
      "bool split_diagonal, bool gram, Tensor diagonal, Tensor cache, bool need_a, bool need_b, "
      "int strip_elements, int float_terms, int isa) -> (Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(sslfast_native, CPU, m) {
  m.impl("cross_frobenius_cpu", TORCH_BOX(&sslfast::cross_frobenius_cpu));
  m.impl("cross_frobenius_backward_cpu", TORCH_BOX(&sslfast::cross_frobenius_backward_cpu));
}
