// Sorting networks whose length the compiler knows: every comparator is a constant, so that what is
// indexed by wire or comparator stays in registers. The comparators and their order are those of
// sslfast/_core/sorting/network.py, which a test compares.
#pragma once

#include "sslfast/host_device.h"

namespace sslfast::device {

enum class Network { kOddEven, kBitonic };

// Puts the smaller value on wire p, the larger on wire q.
struct Comparator {
  int p, q;
};

namespace network {

// Writes the comparators in order, unless `to` is null; how many there are.
SSLFAST_HOST_DEVICE constexpr int list(Network network, int length, Comparator* to) {
  int count = 0;
  if (network == Network::kOddEven) {
    for (int layer = 0; layer < length; ++layer)
      for (int p = layer % 2; p + 1 < length; p += 2, ++count)
        if (to) to[count] = Comparator{p, p + 1};
    return count;
  }
  int stages = 0;
  while ((1 << stages) < length) ++stages;
  const int absent = (1 << stages) - length;
  for (int stage = 0; stage < stages; ++stage)
    for (int distance = 1 << stage; distance > 0; distance /= 2)
      for (int wire = absent; wire < 1 << stages; ++wire) {
        if (wire & distance) continue;
        const int p = wire - absent, q = p + distance;
        if (to) to[count] = wire >> (stage + 1) & 1 ? Comparator{q, p} : Comparator{p, q};
        ++count;
      }
  return count;
}

template <Network kNetwork, int kLength>
struct Comparators {
  static constexpr int kCount = list(kNetwork, kLength, nullptr);
  Comparator at[kCount + 1] = {};  // one more, since a list of one value has none

  SSLFAST_HOST_DEVICE constexpr Comparators() { list(kNetwork, kLength, at); }
};

template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

// f(Constant<i>()) for i from kFrom to kTo - 1, or from kTo - 1 down to kFrom.
template <int kFrom, int kTo, bool kDown, class F>
SSLFAST_HOST_DEVICE void for_constants(const F& f) {
  if constexpr (kTo - kFrom == 1) {
    f(Constant<kFrom>());
  } else if constexpr (kTo > kFrom) {
    constexpr int kMiddle = (kFrom + kTo) / 2;
    if constexpr (kDown) {
      for_constants<kMiddle, kTo, kDown>(f);
      for_constants<kFrom, kMiddle, kDown>(f);
    } else {
      for_constants<kFrom, kMiddle, kDown>(f);
      for_constants<kMiddle, kTo, kDown>(f);
    }
  }
}

}  // namespace network

template <Network kNetwork, int kWires>
struct StaticNetwork {
  static constexpr int kLength = kWires;
  static constexpr network::Comparators<kNetwork, kWires> kAll{};
  static constexpr int kSwaps = network::Comparators<kNetwork, kWires>::kCount;

  template <class F>
  SSLFAST_HOST_DEVICE void forward(const F& f) const {
    network::for_constants<0, kSwaps, false>(Call<F>{f});
  }
  template <class F>
  SSLFAST_HOST_DEVICE void backward(const F& f) const {
    network::for_constants<0, kSwaps, true>(Call<F>{f});
  }

 private:
  template <class F>
  struct Call {
    const F& f;

    template <class S>
    SSLFAST_HOST_DEVICE void operator()(S) const {
      constexpr Comparator one = kAll.at[S::value];
      f(S::value, one.p, one.q);
    }
  };
};

}  // namespace sslfast::device
