// Vectors of the widest kind that the instruction set of this translation unit has.
//
// Included by files that are compiled once per instruction set. Everything lies in a namespace of
// that set, so that an inline function compiled for AVX-512 can never be linked into the baseline;
// for the same reason no torch or STL header may be included beside it.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifndef SSLFAST_ISA
#error "compile with -DSSLFAST_ISA=<instruction set> (see CMakeLists.txt)"
#endif

#define SSLFAST_INLINE __attribute__((always_inline)) inline
#define SSLFAST_UNROLL _Pragma("GCC unroll 16")

namespace sslfast::SSLFAST_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kTileRows = 8;  // 8 x 2 accumulators hide the FMA latency of two 512-bit pipes
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kTileRows = 4;  // 4 x 2 accumulators, 2 operands and a broadcast in 16 registers
#else
constexpr int kVectorBytes = 16;
constexpr int kTileRows = 4;
#endif
constexpr int kTileVectors = 2;

template <class T>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float Vec __attribute__((vector_size(kVectorBytes)));
  typedef float Unaligned __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
  typedef int32_t Int;
  typedef int32_t IntVec __attribute__((vector_size(kVectorBytes)));
  typedef int32_t IntUnaligned __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
  static constexpr int kMantissa = 23;
  static constexpr Int kBias = 127;
  static constexpr float kRound =
      0x1.8p23f;  // adding it leaves the nearest integer in the low bits
};
template <>
struct Lanes<double> {
  typedef double Vec __attribute__((vector_size(kVectorBytes)));
  typedef double Unaligned __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
  typedef int64_t Int;
  typedef int64_t IntVec __attribute__((vector_size(kVectorBytes)));
  typedef int64_t IntUnaligned __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
  static constexpr int kMantissa = 52;
  static constexpr Int kBias = 1023;
  static constexpr double kRound = 0x1.8p52;
};

template <class T>
using Vec = typename Lanes<T>::Vec;
template <class T>
using IntVec = typename Lanes<T>::IntVec;
template <class T>
using Int = typename Lanes<T>::Int;

template <class T>
constexpr int kLanes = kVectorBytes / int(sizeof(T));
// Width of a packed panel: the columns of one register tile.
template <class T>
constexpr int kPanel = kTileVectors * kLanes<T>;

template <class T>
SSLFAST_INLINE Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename Lanes<T>::Unaligned*>(p);
}
template <class T>
SSLFAST_INLINE void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename Lanes<T>::Unaligned*>(p) = v;
}
template <class T>
SSLFAST_INLINE IntVec<T> load_ids(const Int<T>* p) {
  return *reinterpret_cast<const typename Lanes<T>::IntUnaligned*>(p);
}
template <class T>
SSLFAST_INLINE Vec<T> broadcast(T x) {
  return x - Vec<T>{};
}
// NaN in `a` stays, as in a comparison that is false.
template <class T>
SSLFAST_INLINE Vec<T> max(Vec<T> a, Vec<T> b) {
  return a < b ? b : a;
}
template <class T>
SSLFAST_INLINE Vec<T> min(Vec<T> a, Vec<T> b) {
  return a > b ? b : a;
}
template <class T>
SSLFAST_INLINE Vec<T> zero_where(IntVec<T> mask, Vec<T> x) {
  return mask ? Vec<T>{} : x;
}

// Lanes in a fixed binary order, so that the sum does not depend on the compiler.
template <class T>
SSLFAST_INLINE T sum(Vec<T> v) {
  T lanes[kLanes<T>];
  store(lanes, v);
  for (int width = kLanes<T> / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}
template <class T>
SSLFAST_INLINE T largest(Vec<T> v) {
  T m = v[0];
  for (int i = 1; i < kLanes<T>; ++i) m = v[i] > m ? v[i] : m;
  return m;
}

// Minimax polynomials for 2^f on [-1/2, 1/2] with p(0) = 1, by the Remez exchange on the relative
// error: 2.6e-9 (float) and 1.8e-17 (double), below the rounding of Horner's scheme.
constexpr float kExp2Float[] = {0x1.62e432p-1f, 0x1.ebfbe2p-3f,  0x1.c6ae72p-5f,
                                0x1.3b270ep-7f, 0x1.5f7276p-10f, 0x1.470b4ap-13f};
constexpr double kExp2Double[] = {
    0.6931471805599456968,    0.2402265069591009801,   0.05550410866479039455,
    0.00961812910760700238,   0.001333355815343996475, 0.0001540353044157213033,
    0.0000152527273851938682, 1.321544267532982214e-6, 1.018064765923413889e-7,
    7.07257041281442351e-9,   4.078071929588336665e-10};

SSLFAST_INLINE Vec<float> exp2_polynomial(Vec<float> f) {
  Vec<float> p = broadcast(kExp2Float[5]);
  SSLFAST_UNROLL
  for (int i = 4; i >= 0; --i) p = p * f + kExp2Float[i];
  return p * f + 1.0f;
}
SSLFAST_INLINE Vec<double> exp2_polynomial(Vec<double> f) {
  Vec<double> p = broadcast(kExp2Double[10]);
  SSLFAST_UNROLL
  for (int i = 9; i >= 0; --i) p = p * f + kExp2Double[i];
  return p * f + 1.0;
}

// 2^x, within two units in the last place; exactly 0 where the result would be subnormal (and for
// -inf), infinite above the range, NaN for NaN.
template <class T>
SSLFAST_INLINE Vec<T> exp2(Vec<T> x) {
  using L = Lanes<T>;
  // An exponent field of 0 is the number 0, and one of all bits is infinity: clamping to one step
  // outside the normal range therefore gives both limits without a further select.
  x = min<T>(max<T>(x, broadcast(T(-L::kBias))), broadcast(T(L::kBias + 1)));
  const Vec<T> shifted = x + L::kRound;
  const Vec<T> f = x - (shifted - L::kRound);
  const IntVec<T> bits = reinterpret_cast<IntVec<T>>(shifted) + L::kBias;
  return exp2_polynomial(f) * reinterpret_cast<Vec<T>>(bits << L::kMantissa);
}

}  // namespace sslfast::SSLFAST_ISA
