// The prebuilt kernels of relaxed_sort: those for lists of any length.
#include "cuda/sorting/relaxed_sort.cuh"

#include "cuda/kernels.h"

#define LISTED(relaxation, T, dtype)                             \
  SSLFAST_RELAXED_SORT_OF_TEAM(relaxation, T, dtype)             \
  SSLFAST_KERNEL(relaxed_sort_fwd_kernel_##relaxation##_##dtype) \
  SSLFAST_KERNEL(relaxed_sort_bwd_kernel_##relaxation##_##dtype)

SSLFAST_OF_EVERY_RELAXATION(LISTED)
