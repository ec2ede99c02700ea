// What every CUDA launcher needs of torch: checks, memory, device and stream, through the stable
// ABI. Compiled by nvcc; needs no header that a CPU build of torch lacks.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <vector>

namespace sslfast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Rows may lie any stride apart, but the features of a row are neighbours. The Python launcher sees
// to it; this keeps a direct call from reading what is not there.
inline void check_rows(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.is_cuda(), name, " must be on a CUDA device");
  STD_TORCH_CHECK(t.dim() == 2, name, " must be a matrix");
  STD_TORCH_CHECK(t.size(1) < 2 || t.stride(1) == 1, name, " must have neighbouring features");
  STD_TORCH_CHECK(t.size(1) <= INT32_MAX, name, " must have less than 2^31 features, got ",
                  t.size(1));
}

inline Tensor empty_beside(const Tensor& t, std::initializer_list<int64_t> shape,
                           ScalarType dtype) {
  const std::vector<int64_t> size(shape);
  return torch::stable::new_empty(t, {size.data(), size.size()}, dtype);
}

inline ScalarType accumulator(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline cudaStream_t current_stream(const Tensor& t) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline void check_launch(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, kernel, ": ", cudaGetErrorString(error));
}

// The blocks that row kernels are made for (rows/rows.cuh): a warp takes a row whose bytes a warp
// can keep in registers, a block takes a longer one. sslfast/cuda/_rows.py says the same in Python.
struct RowBlocks {
  dim3 grid, block;

  RowBlocks(int64_t rows, int64_t row_bytes) {
    constexpr int64_t kWarpBytes = 2048, kMostBlocks = 65536;
    const int64_t at_a_time = row_bytes <= kWarpBytes ? 8 : 1;
    block = at_a_time == 1 ? dim3(256, 1) : dim3(32, unsigned(at_a_time));
    const int64_t blocks = (rows + at_a_time - 1) / at_a_time;
    grid = dim3(unsigned(blocks < kMostBlocks ? blocks : kMostBlocks));
  }
};

}  // namespace sslfast
