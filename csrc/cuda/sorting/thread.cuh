// Sorting networks of short lists: a thread takes a list. Network, length and relaxation are
// constants.
//
// The wires stay in registers, and of short lists the shares too and, where one vector is enough,
// their gradient. What else there is for each comparator lies in shared memory, a column a thread:
// the differences, which the last sweep needs; the gaps between wires, where every group has a
// vector of its own; and the shares of a teacher.
#pragma once

#include "cuda/opaque.cuh"
#include "cuda/sorting/kept.cuh"
#include "cuda/sorting/network.cuh"

namespace sslfast::device {

constexpr int kListBlock = 32;  // a warp, so that few lists spread over many processors
// Comparators that a thread keeps its shares and their gradient of in registers; fewer where every
// group has a vector of its own. And those of whose teacher it keeps the shares.
constexpr int kMostInRegisters = 78, kMostOfSeveral = 66, kMostTaught = 80;

// A number for each comparator. kTag tells arrays apart, which would be one in shared memory.
template <int kSwaps, bool kShared, int kTag>
struct PerSwap;
template <int kSwaps, int kTag>
struct PerSwap<kSwaps, false, kTag> {
  float at[kSwaps + 1];

  SSLFAST_HOST_DEVICE float& operator[](int s) { return at[s]; }
  SSLFAST_HOST_DEVICE float operator[](int s) const { return at[s]; }

  // Between sweeps: their magnitudes, kept as well, would need a register each.
  __device__ __forceinline__ void forget_what_follows() {
#pragma unroll
    for (int s = 0; s < kSwaps; ++s) make_opaque(at[s]);
  }
};
template <int kSwaps, int kTag>
struct PerSwap<kSwaps, true, kTag> {
  volatile float* column;  // else what is written would stay in a register until it is read

  __device__ __forceinline__ PerSwap() {
    __shared__ float all[(kSwaps + 1) * kListBlock];
    column = all + threadIdx.x;
  }
  __device__ __forceinline__ void forget_what_follows() {}
  SSLFAST_HOST_DEVICE volatile float& operator[](int s) { return column[s * kListBlock]; }
  SSLFAST_HOST_DEVICE float operator[](int s) const { return column[s * kListBlock]; }
};

// What to do, as every kernel is told.
template <class Rule>
struct ThreadLists {
  long long lists;
  int num_groups;
  unsigned long long groups;  // of each rank, in four bits
  Rule rule, teacher_rule;

  __device__ __forceinline__ long long mine() const {
    return (long long)blockIdx.x * kListBlock + threadIdx.x;
  }
  // Of group g; not kept for the next one.
  __device__ __forceinline__ unsigned long long ranks() const {
    unsigned long long packed = groups;
    make_opaque(packed);
    return packed;
  }
  __device__ __forceinline__ int stride() const {
    int numbers = num_groups;
    make_opaque(numbers);
    return numbers;
  }
};

template <class Net, class Rule>
struct ThreadSort {
  static constexpr int n = Net::kLength, S = Net::kSwaps;
  using Wires = float[n];
  // One of shares and slopes (gradients of the shares) moves out, or of one vector both.
  static constexpr bool kLong = S > kMostInRegisters, kLongOfSeveral = S > kMostOfSeveral;
  using Shares = PerSwap<S, kLongOfSeveral, 0>;
  using Slopes = PerSwap<S, !kLongOfSeveral, 1>;
  using PairShares = PerSwap<S, kLong, 2>;
  using PairSlopes = PerSwap<S, kLong, 3>;
  using Differences = PerSwap<S, true, 4>;  // for the last sweep
  using Gaps = PerSwap<S, true, 5>;
  using TeacherShares = PerSwap<S, true, 6>;
  static constexpr bool kTeaches = S <= kMostTaught;  // else shared memory would not hold them
  using Lists = ThreadLists<Rule>;

  static __device__ __forceinline__ void load(const float* from, Wires& x) {
#pragma unroll
    for (int i = 0; i < n; ++i) x[i] = from[i];
  }
  static __device__ __forceinline__ void store(float* to, const Wires& x) {
#pragma unroll
    for (int i = 0; i < n; ++i) to[i] = x[i];
  }
  static __device__ __forceinline__ void indicate(const Lists& of, int g, Wires& v) {
    const unsigned long long ranks = of.ranks();
#pragma unroll
    for (int i = 0; i < n; ++i) v[i] = int(ranks >> (4 * i) & 15) == g ? 1.0f : 0.0f;
  }

  template <class Kept>
  static __device__ __forceinline__ void sort(const float* values, const Rule& rule, Wires& x,
                                              Kept& shares) {
    load(values, x);
    sort_sweep(Net(), rule, x, shares, signed_shares(shares));
  }

  // What the gradient of the values needs beside that of the shares.
  template <class Kept>
  struct Sorted {
    Differences differences;
    Kept shares;

    __device__ __forceinline__ void sort(const Lists& of, const float* values) {
      Wires x;
      load(values, x);
      sort_sweep(Net(), of.rule, x, differences, signed_shares(shares, differences));
    }
    template <class S4>
    __device__ __forceinline__ void write_gradient(const Lists& of, const float* dordered,
                                                   const S4& slopes, float* dvalues) {
      Wires dx;
#pragma unroll
      for (int i = 0; i < n; ++i) dx[i] = dordered ? dordered[i] : 0.0f;
      shares.forget_what_follows();
      gradient_sweep(Net(), of.rule, dx, differences, signed_shares(shares, differences), slopes);
      store(dvalues, dx);
    }
  };

