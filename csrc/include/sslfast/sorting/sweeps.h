// The sweeps over a relaxed sorting network, for the CPU and for the GPU. V is a number or a vector
// of numbers of as many lists.
//
// A comparator (p, q) with d = x_q - x_p is a symmetric doubly stochastic 2 x 2 block: an exchange
// where d < 0, and then small = f(-|d|) <= 1/2 of each wire goes to the other. It serves values,
// indicators and cotangents, forwards and backwards; sums of parts that are not negative stay so,
// and keep their digits.
//
//   S1 forward, x          d kept
//   S2 backward, v         column sums of P: starts as an indicator of ranks; w = v_p - v_q kept
//   S3 forward, dv         dalpha += (dv_p - dv_q) w
//   S4 backward, dx        g = (dalpha - d (dx_p - dx_q)) f'(d), dx_p - g and dx_q + g
//
// A Network has forward(f) and backward(f), which call f(s, p, q) for every comparator s in order
// or in reverse. Arrays of wires and of comparators are whatever has operator[]; where `small` is
// not kept (Recomputed), it is computed again from d.
#pragma once

#include "sslfast/sorting/relaxations.h"

namespace sslfast::SSLFAST_TARGET {

// Comparators from a table of pairs.
struct TableNetwork {
  const int* pairs;  // (swaps, 2)
  int swaps;

  template <class F>
  SSLFAST_HOST_DEVICE void forward(const F& f) const {
    for (int s = 0; s < swaps; ++s) f(s, pairs[2 * s], pairs[2 * s + 1]);
  }
  template <class F>
  SSLFAST_HOST_DEVICE void backward(const F& f) const {
    for (int s = swaps - 1; s >= 0; --s) f(s, pairs[2 * s], pairs[2 * s + 1]);
  }
};

// `small` of every comparator, kept from S1.
template <class V>
struct Kept {
  V* at;

  SSLFAST_HOST_DEVICE void keep(int s, V small) const { at[s] = small; }
  template <class Rule>
  SSLFAST_HOST_DEVICE V of(int s, V, const Rule&) const {
    return at[s];
  }
};
// Or computed again, where memory is dearer.
struct Recomputed {
  template <class V>
  SSLFAST_HOST_DEVICE void keep(int, V) const {}
  template <class V, class Rule>
  SSLFAST_HOST_DEVICE V of(int, V d, const Rule& rule) const {
    return rule.small(d);
  }
};

template <class V>
struct Pair {
  V p, q;
};

template <class V>
SSLFAST_HOST_DEVICE Pair<V> mixed(V p, V q, V d, V small) {
  const V a = d < V{} ? q : p, b = d < V{} ? p : q;
  const V part = small * (b - a);
  return {a + part, b - part};
}

// S1. x: values, sorted softly in place.
template <class Network, class Rule, class X, class D, class Small>
SSLFAST_HOST_DEVICE void sort_sweep(const Network& network, const Rule& rule, X&& x, D&& d,
                                    const Small& small) {
  network.forward([&](int s, int p, int q) {
    const auto a = x[p], b = x[q];
    const auto apart = b - a;
    const auto part = rule.small(apart);
    d[s] = apart;
    small.keep(s, part);
    const auto mix = mixed(a, b, apart, part);
    x[p] = mix.p;
    x[q] = mix.q;
  });
}

// S2. v: an indicator of ranks, and then the mass that every wire has in them. w may be the array
// that S3 writes.
template <class Network, class Rule, class X, class D, class Small, class W>
SSLFAST_HOST_DEVICE void mass_sweep(const Network& network, const Rule& rule, X&& v, const D& d,
                                    const Small& small, W&& w) {
  network.backward([&](int s, int p, int q) {
    const auto a = v[p], b = v[q];
    w[s] = a - b;
    const auto apart = d[s];
    const auto mix = mixed(a, b, apart, small.of(s, apart, rule));
    v[p] = mix.p;
    v[q] = mix.q;
  });
}

// S2 without a gradient to come.
template <class Network, class Rule, class X, class D, class Small>
SSLFAST_HOST_DEVICE void mass_sweep(const Network& network, const Rule& rule, X&& v, const D& d,
                                    const Small& small) {
  network.backward([&](int s, int p, int q) {
    const auto apart = d[s];
    const auto mix = mixed(v[p], v[q], apart, small.of(s, apart, rule));
    v[p] = mix.p;
    v[q] = mix.q;
  });
}

// S3. dv: gradient of the masses. Writes dalpha, or adds to it.
template <bool kAdd, class Network, class Rule, class X, class D, class Small, class W, class A>
SSLFAST_HOST_DEVICE void cotangent_sweep(const Network& network, const Rule& rule, X&& dv,
                                         const D& d, const Small& small, const W& w, A&& dalpha) {
  network.forward([&](int s, int p, int q) {
    const auto a = dv[p], b = dv[q];
    const auto product = (a - b) * w[s];
    if constexpr (kAdd)
      dalpha[s] += product;
    else
      dalpha[s] = product;
    const auto apart = d[s];
    const auto mix = mixed(a, b, apart, small.of(s, apart, rule));
    dv[p] = mix.p;
    dv[q] = mix.q;
  });
}

// S4. dx: gradient of the sorted values, and then of the values.
template <class Network, class Rule, class X, class D, class Small, class A>
SSLFAST_HOST_DEVICE void gradient_sweep(const Network& network, const Rule& rule, X&& dx,
                                        const D& d, const Small& small, const A& dalpha) {
  network.backward([&](int s, int p, int q) {
    const auto a = dx[p], b = dx[q];
    const auto apart = d[s];
    const auto part = small.of(s, apart, rule);
    const auto g = (dalpha[s] - apart * (a - b)) * rule.slope(apart, part);
    const auto mix = mixed(a, b, apart, part);
    dx[p] = mix.p - g;
    dx[q] = mix.q + g;
  });
}

// -log m, continued by its tangent below kLeastMass, and minus its derivative.
template <class V>
struct NegativeLog {
  V value, inverse;

  template <class T = typename ScalarOf<V>::Type>
  SSLFAST_HOST_DEVICE explicit NegativeLog(V mass) {
    constexpr T kLeastMass = T(1e-12);
    const V least = V{} + kLeastMass;
    const V inside = mass < least ? least : mass;
    inverse = T(1) / inside;
    value = (inside - mass) * inverse - logarithm(inside);
  }
};

}  // namespace sslfast::SSLFAST_TARGET
