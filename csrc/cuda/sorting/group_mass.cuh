// Kernels of sorting_group_mass: masses and their gradient, and the cross entropy with its
// gradient.
#pragma once

#include "cuda/sorting/kernels.cuh"

#define SSLFAST_GROUP_MASS_OF_THREAD(network, length, relaxation)                                  \
  extern "C" __global__ void __launch_bounds__(sslfast::device::kListBlock)                        \
      sorting_group_mass_fwd_kernel_##network##_##length##_##relaxation##_float32(                 \
          const float* values, float* masses, long long lists, long long num_groups,               \
          unsigned long long groups, double steepness, double art_lambda) {                        \
    using namespace sslfast::device;                                                               \
    const auto rule = rule_of<named::relaxation, float>(steepness, art_lambda);                    \
    using Sort = SSLFAST_SORT_OF_THREAD(network, length, relaxation);                              \
    Sort::forward({lists, int(num_groups), groups, rule, rule}, values, nullptr, masses);          \
  }                                                                                                \
  extern "C" __global__ void __launch_bounds__(sslfast::device::kListBlock)                        \
      sorting_group_mass_bwd_kernel_##network##_##length##_##relaxation##_float32(                 \
          const float* values, const float* dmasses, float* dvalues, long long lists,              \
          long long num_groups, unsigned long long groups, double steepness, double art_lambda) {  \
    using namespace sslfast::device;                                                               \
    const auto rule = rule_of<named::relaxation, float>(steepness, art_lambda);                    \
    using Sort = SSLFAST_SORT_OF_THREAD(network, length, relaxation);                              \
    Sort::backward({lists, int(num_groups), groups, rule, rule}, values, nullptr, dmasses,         \
                   dvalues);                                                                       \
  }                                                                                                \
  extern "C" __global__ void __launch_bounds__(sslfast::device::kListBlock)                        \
      sorting_group_mass_entropy_kernel_##network##_##length##_##relaxation##_float32(             \
          const float* values, const float* teacher, float* loss, float* dvalues, long long lists, \
          long long num_groups, unsigned long long groups, double steepness, double art_lambda,    \
          double teacher_steepness) {                                                              \
    using namespace sslfast::device;                                                               \
    const auto rule = rule_of<named::relaxation, float>(steepness, art_lambda);                    \
    const auto taught = rule_of<named::relaxation, float>(teacher_steepness, art_lambda);          \
    using Sort = SSLFAST_SORT_OF_THREAD(network, length, relaxation);                              \
    Sort::cross_entropy({lists, int(num_groups), groups, rule, taught}, values, teacher, loss,     \
                        dvalues);                                                                  \
  }                                                                                                \
  extern "C" __global__ void __launch_bounds__(sslfast::device::kListBlock)                        \
      sorting_group_mass_pair_kernel_##network##_##length##_##relaxation##_float32(                \
          const float* values, float* loss, float* dvalues, long long lists,                       \
          unsigned long long groups, double steepness, double art_lambda) {                        \
    using namespace sslfast::device;                                                               \
    const auto rule = rule_of<named::relaxation, float>(steepness, art_lambda);                    \
    using Sort = SSLFAST_SORT_OF_THREAD(network, length, relaxation);                              \
    Sort::pair_entropy({lists, 2, groups, rule, rule}, values, loss, dvalues);                     \
  }

#define SSLFAST_GROUP_MASS_OF_TEAM(relaxation, T, dtype)                                          \
  extern "C" __global__ void __launch_bounds__(sslfast::device::kTeamThreads, 2)                  \
      sorting_group_mass_fwd_kernel_##relaxation##_##dtype(const T* values, T* masses,            \
                                                           SSLFAST_TEAM_PARAMETERS,               \
                                                           double steepness, double art_lambda) { \
    using namespace sslfast::device;                                                              \
    const auto rule = rule_of<named::relaxation, T>(steepness, art_lambda);                       \
    team_forward(SSLFAST_TEAM_SHAPE, rule, values, static_cast<T*>(nullptr), masses);             \
  }                                                                                               \
  extern "C" __global__ void __launch_bounds__(sslfast::device::kTeamThreads, 2)                  \
      sorting_group_mass_bwd_kernel_##relaxation##_##dtype(const T* values, const T* dmasses,     \
                                                           T* dvalues, SSLFAST_TEAM_PARAMETERS,   \
                                                           double steepness, double art_lambda) { \
    using namespace sslfast::device;                                                              \
    const auto rule = rule_of<named::relaxation, T>(steepness, art_lambda);                       \
    team_backward(SSLFAST_TEAM_SHAPE, rule, values, static_cast<const T*>(nullptr), dmasses,      \
                  dvalues);                                                                       \
  }                                                                                               \
  extern "C" __global__ void __launch_bounds__(sslfast::device::kTeamThreads, 2)                  \
      sorting_group_mass_entropy_kernel_##relaxation##_##dtype(                                   \
          const T* values, const T* teacher, T* loss, T* dvalues, SSLFAST_TEAM_PARAMETERS,        \
          double steepness, double art_lambda, double teacher_steepness) {                        \
    using namespace sslfast::device;                                                              \
    const auto rule = rule_of<named::relaxation, T>(steepness, art_lambda);                       \
    const auto taught = rule_of<named::relaxation, T>(teacher_steepness, art_lambda);             \
    team_cross_entropy(SSLFAST_TEAM_SHAPE, rule, taught, values, teacher, loss, dvalues);         \
  }

SSLFAST_SORT_KERNELS(SSLFAST_GROUP_MASS_OF_THREAD, SSLFAST_GROUP_MASS_OF_TEAM)
