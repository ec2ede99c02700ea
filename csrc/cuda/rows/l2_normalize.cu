// The prebuilt kernels of l2_normalize: a pair for each dtype.
#include "cuda/rows/l2_normalize.cuh"

#include "cuda/kernels.h"

#define LISTED(dtype)                             \
  SSLFAST_KERNEL(l2_normalize_fwd_kernel_##dtype) \
  SSLFAST_KERNEL(l2_normalize_bwd_kernel_##dtype)

LISTED(float16)
LISTED(bfloat16)
LISTED(float32)
LISTED(float64)
