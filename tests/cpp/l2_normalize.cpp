// The kernels of csrc/cuda/l2_normalize.cuh as functions of the CPU: emulated_<kernel>.
#include "emulate.h"
//
#include "cuda/l2_normalize.cuh"

#define EMULATED(dtype)                                                                          \
  extern "C" void emulated_l2_normalize_fwd_kernel_##dtype(                                      \
      int grid, int x, int y, const void* rows_x, void* rows_y, void* norm, long long rows,      \
      long long features, long long x_stride, double eps) {                                      \
    emulation::launch(grid, x, y, l2_normalize_fwd_kernel_##dtype, rows_x, rows_y, norm, rows,   \
                      features, x_stride, eps);                                                  \
  }                                                                                              \
  extern "C" void emulated_l2_normalize_bwd_kernel_##dtype(                                      \
      int grid, int x, int y, const void* dy, const void* rows_x, const void* norm, void* dx,    \
      long long rows, long long features, long long dy_stride, long long x_stride, double eps) { \
    emulation::launch(grid, x, y, l2_normalize_bwd_kernel_##dtype, dy, rows_x, norm, dx, rows,   \
                      features, dy_stride, x_stride, eps);                                       \
  }

EMULATED(float16)
EMULATED(bfloat16)
EMULATED(float32)
EMULATED(float64)
