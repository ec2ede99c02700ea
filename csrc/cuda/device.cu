// Whether this library has code for a device. Asked through ctypes, once, before a kernel runs.
#include <cuda_runtime.h>

namespace {
__global__ void empty_kernel() {}
}  // namespace

// nullptr, or why no kernel of this library can run there.
extern "C" __attribute__((visibility("default"))) const char* sslfast_cuda_error(int device) {
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
