// What the sweeps of sslfast/sorting/sweeps.h keep for each comparator on the device: the share
// `small` with the sign of the difference, one number where they read two.
#pragma once

#include "sslfast/sorting/sweeps.h"

namespace sslfast::device {

// S1 has just written the difference, perhaps into the very place of the share.
template <class Array, class Differences>
struct SignedShares {
  Array& at;
  const Differences& differences;

  template <class V>
  SSLFAST_HOST_DEVICE void keep(int s, V small) const {
    const V share = small < kSmallestNormal<V> ? kSmallestNormal<V> : small;  // 0 has no sign
    at[s] = differences[s] < 0 ? -share : share;
  }
  template <class V, class Rule>
  SSLFAST_HOST_DEVICE V of(int s, V, const Rule&) const {
    return magnitude(V(at[s]));
  }
};
template <class Array>
__device__ __forceinline__ SignedShares<Array, Array> signed_shares(Array& at) {
  return {at, at};
}
template <class Array, class Differences>
__device__ __forceinline__ SignedShares<Array, Differences> signed_shares(
    Array& at, const Differences& differences) {
  return {at, differences};
}

// The gradient of shares that nothing but the sorted values depends on.
struct NoSlopes {
  SSLFAST_HOST_DEVICE float operator[](int) const { return 0; }
};

}  // namespace sslfast::device
