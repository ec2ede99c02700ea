// CPU launcher and registration of isotonic_rank.
#include "cpu/sorting/isotonic.h"

#include <tuple>

#include "cpu/launch.h"
#include "sslfast/isa.h"

SSLFAST_DECLARE_KERNELS(IsotonicKernels, isotonic_kernels)

namespace sslfast {
namespace {

struct Rule {
  bool sort, kl;
  double strength;
};

void check_lists(const Tensor& x, const Tensor& order) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double,
                  "x must be float32 or float64");
  check(x, "x", x.scalar_type());
  STD_TORCH_CHECK(x.dim() == 2 && x.size(1) > 0 && x.size(1) < INT32_MAX, "x must be (B, n)");
  check(order, "order", ScalarType::Long);
  STD_TORCH_CHECK(order.numel() == x.numel(), "order must be (B, n)");
}

template <class T>
IsotonicRank<T> problem(const Tensor& x, const Tensor& order, const Tensor& out,
                        const Tensor& blocks, const Rule& rule) {
  IsotonicRank<T> p{};
  p.rows = x.size(0);
  p.length = x.size(1);
  p.strength = rule.strength;
  p.sort = rule.sort;
  p.kl = rule.kl;
  p.pool = torch_pool();
  p.x = data<T>(x);
  p.order = data<int64_t>(order);
  p.out = mutable_data<T>(out);
  p.blocks = static_cast<int32_t*>(blocks.mutable_data_ptr());
  return p;
}

template <class T>
void forward(const Tensor& x, const Tensor& order, const Tensor& out, const Tensor& blocks,
             const Rule& rule, void (*kernel)(const IsotonicRank<T>&)) {
  if (x.numel() == 0) return;
  TorchWorkspace scratch;
  IsotonicRank<T> p = problem<T>(x, order, out, blocks, rule);
  p.states = static_cast<Workspace>(scratch).template take<double>(int64_t(p.pool.workers) *
                                                                   p.length * kIsotonicState);
  kernel(p);
}

// The result, and the first position of the block of each position.
std::tuple<Tensor, Tensor> isotonic_rank_cpu(Tensor ascending, Tensor order, bool sort, bool kl,
                                             double strength, int64_t isa) {
  check_lists(ascending, order);
  const Rule rule{sort, kl, strength};
  const ScalarType dtype = ascending.scalar_type();
  Tensor out = empty({ascending.size(0), ascending.size(1)}, dtype);
  Tensor blocks = empty({ascending.size(0), ascending.size(1)}, ScalarType::Int);
  const IsotonicKernels& kernels = isotonic_kernels_for(int(isa));
  if (dtype == ScalarType::Float)
    forward<float>(ascending, order, out, blocks, rule, kernels.forward_float);
  else
    forward<double>(ascending, order, out, blocks, rule, kernels.forward_double);
  return {out, blocks};
}

template <class T>
void backward(const Tensor& dout, const Tensor& x, const Tensor& order, const Tensor& blocks,
              const Tensor& dx, const Rule& rule, void (*kernel)(const IsotonicRank<T>&)) {
  if (x.numel() == 0) return;
  IsotonicRank<T> p = problem<T>(x, order, dx, blocks, rule);
  p.dout = data<T>(dout);
  kernel(p);
}

Tensor isotonic_rank_backward_cpu(Tensor dout, Tensor x, Tensor order, Tensor blocks, bool sort,
                                  bool kl, double strength, int64_t isa) {
  check_lists(x, order);
  check(dout, "dout", x.scalar_type());
  check(blocks, "blocks", ScalarType::Int);
  STD_TORCH_CHECK(dout.numel() == x.numel() && blocks.numel() == x.numel(),
                  "dout and blocks must be (B, n)");
  const Rule rule{sort, kl, strength};
  Tensor dx = empty({x.size(0), x.size(1)}, x.scalar_type());
  const IsotonicKernels& kernels = isotonic_kernels_for(int(isa));
  if (x.scalar_type() == ScalarType::Float)
    backward<float>(dout, x, order, blocks, dx, rule, kernels.backward_float);
  else
    backward<double>(dout, x, order, blocks, dx, rule, kernels.backward_double);
  return dx;
}

}  // namespace
}  // namespace sslfast

STABLE_TORCH_LIBRARY_FRAGMENT(sslfast_native, m) {
  m.def(
      "isotonic_rank_cpu(Tensor ascending, Tensor order, bool sort, bool kl, float strength, "
      "int isa) -> (Tensor, Tensor)");
  m.def(
      "isotonic_rank_backward_cpu(Tensor dout, Tensor x, Tensor order, Tensor blocks, bool sort, "
      "bool kl, float strength, int isa) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(sslfast_native, CPU, m) {
  m.impl("isotonic_rank_cpu", TORCH_BOX(&sslfast::isotonic_rank_cpu));
  m.impl("isotonic_rank_backward_cpu", TORCH_BOX(&sslfast::isotonic_rank_backward_cpu));
}
