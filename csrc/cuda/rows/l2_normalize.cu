// CUDA launcher and registration of l2_normalize.
#include "cuda/rows/l2_normalize.cuh"

#include <tuple>

#include "cuda/launch.h"

namespace sslfast {
namespace {

using Forward = void (*)(const void*, void*, void*, long long, long long, long long, double);
using Backward = void (*)(const void*, const void*, const void*, void*, long long, long long,
                          long long, long long, double);
struct Kernels {
  Forward forward;
  Backward backward;
};

Kernels kernels_for(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Half:
      return {l2_normalize_fwd_kernel_float16, l2_normalize_bwd_kernel_float16};
    case ScalarType::BFloat16:
      return {l2_normalize_fwd_kernel_bfloat16, l2_normalize_bwd_kernel_bfloat16};
    case ScalarType::Float:
      return {l2_normalize_fwd_kernel_float32, l2_normalize_bwd_kernel_float32};
    case ScalarType::Double:
      return {l2_normalize_fwd_kernel_float64, l2_normalize_bwd_kernel_float64};
    default: break;
  }
  STD_TORCH_CHECK(false, "x must be float16, bfloat16, float32 or float64");
  return {};
}

std::tuple<Tensor, Tensor> l2_normalize_cuda(Tensor x, double eps) {
  check_rows(x, "x");
  const Kernels kernels = kernels_for(x.scalar_type());
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const int64_t rows = x.size(0), features = x.size(1);
  Tensor y = empty_beside(x, {rows, features}, x.scalar_type());
  Tensor norm = empty_beside(x, {rows}, accumulator(x.scalar_type()));
  if (rows == 0) return {y, norm};
  const RowBlocks on(rows, features * int64_t(x.element_size()));
  kernels.forward<<<on.grid, on.block, 0, current_stream(x)>>>(
      x.const_data_ptr(), y.mutable_data_ptr(), norm.mutable_data_ptr(), rows, features,
      x.stride(0), eps);
  check_launch("l2_normalize_fwd_kernel");
  return {y, norm};
}

Tensor l2_normalize_backward_cuda(Tensor dy, Tensor x, Tensor norm, double eps) {
  check_rows(x, "x");
  check_rows(dy, "dy");
  const Kernels kernels = kernels_for(x.scalar_type());
  const int64_t rows = x.size(0), features = x.size(1);
  STD_TORCH_CHECK(dy.size(0) == rows && dy.size(1) == features && norm.numel() == rows,
                  "dy must be (N, D), norm (N)");
  STD_TORCH_CHECK(
      dy.scalar_type() == x.scalar_type() && norm.scalar_type() == accumulator(x.scalar_type()),
      "dy must have the dtype of x, norm that of its sums");
  STD_TORCH_CHECK(norm.is_contiguous(), "norm must be contiguous");
  STD_TORCH_CHECK(dy.get_device_index() == x.get_device_index() && norm.is_cuda() &&
                      norm.get_device_index() == x.get_device_index(),
                  "dy and norm must be on the device of x");
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor dx = empty_beside(x, {rows, features}, x.scalar_type());
  if (rows == 0) return dx;
  const RowBlocks on(rows, features * int64_t(x.element_size()));
  kernels.backward<<<on.grid, on.block, 0, current_stream(x)>>>(
      dy.const_data_ptr(), x.const_data_ptr(), norm.const_data_ptr(), dx.mutable_data_ptr(), rows,
      features, dy.stride(0), x.stride(0), eps);
  check_launch("l2_normalize_bwd_kernel");
  return dx;
}

}  // namespace
}  // namespace sslfast

STABLE_TORCH_LIBRARY_FRAGMENT(sslfast_native, m) {
  m.def("l2_normalize_cuda(Tensor x, float eps) -> (Tensor, Tensor)");
  m.def("l2_normalize_backward_cuda(Tensor dy, Tensor x, Tensor norm, float eps) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(sslfast_native, CUDA, m) {
  m.impl("l2_normalize_cuda", TORCH_BOX(&sslfast::l2_normalize_cuda));
  m.impl("l2_normalize_backward_cuda", TORCH_BOX(&sslfast::l2_normalize_backward_cuda));
}
