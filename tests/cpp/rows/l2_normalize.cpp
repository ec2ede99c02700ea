// The kernels of csrc/cuda/rows/l2_normalize.cuh, see emulate.h.
#include "emulate.h"
//
#include "cuda/rows/l2_normalize.cuh"

EMULATED(l2_normalize_fwd_kernel_float16)
EMULATED(l2_normalize_fwd_kernel_bfloat16)
EMULATED(l2_normalize_fwd_kernel_float32)
EMULATED(l2_normalize_fwd_kernel_float64)
EMULATED(l2_normalize_bwd_kernel_float16)
EMULATED(l2_normalize_bwd_kernel_bfloat16)
EMULATED(l2_normalize_bwd_kernel_float32)
EMULATED(l2_normalize_bwd_kernel_float64)