  // ordered (B, n) and masses (B, n, G); either may be absent.
  static __device__ __forceinline__ void forward(const Lists& of, const float* values,
                                                 float* ordered, float* masses) {
    const long long b = of.mine();
    if (b >= of.lists) return;
    Wires x;
    PairShares shares;
    sort(values + b * n, of.rule, x, shares);
    if (ordered) store(ordered + b * n, x);
    if (!masses) return;
    float* to = masses + b * n * of.num_groups;
#pragma unroll 1
    for (int g = 0; g < of.num_groups; ++g) {
      indicate(of, g, x);
      shares.forget_what_follows();
      mass_sweep(Net(), of.rule, x, shares, signed_shares(shares));
      const int stride = of.stride();
#pragma unroll
      for (int i = 0; i < n; ++i) to[i * stride + g] = x[i];
    }
  }

  // dvalues (B, n) from the gradients of what `forward` gives; either may be absent.
  static __device__ __forceinline__ void backward(const Lists& of, const float* values,
                                                  const float* dordered, const float* dmasses,
                                                  float* dvalues) {
    const long long b = of.mine();
    if (b >= of.lists) return;
    Sorted<Shares> sorted;
    sorted.sort(of, values + b * n);
    Slopes slopes;
    const float* from = dmasses + b * n * of.num_groups;
    share_gradient(of, dmasses ? of.num_groups : 0, sorted.shares, slopes,
                   [&](int g, Wires&, Wires& dv) {
                     const int stride = of.stride();
#pragma unroll
                     for (int i = 0; i < n; ++i) dv[i] = from[i * stride + g];
                   });
    sorted.write_gradient(of, dordered ? dordered + b * n : nullptr, slopes, dvalues + b * n);
  }

  // loss (B) of the masses against those of a teacher (B, n), or against the groups that the wires
  // lie in where it is absent; dvalues (B, n) if wanted.
  static __device__ __forceinline__ void cross_entropy(const Lists& of, const float* values,
                                                       const float* teacher, float* loss,
                                                       float* dvalues) {
    const long long b = of.mine();
    if (b >= of.lists) return;
    Wires target;
    TeacherShares taught;
    if (kTeaches && teacher) sort(teacher + b * n, of.teacher_rule, target, taught);
    Sorted<Shares> sorted;
    sorted.sort(of, values + b * n);
    Slopes slopes;
    float total = 0;
    share_gradient(of, of.num_groups, sorted.shares, slopes, [&](int g, Wires& v, Wires& dv) {
      indicate(of, g, target);
      if (kTeaches && teacher) mass_sweep(Net(), of.rule, target, taught, signed_shares(taught));
#pragma unroll
      for (int i = 0; i < n; ++i) {
        const NegativeLog<float> log(v[i]);
        total += target[i] * log.value;
        dv[i] = target[i] * log.inverse * (-1.0f / n);
      }
    });
    loss[b] = total / n;
    if (dvalues) sorted.write_gradient(of, nullptr, slopes, dvalues + b * n);
  }

  // The same of two groups without a teacher: what is not in the second is in the first.
  static __device__ __forceinline__ void pair_entropy(const Lists& of, const float* values,
                                                      float* loss, float* dvalues) {
    const long long b = of.mine();
    if (b >= of.lists) return;
    Sorted<PairShares> sorted;
    sorted.sort(of, values + b * n);
    Wires v;
    PairSlopes slopes;
    const auto shares = signed_shares(sorted.shares);
    indicate(of, 1, v);
    sorted.shares.forget_what_follows();
    mass_sweep(Net(), of.rule, v, sorted.shares, shares, slopes);
    float total = 0;
    const unsigned long long ranks = of.ranks();
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const bool second = ranks >> (4 * i) & 1;
      const NegativeLog<float> log(second ? v[i] : 1 - v[i]);
      total += log.value;
      v[i] = log.inverse * (second ? -1.0f / n : 1.0f / n);
    }
    loss[b] = total / n;
    if (!dvalues) return;
    sorted.shares.forget_what_follows();
    cotangent_sweep<false>(Net(), of.rule, v, sorted.shares, shares, slopes, slopes);
    sorted.write_gradient(of, nullptr, slopes, dvalues + b * n);
  }

 private:
  // The gradient of the shares, summed over the groups: start(g, v, dv) is given the masses of
  // group g and says their gradient.
  template <class F>
  static __device__ __forceinline__ void share_gradient(const Lists& of, int num_groups,
                                                        Shares& shares, Slopes& slopes,
                                                        const F& start) {
    Wires v, dv;
    Gaps gaps;
#pragma unroll
    for (int s = 0; s < S; ++s) slopes[s] = 0;
#pragma unroll 1
    for (int g = 0; g < num_groups; ++g) {
      indicate(of, g, v);
      shares.forget_what_follows();
      mass_sweep(Net(), of.rule, v, shares, signed_shares(shares), gaps);
      start(g, v, dv);
      shares.forget_what_follows();
      cotangent_sweep<true>(Net(), of.rule, dv, shares, signed_shares(shares), gaps, slopes);
    }
  }
};

}  // namespace sslfast::device
