// What Python asks of this library through ctypes: whether it has code for a device, which kernels
// it has by name, and to start one of them.
#include <cuda_runtime.h>

#include <cstring>

#include "cuda/kernels.h"

#define SSLFAST_EXPORT extern "C" __attribute__((visibility("default")))

namespace {
__global__ void empty_kernel() {}
}  // namespace

// nullptr, or why no kernel of this library can run there.
SSLFAST_EXPORT const char* sslfast_cuda_error(int device) {
  int before = 0;
  cudaError_t error = cudaGetDevice(&before);
  if (error == cudaSuccess) error = cudaSetDevice(device);
  if (error == cudaSuccess) {
    cudaFuncAttributes attributes;
    error = cudaFuncGetAttributes(&attributes, empty_kernel);
    cudaSetDevice(before);
  }
  cudaGetLastError();  // an error told here must not surface in a later launch
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// nullptr where there is none of this name.
SSLFAST_EXPORT const void* sslfast_cuda_kernel(const char* name) {
  const sslfast::Kernel* kernel = sslfast::Kernel::first();
  while (kernel && std::strcmp(kernel->name, name) != 0) kernel = kernel->next;
  return kernel ? kernel->function : nullptr;
}

// On the current device; nullptr, or what went wrong. grid and block by dimension; arguments of
// eight bytes each, `shared` bytes of memory beyond what the kernel declares.
SSLFAST_EXPORT const char* sslfast_cuda_launch(const void* kernel, const unsigned* grid,
                                               const unsigned* block, void** arguments,
                                               unsigned long long shared, void* stream) {
  const cudaError_t error =
      cudaLaunchKernel(kernel, dim3(grid[0], grid[1], grid[2]), dim3(block[0], block[1], block[2]),
                       arguments, shared, static_cast<cudaStream_t>(stream));
  cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
