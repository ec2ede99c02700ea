// Elements of a tensor on the device: what they are summed in, and packs of neighbours.
#pragma once

#include "cuda/half.cuh"
#include "sslfast/host_device.h"

namespace sslfast::device {

// What sums are kept in.
template <class T>
struct Accumulator {
  using Type = float;
};
template <>
struct Accumulator<double> {
  using Type = double;
};
template <class T>
using Acc = typename Accumulator<T>::Type;

// The largest finite element where a float32 or float64 gradient may lie above it, else 0.
template <class T>
constexpr float kSaturation = 0;
template <>
inline constexpr float kSaturation<Half> = 65504;

__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }

__device__ inline void narrow(float x, float& out) { out = x; }
__device__ inline void narrow(double x, double& out) { out = x; }

// kWidth neighbouring elements; aligned, so that they are one load.
template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth) Pack {
  T at[kWidth];
};

constexpr int kWideBytes = 16;  // the widest load
template <class T>
constexpr int kWide = kWideBytes / int(sizeof(T));

template <class T, int kWidth>
__device__ inline Pack<T, kWidth> load_pack(const T* row, int pack) {
  return reinterpret_cast<const Pack<T, kWidth>*>(row)[pack];
}
template <class T, int kWidth>
__device__ inline void store_pack(T* row, int pack, const Pack<T, kWidth>& values) {
  reinterpret_cast<Pack<T, kWidth>*>(row)[pack] = values;
}

// Whether rows `stride` elements apart can be read 16 bytes at a time.
template <class T>
__device__ inline bool is_wide(const T* first, long long stride) {
  return reinterpret_cast<unsigned long long>(first) % kWideBytes == 0 && stride % kWide<T> == 0;
}

}  // namespace sslfast::device
