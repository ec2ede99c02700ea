// Elementary functions that shared mathematics needs: of a number on a GPU, of a vector of them on
// the CPU. Each is within a few units in the last place of a float32 (or float64) result, also
// where it is small.
#pragma once

#include "sslfast/host_device.h"

#if !defined(__CUDACC__)
#include "sslfast/vector.h"
#endif

namespace sslfast::SSLFAST_TARGET {

// Polynomials c_0 + c_1 x + c_2 x^2 + ..., minimax by Chebyshev nodes, each below the rounding of
// Horner's scheme.
template <class T>
struct Series;
template <>
struct Series<float> {
  // atan(x) / x of x^2 on [0, 1]
  static constexpr float kArctangent[] = {
      0x1.000000p+0f,  -0x1.555530p-2f, 0x1.998f82p-3f,  -0x1.240b8ep-3f, 0x1.bfc9e8p-4f,
      -0x1.560136p-4f, 0x1.d3ad7ap-5f,  -0x1.f148f2p-6f, 0x1.57a8c8p-7f,  -0x1.bdf398p-10f};
  // atanh(x) / x of x^2 on [0, 0.0296]
  static constexpr float kLogarithm[] = {0x1.000000p+0f, 0x1.555588p-2f, 0x1.9956ecp-3f,
                                         0x1.328146p-3f};
  // erfc(x) exp(x^2) / t of t = 1 / (1 + x / 2) on [0, 1]
  static constexpr float kComplement[] = {0x1.20dd76p-2f,  0x1.20dd0cp-2f,  0x1.f9a91ap-3f,
                                          0x1.666b38p-3f,  0x1.88d5c8p-4f,  -0x1.214538p-4f,
                                          0x1.52ce02p-3f,  -0x1.08d294p-1f, 0x1.231a3cp-1f,
                                          -0x1.2997dcp-2f, 0x1.1175e2p-4f,  -0x1.192e9cp-8f};
  static constexpr float kSplit = 4097;  // x * this, less what it exceeds x by, has half the digits
};
template <>
struct Series<double> {
  static constexpr double kArctangent[] = {
      0.99999999999999999462,    -0.33333333333332858241,    0.19999999999929947169,
      -0.14285714281592692389,   0.11111110982087125254,     -0.090909066056568987623,
      0.076922755552056299862,   -0.066663711877210980949,   0.058803420024015431353,
      -0.052527255573225747835,  0.047197239923211123266,    -0.042125723963855324036,
      0.036510813527210350853,   -0.029700717736234231603,   0.021740213830758133158,
      -0.013674139288399478279,  0.0070386462029898131885,   -0.0028047655531701314593,
      0.00080336041816260264099, -0.00014617088163625012766, 0.000012631178430477425717};
  static constexpr double kLogarithm[] = {0.99999999999999999882,  0.33333333333333842392,
                                          0.19999999999639224401,  0.14285714383021270855,
                                          0.11111098240604712373,  0.090918314484926493418,
                                          0.076558472230948482686, 0.074092025368726700145};
  static constexpr double kComplement[] = {
      0.28209479177387803553,   0.28209479177396041952,  0.24683294278634694349,
      0.17630924616810183491,   0.083746831986472213375, -0.0044060585651061912611,
      -0.056781361275105741695, -0.05301239180993209296, -0.0081135599954040036593,
      0.082620863216626172712,  -0.140601188052718606,   0.89151751415532932839,
      -3.3646134918763502402,   9.3789894183297812483,   -21.251230814127005974,
      37.220484057271778405,    -47.818103057390100106,  42.601494701768507715,
      -22.41918477857912224,    0.46353794929315335407,  10.874854724146576791,
      -10.585651116411908626,   5.6583356944241171304,   -1.8712056172047472961,
      0.36148312639092299582,   -0.031493218198051594233};
  static constexpr double kSplit = 134217729;
};

#if defined(__CUDACC__)

// arctangent: of 0 to 1; exponential: of 0 and below; logarithm: of normal numbers above 0;
// normal_tail: the standard normal distribution's mass beyond 0 or more.
template <int kTerm = 0>
SSLFAST_HOST_DEVICE float arctangent_over_x(float square) {
  constexpr int kTerms = sizeof Series<float>::kArctangent / sizeof(float);
  constexpr float kCoefficient = Series<float>::kArctangent[kTerm];
  if constexpr (kTerm + 1 == kTerms)
    return kCoefficient;
  else
    return fmaf(square, arctangent_over_x<kTerm + 1>(square), kCoefficient);
}
SSLFAST_HOST_DEVICE float arctangent(float x) { return x * arctangent_over_x(x * x); }
SSLFAST_HOST_DEVICE double arctangent(double x) { return atan(x); }
// x / y: a GPU rounds a quotient of float32 in a dozen steps and a branch, and is within two units
// of it in two. y is 0 or normal.
SSLFAST_HOST_DEVICE float ratio(float x, float y) {
#if defined(__CUDA_ARCH__)
  return __fdividef(x, y);
#else
  return x / y;
#endif
}
SSLFAST_HOST_DEVICE double ratio(double x, double y) { return x / y; }
SSLFAST_HOST_DEVICE float exponential(float x) { return expf(x); }
SSLFAST_HOST_DEVICE double exponential(double x) { return exp(x); }
SSLFAST_HOST_DEVICE float logarithm(float x) { return logf(x); }
SSLFAST_HOST_DEVICE double logarithm(double x) { return log(x); }
SSLFAST_HOST_DEVICE float normal_tail(float v) { return normcdff(-v); }
SSLFAST_HOST_DEVICE double normal_tail(double v) { return normcdf(-v); }

template <class V>
struct ScalarOf {
  using Type = V;
};

#else

template <class V>
struct ScalarOf;
template <>
struct ScalarOf<Vec<float> > {
  using Type = float;
};
template <>
struct ScalarOf<Vec<double> > {
  using Type = double;
};

template <class T, int kTerms>
SSLFAST_INLINE Vec<T> horner(const T (&coefficients)[kTerms], Vec<T> x) {
  Vec<T> sum = broadcast(coefficients[kTerms - 1]);
#pragma GCC unroll 32
  for (int i = kTerms - 2; i >= 0; --i) sum = sum * x + coefficients[i];
  return sum;
}

template <class V, class T = typename ScalarOf<V>::Type>
SSLFAST_INLINE V arctangent(V x) {
  return x * horner(Series<T>::kArctangent, x * x);
}

template <class V>
SSLFAST_INLINE V ratio(V x, V y) {
  return x / y;
}

template <class V, class T = typename ScalarOf<V>::Type>
SSLFAST_INLINE V exponential(V x) {
  return exp<T>(x);
}

// x = 2^e m with m in [sqrt(1/2), sqrt(2)): log x = e log 2 + 2 atanh((m - 1) / (m + 1)).
template <class V, class T = typename ScalarOf<V>::Type>
SSLFAST_INLINE V logarithm(V x) {
  using L = Lanes<T>;
  constexpr T kRootOfHalf = T(0.70710678118654752440);
  const IntVec<T> root = reinterpret_cast<IntVec<T> >(broadcast(kRootOfHalf));
  const IntVec<T> bits = reinterpret_cast<IntVec<T> >(x);
  const IntVec<T> exponent = (bits - root) >> L::kMantissa;
  const V m = reinterpret_cast<V>(bits - (exponent << L::kMantissa));
  const V e = __builtin_convertvector(exponent, V);
  const V ratio = (m - T(1)) / (m + T(1));
  const V rest = (ratio + ratio) * horner(Series<T>::kLogarithm, ratio * ratio);
  return e * Exp<T>::kLog2High + (e * Exp<T>::kLog2Low + rest);
}

// erfc(v / sqrt(2)) / 2. exp(-v^2 / 2) of a rounded square would lose a digit for each digit of the
// square: it is taken from the square of half of the digits, which is exact, and the rest.
template <class V, class T = typename ScalarOf<V>::Type>
SSLFAST_INLINE V normal_tail(V v) {
  v = min<T>(v, broadcast(T(1e3)));  // it is 0 from 39 on
  const V wide = rounded<T>(v * Series<T>::kSplit);
  const V high = wide - rounded<T>(wide - v);
  const V scaled = exp<T>(T(-0.5) * high * high) * exp<T>(T(0.5) * (high - v) * (high + v));
  const V t = T(1) / (T(0.35355339059327376220) * v + T(1));
  return T(0.5) * scaled * t * horner(Series<T>::kComplement, t);
}

#endif

}  // namespace sslfast::SSLFAST_TARGET
