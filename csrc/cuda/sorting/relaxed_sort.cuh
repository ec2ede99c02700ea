// Kernels of relaxed_sort: sorted values, the shares P where asked for, and the gradient.
#pragma once

#include "cuda/sorting/kernels.cuh"

#define SSLFAST_RELAXED_SORT_OF_THREAD(network, length, relaxation)                              \
  extern "C" __global__ void __launch_bounds__(sslfast::device::kListBlock)                      \
      relaxed_sort_fwd_kernel_##network##_##length##_##relaxation##_float32(                     \
          const float* values, float* ordered, float* shares, long long lists, double steepness, \
          double art_lambda) {                                                                   \
    using namespace sslfast::device;                                                             \
    const auto rule = rule_of<named::relaxation, float>(steepness, art_lambda);                  \
    using Sort = SSLFAST_SORT_OF_THREAD(network, length, relaxation);                            \
    Sort::forward({lists, length, kEachRank, rule, rule}, values, ordered, shares);              \
  }                                                                                              \
  extern "C" __global__ void __launch_bounds__(sslfast::device::kListBlock)                      \
      relaxed_sort_bwd_kernel_##network##_##length##_##relaxation##_float32(                     \
          const float* values, const float* dordered, const float* dshares, float* dvalues,      \
          long long lists, double steepness, double art_lambda) {                                \
    using namespace sslfast::device;                                                             \
    const auto rule = rule_of<named::relaxation, float>(steepness, art_lambda);                  \
    using Sort = SSLFAST_SORT_OF_THREAD(network, length, relaxation);                            \
    Sort::backward({lists, length, kEachRank, rule, rule}, values, dordered, dshares, dvalues);  \
  }

#define SSLFAST_RELAXED_SORT_OF_TEAM(relaxation, T, dtype)                                      \
  extern "C" __global__ void __launch_bounds__(sslfast::device::kTeamThreads, 2)                \
      relaxed_sort_fwd_kernel_##relaxation##_##dtype(const T* values, T* ordered, T* shares,    \
                                                     SSLFAST_TEAM_PARAMETERS, double steepness, \
                                                     double art_lambda) {                       \
    using namespace sslfast::device;                                                            \
    const auto rule = rule_of<named::relaxation, T>(steepness, art_lambda);                     \
    team_forward(SSLFAST_TEAM_SHAPE, rule, values, ordered, shares);                            \
  }                                                                                             \
  extern "C" __global__ void __launch_bounds__(sslfast::device::kTeamThreads, 2)                \
      relaxed_sort_bwd_kernel_##relaxation##_##dtype(                                           \
          const T* values, const T* dordered, const T* dshares, T* dvalues,                     \
          SSLFAST_TEAM_PARAMETERS, double steepness, double art_lambda) {                       \
    using namespace sslfast::device;                                                            \
    const auto rule = rule_of<named::relaxation, T>(steepness, art_lambda);                     \
    team_backward(SSLFAST_TEAM_SHAPE, rule, values, dordered, dshares, dvalues);                \
  }

SSLFAST_SORT_KERNELS(SSLFAST_RELAXED_SORT_OF_THREAD, SSLFAST_RELAXED_SORT_OF_TEAM)
