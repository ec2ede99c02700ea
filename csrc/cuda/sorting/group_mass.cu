// The prebuilt kernels of sorting_group_mass: those for lists of any length, and for the lists of
// GroCo (ten negatives and one to three positives).
#include "cuda/sorting/group_mass.cuh"

#include "cuda/kernels.h"

#define LISTED(relaxation, T, dtype)                                   \
  SSLFAST_GROUP_MASS_OF_TEAM(relaxation, T, dtype)                     \
  SSLFAST_KERNEL(sorting_group_mass_fwd_kernel_##relaxation##_##dtype) \
  SSLFAST_KERNEL(sorting_group_mass_bwd_kernel_##relaxation##_##dtype) \
  SSLFAST_KERNEL(sorting_group_mass_entropy_kernel_##relaxation##_##dtype)
#define LISTED_OF_LENGTH(n)                                                       \
  SSLFAST_GROUP_MASS_OF_THREAD(odd_even, n, cauchy)                               \
  SSLFAST_KERNEL(sorting_group_mass_fwd_kernel_odd_even_##n##_cauchy_float32)     \
  SSLFAST_KERNEL(sorting_group_mass_bwd_kernel_odd_even_##n##_cauchy_float32)     \
  SSLFAST_KERNEL(sorting_group_mass_entropy_kernel_odd_even_##n##_cauchy_float32) \
  SSLFAST_KERNEL(sorting_group_mass_pair_kernel_odd_even_##n##_cauchy_float32)

SSLFAST_OF_EVERY_RELAXATION(LISTED)
LISTED_OF_LENGTH(11)
LISTED_OF_LENGTH(12)
LISTED_OF_LENGTH(13)
