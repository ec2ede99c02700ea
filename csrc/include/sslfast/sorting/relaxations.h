// How a relaxed comparator weighs its two values, for the CPU and for the GPU. V is a number or a
// vector of them.
//
// Petersen et al. 2021 (logistic, ART) and 2022 (reciprocal, Cauchy, optimal). With d = b - a and
// v = steepness |d|, the ordered value keeps its wire by 1 - small and the other one by
// small = f(-|d|) <= 1/2. `small` is computed directly and keeps its digits where it is tiny.
#pragma once

#include "sslfast/elementary.h"
#include "sslfast/sorting/relaxation.h"

namespace sslfast::SSLFAST_TARGET {

// Tails that fall faster than 1 / d: masses come close to 0 and 1.
SSLFAST_HOST_DEVICE constexpr bool saturates(Relaxation relaxation) {
  return relaxation >= Relaxation::kLogistic;
}

template <class V>
SSLFAST_HOST_DEVICE V magnitude(V d) {
  return d > V{} ? d : V{} - d;  // +0 of both zeros
}

template <Relaxation kRelaxation, class T>
struct Relaxed {
  T steepness, art_lambda;

  static constexpr bool kSaturates = saturates(kRelaxation);
  static constexpr T kArtEps = T(1e-10);

  // f(-|d|)
  template <class V>
  SSLFAST_HOST_DEVICE V small(V d) const {
    const V v = steepness * magnitude(d);
    if constexpr (kRelaxation == Relaxation::kCauchy) {
      const V inverse = ratio(V{} + T(1), v);
      const V angle = T(0.31830988618379067154) * arctangent(v < inverse ? v : inverse);
      return v < inverse ? T(0.5) - angle : angle;
    } else if constexpr (kRelaxation == Relaxation::kReciprocal) {
      return ratio(V{} + T(1), T(2) + v);
    } else if constexpr (kRelaxation == Relaxation::kOptimal) {
      const V tail = ratio(V{} + T(0.0625), v);
      return v < V{} + T(0.25) ? T(0.5) - v : tail;
    } else if constexpr (kRelaxation == Relaxation::kLogistic) {
      return logistic(v);
    } else if constexpr (kRelaxation == Relaxation::kLogisticPhi) {
      return logistic(v * root(d));
    } else {
      return normal_tail(v);
    }
  }

  // f'(d), which is even, with small = small(d) at hand
  template <class V>
  SSLFAST_HOST_DEVICE V slope(V d, V small) const {
    if constexpr (kRelaxation == Relaxation::kCauchy) {
      const V v = steepness * d;
      return ratio(V{} + T(0.31830988618379067154) * steepness, v * v + T(1));
    } else if constexpr (kRelaxation == Relaxation::kReciprocal) {
      return steepness * small * small;
    } else if constexpr (kRelaxation == Relaxation::kOptimal) {
      const V tail = T(16) * small * small;
      return steepness * (steepness * magnitude(d) < V{} + T(0.25) ? V{} + T(1) : tail);
    } else if constexpr (kRelaxation == Relaxation::kLogistic) {
      return steepness * (small * (T(1) - small));
    } else if constexpr (kRelaxation == Relaxation::kLogisticPhi) {
      const V size = magnitude(d);
      const V weight = root(d) * (T(1) - art_lambda * ratio(size, size + kArtEps));
      return steepness * (small * (T(1) - small)) * weight;
    } else {
      const V v = steepness * d;
      return T(0.39894228040143267794) * steepness * exponential(T(-0.5) * v * v);
    }
  }

 private:
  template <class V>
  SSLFAST_HOST_DEVICE static V logistic(V v) {
    const V e = exponential(-v);
    return ratio(e, e + T(1));
  }
  // (|d| + eps)^-lambda
  template <class V>
  SSLFAST_HOST_DEVICE V root(V d) const {
    return exponential(-art_lambda * logarithm(magnitude(d) + kArtEps));
  }
};

}  // namespace sslfast::SSLFAST_TARGET
