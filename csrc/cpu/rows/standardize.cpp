// CPU launcher and registration of standardize.
#include "cpu/rows/standardize.h"

#include <optional>
#include <tuple>

#include "cpu/launch.h"
#include "sslfast/isa.h"

SSLFAST_DECLARE_KERNELS(StandardizeKernels, standardize_kernels)

namespace sslfast {
namespace {

struct Rule {
  int64_t ddof;
  double eps;
  bool eps_on_deviation, unit_variance;
};

void check_columns(const Tensor& columns, const char* name, const Tensor& x) {
  check(columns, name, x.scalar_type());
  STD_TORCH_CHECK(columns.numel() == x.size(1), name, " must be (D)");
}

void check_problem(const Tensor& x, const Rule& rule, bool given) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double,
                  "x must be float32 or float64");
  check(x, "x", x.scalar_type());
  STD_TORCH_CHECK(x.dim() == 2, "x must be (N, D)");
  STD_TORCH_CHECK(given || (rule.ddof >= 0 && x.size(0) > rule.ddof),
                  "x must have more than ddof rows");
}

// Everything but the statistics and the gradients; `scratch` lives as long as the call.
template <class T>
Standardize<T> problem(const Tensor& x, const Tensor& out, const Rule& rule, bool given,
                       TorchWorkspace& scratch) {
  const int64_t groups = standardize_groups(x.size(0), x.size(1));
  Standardize<T> p{};
  p.rows = x.size(0);
  p.features = x.size(1);
  p.ddof = rule.ddof;
  p.eps = rule.eps;
  p.eps_on_deviation = rule.eps_on_deviation;
  p.unit_variance = rule.unit_variance;
  p.given = given;
  p.pool = torch_pool();
  if (groups > 1)
    p.partial = static_cast<Workspace>(scratch).template take<double>(2 * groups * x.size(1));
  p.x = data<T>(x);
  p.out = mutable_data<T>(out);
  return p;
}

template <class T>
void forward(const Tensor& x, const Tensor& mean, const Tensor& variance, const Tensor& rest,
             const Tensor& y, const Rule& rule, bool given, void (*kernel)(const Standardize<T>&)) {
  if (x.numel() == 0) return;
  TorchWorkspace scratch;
  Standardize<T> p = problem<T>(x, y, rule, given, scratch);
  p.mean = static_cast<T*>(mean.mutable_data_ptr());
  p.variance = static_cast<T*>(variance.mutable_data_ptr());
  p.rest = mutable_data<T>(rest);
  kernel(p);
}

// y with own statistics and the rest of the mean, or with empty ones where they were given.
std::tuple<Tensor, Tensor, Tensor, Tensor> standardize_cpu(
    Tensor x, std::optional<Tensor> given_mean, std::optional<Tensor> given_variance, int64_t ddof,
    double eps, bool eps_on_deviation, bool unit_variance, int64_t isa) {
  const bool given = given_mean.has_value();
  STD_TORCH_CHECK(given == given_variance.has_value(), "mean and variance come together");
  const Rule rule{ddof, eps, eps_on_deviation, unit_variance};
  check_problem(x, rule, given);
  const ScalarType dtype = x.scalar_type();
  Tensor mean = given ? *given_mean : empty({x.size(1)}, dtype);
  Tensor variance = given ? *given_variance : empty({x.size(1)}, dtype);
  check_columns(mean, "mean", x);
  check_columns(variance, "variance", x);
  Tensor y = empty({x.size(0), x.size(1)}, dtype);
  Tensor rest = empty({given ? 0 : x.size(1)}, dtype);
  const StandardizeKernels& kernels = standardize_kernels_for(int(isa));
  if (dtype == ScalarType::Float)
    forward<float>(x, mean, variance, rest, y, rule, given, kernels.forward_float);
  else
    forward<double>(x, mean, variance, rest, y, rule, given, kernels.forward_double);
  if (given) return {y, rest, empty({0}, dtype), empty({0}, dtype)};
  return {y, mean, variance, rest};
}

struct ColumnGradients {
  Tensor dmean, dvariance;              // of own statistics
  Tensor dgiven_mean, dgiven_variance;  // of given ones
};

template <class T>
void backward(const Tensor& dy, const Tensor& x, const Tensor& mean, const Tensor& variance,
              const Tensor& rest, const ColumnGradients& columns, const Tensor& dx,
              const Rule& rule, void (*kernel)(const Standardize<T>&)) {
  if (x.numel() == 0) return;
  TorchWorkspace scratch;
  Standardize<T> p = problem<T>(x, dx, rule, rest.numel() == 0, scratch);
  p.mean = const_cast<T*>(data<T>(mean));
  p.variance = const_cast<T*>(data<T>(variance));
  p.rest = const_cast<T*>(data<T>(rest));
  p.dy = data<T>(dy);
  p.dmean = data<T>(columns.dmean);
  p.dvariance = data<T>(columns.dvariance);
  p.dgiven_mean = mutable_data<T>(columns.dgiven_mean);
  p.dgiven_variance = mutable_data<T>(columns.dgiven_variance);
  kernel(p);
}

// An empty `rest` says that mean and variance were given.
std::tuple<Tensor, Tensor, Tensor> standardize_backward_cpu(Tensor dy, Tensor dmean,
                                                            Tensor dvariance, Tensor x, Tensor mean,
                                                            Tensor variance, Tensor rest,
                                                            bool need_statistics, int64_t ddof,
                                                            double eps, bool eps_on_deviation,
                                                            bool unit_variance, int64_t isa) {
  const bool given = rest.numel() == 0;
  const Rule rule{ddof, eps, eps_on_deviation, unit_variance};
  check_problem(x, rule, given);
  const ScalarType dtype = x.scalar_type();
  check(dy, "dy", dtype);
  STD_TORCH_CHECK(dy.numel() == x.numel(), "dy must be (N, D)");
  check_columns(mean, "mean", x);
  check_columns(variance, "variance", x);
  if (!given) {
    check_columns(rest, "rest", x);
    check_columns(dmean, "dmean", x);
    check_columns(dvariance, "dvariance", x);
  }
  const int64_t learned = given && need_statistics ? x.size(1) : 0;
  const ColumnGradients columns{dmean, dvariance, zeros({learned}, dtype), zeros({learned}, dtype)};
  Tensor dx = empty({x.size(0), x.size(1)}, dtype);
  const StandardizeKernels& kernels = standardize_kernels_for(int(isa));
  if (dtype == ScalarType::Float)
    backward<float>(dy, x, mean, variance, rest, columns, dx, rule, kernels.backward_float);
  else
    backward<double>(dy, x, mean, variance, rest, columns, dx, rule, kernels.backward_double);
  return {dx, columns.dgiven_mean, columns.dgiven_variance};
}

}  // namespace
}  // namespace sslfast

STABLE_TORCH_LIBRARY_FRAGMENT(sslfast_native, m) {
  m.def(
      "standardize_cpu(Tensor x, Tensor? mean, Tensor? variance, int ddof, float eps, "
      "bool eps_on_deviation, bool unit_variance, int isa) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "standardize_backward_cpu(Tensor dy, Tensor dmean, Tensor dvariance, Tensor x, Tensor mean, "
      "Tensor variance, Tensor rest, bool need_statistics, int ddof, float eps, "
      "bool eps_on_deviation, bool unit_variance, int isa) -> (Tensor, Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(sslfast_native, CPU, m) {
  m.impl("standardize_cpu", TORCH_BOX(&sslfast::standardize_cpu));
  m.impl("standardize_backward_cpu", TORCH_BOX(&sslfast::standardize_backward_cpu));
}
