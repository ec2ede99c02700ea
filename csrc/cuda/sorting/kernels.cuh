// What the kernels of the sorting primitives have in common: their names and arguments.
//
// A source is compiled for a relaxation, SSLFAST_RELAXATION=cauchy, and has the kernels for lists
// of any length then; with SSLFAST_NETWORK=odd_even and SSLFAST_LENGTH=11 too it has those for
// lists of just this length instead. The prebuilt library has all of the first kind and some of the
// second.
#pragma once

#include "cuda/sorting/team.cuh"
#include "cuda/sorting/thread.cuh"

namespace sslfast::device {

namespace named {
constexpr Network odd_even = Network::kOddEven, bitonic = Network::kBitonic;
constexpr Relaxation cauchy = Relaxation::kCauchy, reciprocal = Relaxation::kReciprocal,
                     optimal = Relaxation::kOptimal, logistic = Relaxation::kLogistic,
                     logistic_phi = Relaxation::kLogisticPhi, gaussian = Relaxation::kGaussian;
}  // namespace named

template <class Net, Relaxation kRelaxation>
using SortOfThread = ThreadSort<Net, Relaxed<kRelaxation, float>>;

template <Relaxation kRelaxation, class A>
__device__ __forceinline__ Relaxed<kRelaxation, A> rule_of(double steepness, double art_lambda) {
  return {A(steepness), A(art_lambda)};
}

// Ranks as groups of one.
constexpr unsigned long long kEachRank = 0xfedcba9876543210;

}  // namespace sslfast::device

#define SSLFAST_SORT_OF_THREAD(network, length, relaxation) \
  SortOfThread<StaticNetwork<named::network, length>, named::relaxation>

#define SSLFAST_TEAM_PARAMETERS                                                               \
  const int *pairs, const int *begins, const int *bounds, long long lists, long long layers,  \
      long long length, long long num_groups, long long shared_wires, long long shared_swaps, \
      void *scratch, long long scratch_stride
#define SSLFAST_TEAM_SHAPE                                                                      \
  TeamShape {                                                                                   \
    pairs, begins, bounds, lists, int(layers), int(length), int(num_groups), shared_wires != 0, \
        shared_swaps != 0, scratch, scratch_stride                                              \
  }

// of_team(relaxation, T, dtype) for each relaxation and dtype.
#define SSLFAST_OF_BOTH_DTYPES(of_team, relaxation) \
  of_team(relaxation, float, float32) of_team(relaxation, double, float64)
#define SSLFAST_OF_EVERY_RELAXATION(of_team)    \
  SSLFAST_OF_BOTH_DTYPES(of_team, cauchy)       \
  SSLFAST_OF_BOTH_DTYPES(of_team, reciprocal)   \
  SSLFAST_OF_BOTH_DTYPES(of_team, optimal)      \
  SSLFAST_OF_BOTH_DTYPES(of_team, logistic)     \
  SSLFAST_OF_BOTH_DTYPES(of_team, logistic_phi) \
  SSLFAST_OF_BOTH_DTYPES(of_team, gaussian)

// The kernels that the macros ask for; none in the prebuilt library, whose own list says which.
#if defined(SSLFAST_LENGTH)
#define SSLFAST_SORT_KERNELS(of_thread, of_team) \
  SSLFAST_SORT_KERNELS_(of_thread, SSLFAST_NETWORK, SSLFAST_LENGTH, SSLFAST_RELAXATION)
#define SSLFAST_SORT_KERNELS_(of_thread, network, length, relaxation) \
  of_thread(network, length, relaxation)
#elif defined(SSLFAST_RELAXATION)
#define SSLFAST_SORT_KERNELS(of_thread, of_team) SSLFAST_SORT_KERNELS_(of_team, SSLFAST_RELAXATION)
#define SSLFAST_SORT_KERNELS_(of_team, relaxation) SSLFAST_OF_BOTH_DTYPES(of_team, relaxation)
#else
#define SSLFAST_SORT_KERNELS(of_thread, of_team)
#endif
