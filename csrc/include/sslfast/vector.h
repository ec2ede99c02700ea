// Vectors of the widest kind that the instruction set of this translation unit has.
//
// Included by files that are compiled once per instruction set. Everything lies in a namespace of
// that set, so that an inline function compiled for AVX-512 can never be linked into the baseline;
// for the same reason no torch or STL header may be included beside it.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "sslfast/constants.h"

#ifndef SSLFAST_ISA
#error "compile with -DSSLFAST_ISA=<instruction set> (see CMakeLists.txt)"
#endif

#define SSLFAST_INLINE __attribute__((always_inline)) inline
#define SSLFAST_UNROLL _Pragma("GCC unroll 16")

namespace sslfast::SSLFAST_ISA {

#if defined(__AVX512F__) || defined(SSLFAST_MATRIX)
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
static_assert(kPanel<float> <= kMostPanel);

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
SSLFAST_INLINE void store_ids(Int<T>* p, IntVec<T> v) {
  *reinterpret_cast<typename Lanes<T>::IntUnaligned*>(p) = v;
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

// Whether any lane of a comparison is true.
template <class T>
SSLFAST_INLINE bool any(IntVec<T> mask) {
  typedef int64_t Words __attribute__((vector_size(kVectorBytes)));
  const Words words = reinterpret_cast<Words>(mask);
  int64_t found = 0;
  SSLFAST_UNROLL
  for (int i = 0; i < kVectorBytes / 8; ++i) found |= words[i];
  return found != 0;
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SSLFAST_SHUFFLES
#endif
#endif

#if defined(SSLFAST_SHUFFLES)
// (a_0, b_0, a_1, b_1, ...) of the lower halves, or of the upper ones.
template <class T>
SSLFAST_INLINE Vec<T> interleave_low(Vec<T> a, Vec<T> b) {
  if constexpr (kLanes<T> == 16)
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  else if constexpr (kLanes<T> == 8)
    return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
  else if constexpr (kLanes<T> == 4)
    return __builtin_shufflevector(a, b, 0, 4, 1, 5);
  else
    return __builtin_shufflevector(a, b, 0, 2);
}
template <class T>
SSLFAST_INLINE Vec<T> interleave_high(Vec<T> a, Vec<T> b) {
  if constexpr (kLanes<T> == 16)
    return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15,
                                   31);
  else if constexpr (kLanes<T> == 8)
    return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
  else if constexpr (kLanes<T> == 4)
    return __builtin_shufflevector(a, b, 2, 6, 3, 7);
  else
    return __builtin_shufflevector(a, b, 1, 3);
}
#endif

// A square of as many rows as lanes, row(r) each, transposed.
template <class T, class F>
SSLFAST_INLINE void transpose_square(const F& row, T* to, int64_t to_stride) {
  constexpr int L = kLanes<T>;
#if defined(SSLFAST_SHUFFLES)
  // Interleaving the first half of the rows with the second, once for each bit of an index.
  Vec<T> rows[L], next[L];
  SSLFAST_UNROLL
  for (int r = 0; r < L; ++r) rows[r] = row(r);
  SSLFAST_UNROLL
  for (int stage = 1; stage < L; stage *= 2) {
    SSLFAST_UNROLL
    for (int r = 0; r < L / 2; ++r) {
      next[2 * r] = interleave_low<T>(rows[r], rows[r + L / 2]);
      next[2 * r + 1] = interleave_high<T>(rows[r], rows[r + L / 2]);
    }
    SSLFAST_UNROLL
    for (int r = 0; r < L; ++r) rows[r] = next[r];
  }
  SSLFAST_UNROLL
  for (int r = 0; r < L; ++r) store(to + r * to_stride, rows[r]);
#else
  for (int r = 0; r < L; ++r) {
    const Vec<T> v = row(r);
    for (int c = 0; c < L; ++c) to[c * to_stride + r] = v[c];
  }
#endif
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

// Keeps a product from being contracted with a following sum, where its own rounding is wanted.
template <class T>
SSLFAST_INLINE Vec<T> rounded(Vec<T> x) {
#if defined(SSLFAST_EMULATE_TILES)
  asm("" : "+m"(x));  // its vectors are wider than a register
#elif defined(__x86_64__)
  asm("" : "+v"(x));
#elif defined(__aarch64__)
  asm("" : "+w"(x));
#endif
  return x;
}

// exp(f) = 1 + f (c_1 + f (c_2 + ...)) on [-log(2)/2, log(2)/2]: minimax in the relative error by
// the Remez exchange, 2.6e-9 (float) and 1.8e-17 (double), below the rounding of Horner's scheme.
// log(2) is split in two so that n log(2) is exact to more digits than x has.
template <class T>
struct Exp;
template <>
struct Exp<float> {
  static constexpr float kCoefficients[] = {0x1.000000p+0f, 0x1.000002p-1f, 0x1.5553c2p-3f,
                                            0x1.55515ep-5f, 0x1.12903ep-7f, 0x1.709b64p-10f};
  static constexpr float kLeast = -88.1f, kMost = 88.8f;  // n = -127 and n = 128
  static constexpr float kLog2High = 0x1.62e4p-1f, kLog2Low = 0x1.7f7d1cp-20f;
};
template <>
struct Exp<double> {
  static constexpr double kCoefficients[] = {
      1.0000000000000005588,     0.50000000000000055725,     0.16666666666657302374,
      0.04166666666657363583,    0.0083333333377154602736,   0.0013888888932340796724,
      0.00019841261491392798694, 0.000024801504511037080072, 2.7564254929439037522e-6,
      2.7626296554217169468e-7,  2.298131153883436429e-8};
  static constexpr double kLeast = -709.2, kMost = 709.9;  // n = -1023 and n = 1024
  static constexpr double kLog2High = 0x1.62e42fee00000p-1, kLog2Low = 0x1.a39ef35793c76p-33;
};

// exp(x), within two units in the last place; exactly 0 where the result would be subnormal (and
// for -inf), infinite above the range, NaN for NaN.
template <class T>
SSLFAST_INLINE Vec<T> exp(Vec<T> x) {
  using L = Lanes<T>;
  using E = Exp<T>;
  // An exponent field of 0 is the number 0, and one of all bits is infinity: clamping to one step
  // outside the normal range therefore gives both limits without a further select.
  x = min<T>(max<T>(x, broadcast(E::kLeast)), broadcast(E::kMost));
  const Vec<T> shifted = x * T(1.44269504088896340736) + L::kRound;
  const Vec<T> n = shifted - L::kRound;
  const Vec<T> f = (x - n * E::kLog2High) - n * E::kLog2Low;
  constexpr int kTerms = sizeof(E::kCoefficients) / sizeof(T);
  Vec<T> p = broadcast(E::kCoefficients[kTerms - 1]);
  SSLFAST_UNROLL
  for (int i = kTerms - 2; i >= 0; --i) p = p * f + E::kCoefficients[i];
  p = p * f + T(1);
  const IntVec<T> bits = reinterpret_cast<IntVec<T>>(shifted) + L::kBias;
  return p * reinterpret_cast<Vec<T>>(bits << L::kMantissa);
}

}  // namespace sslfast::SSLFAST_ISA
