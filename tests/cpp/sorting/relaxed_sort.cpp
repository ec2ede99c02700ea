// The kernels of csrc/cuda/sorting/relaxed_sort.cuh, see emulate.h.
#include "emulate.h"
//
#include "cuda/sorting/relaxed_sort.cuh"

#define OF_THREAD(network, length, relaxation)                                    \
  EMULATED(relaxed_sort_fwd_kernel_##network##_##length##_##relaxation##_float32) \
  EMULATED(relaxed_sort_bwd_kernel_##network##_##length##_##relaxation##_float32)
#define OF_TEAM(relaxation, T, dtype)                      \
  EMULATED(relaxed_sort_fwd_kernel_##relaxation##_##dtype) \
  EMULATED(relaxed_sort_bwd_kernel_##relaxation##_##dtype)

SSLFAST_SORT_KERNELS(OF_THREAD, OF_TEAM)
