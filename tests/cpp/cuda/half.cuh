// Stands in for csrc/cuda/half.cuh where device code is emulated: the same conversions in C++.
#pragma once

#include <cstring>

namespace sslfast::device {

struct Half {
  unsigned short bits;
};
struct BFloat16 {
  unsigned short bits;
};

inline float widen(Half x) {
  _Float16 half;
  std::memcpy(&half, &x.bits, 2);
  return float(half);
}
inline float widen(BFloat16 x) { return __uint_as_float(unsigned(x.bits) << 16); }

inline void narrow(float x, Half& out) {
  const _Float16 half = _Float16(x);
  std::memcpy(&out.bits, &half, 2);
}
inline void narrow(float x, BFloat16& out) {
  unsigned bits;
  std::memcpy(&bits, &x, 4);
  const unsigned rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  out.bits = x != x ? 0x7fff : (unsigned short)(rounded);
}

}  // namespace sslfast::device
