// What mathematics needs that runs on the CPU and on the GPU: one source, three compilers.
//
// On the CPU it is compiled once per instruction set, each time into a namespace of that name (see
// vector.h). nvcc and NVRTC compile it into sslfast::device. NVRTC has no system headers, so no
// such header may be included here or in any file that includes this one and runs on a device.
#pragma once

#if defined(__CUDACC__)  // defined by nvcc and by NVRTC
#define SSLFAST_TARGET device
#define SSLFAST_HOST_DEVICE __host__ __device__ __forceinline__
#elif defined(SSLFAST_ISA)
#define SSLFAST_TARGET SSLFAST_ISA
#define SSLFAST_HOST_DEVICE __attribute__((always_inline)) inline
#else
#error "compile with nvcc, with NVRTC, or with -DSSLFAST_ISA=<instruction set> (CMakeLists.txt)"
#endif

namespace sslfast::SSLFAST_TARGET {

template <class A>
constexpr A kSmallestNormal = A(0x1p-1022);
template <>
inline constexpr float kSmallestNormal<float> = 0x1p-126f;

// Correctly rounded on every target.
#if defined(__CUDA_ARCH__)
SSLFAST_HOST_DEVICE float square_root(float x) { return sqrtf(x); }
SSLFAST_HOST_DEVICE double square_root(double x) { return sqrt(x); }
#else
SSLFAST_HOST_DEVICE float square_root(float x) { return __builtin_sqrtf(x); }
SSLFAST_HOST_DEVICE double square_root(double x) { return __builtin_sqrt(x); }
#endif

// x / divisor, with 1 / divisor at hand. A GPU divides in a dozen steps and a branch, so there the
// product with the inverse is corrected by its remainder; a divisor of infinity leaves none. What
// is exact stays exact: x / |x| is 1.
#if defined(__CUDA_ARCH__)
SSLFAST_HOST_DEVICE float quotient(float x, float divisor, float inverse) {
  const float product = x * inverse;
  return inverse == 0 ? product : fmaf(fmaf(-product, divisor, x), inverse, product);
}
SSLFAST_HOST_DEVICE double quotient(double x, double divisor, double inverse) {
  const double product = x * inverse;
  return inverse == 0 ? product : fma(fma(-product, divisor, x), inverse, product);
}
#else
template <class A>
SSLFAST_HOST_DEVICE A quotient(A x, A divisor, A) {
  return x / divisor;
}
#endif

}  // namespace sslfast::SSLFAST_TARGET
