// CPU launcher and registration of l2_normalize.
#include "cpu/rows/l2_normalize.h"

#include <tuple>

#include "cpu/launch.h"
#include "sslfast/isa.h"

SSLFAST_DECLARE_KERNELS(NormalizeKernels, normalize_kernels)

namespace sslfast {
namespace {

void check_matrix(const Tensor& x) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double,
                  "x must be float32 or float64");
  check(x, "x", x.scalar_type());
  STD_TORCH_CHECK(x.dim() == 2, "x must be (N, D)");
}

template <class T>
void run(const Tensor& x, const T* dy, const Tensor& norm, const Tensor& out, double eps,
         void (*kernel)(const Normalize<T>&)) {
  if (x.numel() == 0) return;
  kernel({x.size(0), x.size(1), eps, torch_pool(), data<T>(x), dy,
          static_cast<T*>(norm.mutable_data_ptr()), mutable_data<T>(out)});
}

std::tuple<Tensor, Tensor> l2_normalize_cpu(Tensor x, double eps, int64_t isa) {
  check_matrix(x);
  Tensor y = empty({x.size(0), x.size(1)}, x.scalar_type());
  Tensor norm = zeros({x.size(0)}, x.scalar_type());
  const NormalizeKernels& kernels = normalize_kernels_for(int(isa));
  if (x.scalar_type() == ScalarType::Float)
    run<float>(x, nullptr, norm, y, eps, kernels.forward_float);
  else
    run<double>(x, nullptr, norm, y, eps, kernels.forward_double);
  return {y, norm};
}

Tensor l2_normalize_backward_cpu(Tensor dy, Tensor x, Tensor norm, double eps, int64_t isa) {
  check_matrix(x);
  check(dy, "dy", x.scalar_type());
  check(norm, "norm", x.scalar_type());
  STD_TORCH_CHECK(dy.numel() == x.numel() && norm.numel() == x.size(0),
                  "dy must be (N, D), norm (N)");
  Tensor dx = empty({x.size(0), x.size(1)}, x.scalar_type());
  const NormalizeKernels& kernels = normalize_kernels_for(int(isa));
  if (x.scalar_type() == ScalarType::Float)
    run<float>(x, data<float>(dy), norm, dx, eps, kernels.backward_float);
  else
    run<double>(x, data<double>(dy), norm, dx, eps, kernels.backward_double);
  return dx;
}

}  // namespace
}  // namespace sslfast

STABLE_TORCH_LIBRARY_FRAGMENT(sslfast_native, m) {
  m.def("l2_normalize_cpu(Tensor x, float eps, int isa) -> (Tensor, Tensor)");
  m.def(
      "l2_normalize_backward_cpu(Tensor dy, Tensor x, Tensor norm, float eps, int isa) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(sslfast_native, CPU, m) {
  m.impl("l2_normalize_cpu", TORCH_BOX(&sslfast::l2_normalize_cpu));
  m.impl("l2_normalize_backward_cpu", TORCH_BOX(&sslfast::l2_normalize_backward_cpu));
}
