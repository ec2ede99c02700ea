// The kernels of csrc/cuda/sorting/group_mass.cuh, see emulate.h.
#include "emulate.h"
//
#include "cuda/sorting/group_mass.cuh"

#define OF_THREAD(network, length, relaxation)                                              \
  EMULATED(sorting_group_mass_fwd_kernel_##network##_##length##_##relaxation##_float32)     \
  EMULATED(sorting_group_mass_bwd_kernel_##network##_##length##_##relaxation##_float32)     \
  EMULATED(sorting_group_mass_entropy_kernel_##network##_##length##_##relaxation##_float32) \
  EMULATED(sorting_group_mass_pair_kernel_##network##_##length##_##relaxation##_float32)
#define OF_TEAM(relaxation, T, dtype)                            \
  EMULATED(sorting_group_mass_fwd_kernel_##relaxation##_##dtype) \
  EMULATED(sorting_group_mass_bwd_kernel_##relaxation##_##dtype) \
  EMULATED(sorting_group_mass_entropy_kernel_##relaxation##_##dtype)

SSLFAST_SORT_KERNELS(OF_THREAD, OF_TEAM)
