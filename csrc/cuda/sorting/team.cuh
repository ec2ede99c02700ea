// Sorting networks of any length: a block takes a list, and spreads the comparators of a layer over
// its threads.
//
// The shape of the block: x threads take the comparators of a layer, y vectors are carried at a
// time where there are several. Wires and what is kept for each comparator lie in shared memory
// where they fit, which the launcher knows, else in scratch memory of the block.
#pragma once

#include "cuda/shared.cuh"
#include "cuda/sorting/kept.cuh"

namespace sslfast::device {

constexpr int kTeamThreads = 256;  // at most

// What to do, as every kernel is told. Numbers are those of sslfast/cuda/sorting/launch.py.
struct TeamShape {
  const int* pairs;   // (S, 2)
  const int* begins;  // (layers + 1): the first comparator of each
  const int* bounds;  // (G + 1): the first rank of each group
  long long lists;
  int layers, length, num_groups;
  bool shared_wires, shared_swaps;
  void* scratch;
  long long scratch_stride;  // numbers of a block
};

// The comparators of a layer by the threads (x); what follows sees what they wrote.
struct TeamNetwork {
  const int* pairs;
  const int* begins;
  int layers, first, step;

  template <class F>
  SSLFAST_HOST_DEVICE void forward(const F& f) const {
    for (int layer = 0; layer < layers; ++layer) run(layer, f);
  }
  template <class F>
  SSLFAST_HOST_DEVICE void backward(const F& f) const {
    for (int layer = layers - 1; layer >= 0; --layer) run(layer, f);
  }

 private:
  template <class F>
  SSLFAST_HOST_DEVICE void run(int layer, const F& f) const {
    const int end = begins[layer + 1];
    for (int s = begins[layer] + first; s < end; s += step) f(s, pairs[2 * s], pairs[2 * s + 1]);
#if defined(__CUDA_ARCH__)
    __syncthreads();
#endif
  }
};

// What the block has for a list: x, dx and target wires a vector, and four numbers a comparator.
template <class A>
struct TeamMemory {
  A *x, *v, *target;                  // (n), (y, n), (y, n)
  A *kept, *slopes, *gaps, *teacher;  // (S), (S), (y, S), (S)
};

template <class Rule, class A>
struct TeamSort {
  const TeamShape& of;
  const Rule rule, teacher_rule;
  int n, S, thread, threads;
  TeamNetwork all, mine;  // shared out over all threads, or over those of a vector
  TeamMemory<A> at;

  __device__ __forceinline__ TeamSort(const TeamShape& shape, const Rule& rule,
                                      const Rule& teacher_rule, bool masses, bool taught)
      : of(shape), rule(rule), teacher_rule(teacher_rule), n(shape.length) {
    S = of.begins[of.layers];
    thread = threadIdx.y * blockDim.x + threadIdx.x;
    threads = blockDim.x * blockDim.y;
    all = {of.pairs, of.begins, of.layers, thread, threads};
    mine = {of.pairs, of.begins, of.layers, int(threadIdx.x), int(blockDim.x)};
    A* in_block = static_cast<A*>(launched_shared_memory());
    A* in_scratch = static_cast<A*>(of.scratch) + blockIdx.x * of.scratch_stride;
    const auto take = [&](bool shared, long long numbers) {
      A* taken = shared ? in_block : in_scratch;
      in_block += shared ? numbers : 0;
      in_scratch += shared ? 0 : numbers;
      return taken;
    };
    const long long vectors = masses ? blockDim.y : 0;
    at.x = take(of.shared_wires, n);
    at.v = take(of.shared_wires, vectors * n);
    at.target = take(of.shared_wires, taught ? vectors * n : 0);
    at.kept = take(of.shared_swaps, S);
    at.slopes = take(of.shared_swaps, masses ? S : 0);
    at.gaps = take(of.shared_swaps, vectors * S);
    at.teacher = take(of.shared_swaps, taught ? S : 0);
  }

  // f(i) for every i below `count`, shared out over all threads.
  template <class F>
  __device__ __forceinline__ void for_each(int count, const F& f) const {
    for (int i = thread; i < count; i += threads) f(i);
    __syncthreads();
  }
  // f(i) for every wire, shared out over the threads of a vector.
  template <class F>
  __device__ __forceinline__ void for_each_wire(const F& f) const {
    for (int i = threadIdx.x; i < n; i += blockDim.x) f(i);
    __syncthreads();
  }

  __device__ __forceinline__ bool in_group(int rank, int g) const {
    return of.bounds[g] <= rank && rank < of.bounds[g + 1];
  }
  // The vector of group g, in the place of this thread's vector; none beyond the last group.
  __device__ __forceinline__ A* indicator(A* vectors, int g) const {
    A* v = vectors + (long long)threadIdx.y * n;
    for_each_wire([&](int i) { v[i] = g < of.num_groups && in_group(i, g) ? A(1) : A(0); });
    return v;
  }
  __device__ __forceinline__ A* gaps() const { return at.gaps + (long long)threadIdx.y * S; }

  __device__ __forceinline__ void sort(const A* values, const Rule& by, A* shares) const {
    A* x = at.x;
    for_each(n, [&](int i) { x[i] = values[i]; });
    sort_sweep(all, by, x, shares, signed_shares(shares));
  }

  // dvalues from the gradients of the sorted values and of the shares, whose place is taken.
  template <class S4>
  __device__ __forceinline__ void write_gradient(const A* values, const A* dordered,
                                                 const S4& slopes, A* dvalues) const {
    A *x = at.x, *kept = at.kept;
    for_each(n, [&](int i) { x[i] = values[i]; });
    sort_sweep(all, rule, x, kept, Recomputed());
    for_each(n, [&](int i) { x[i] = dordered ? dordered[i] : A(0); });
    gradient_sweep(all, rule, x, kept, Recomputed(), slopes);
    for_each(n, [&](int i) { dvalues[i] = x[i]; });
  }

  // Sums the gradient of the shares over the groups: start(g, v) turns the masses of group g into
  // their gradient.
  template <class F>
  __device__ __forceinline__ void share_gradient(const F& start) const {
    A *kept = at.kept, *slopes = at.slopes, *gap = gaps();
    for_each(S, [&](int s) { slopes[s] = 0; });
    for (int first = 0; first < of.num_groups; first += blockDim.y) {
      const int g = first + threadIdx.y;
      A* v = indicator(at.v, g);
      mass_sweep(mine, rule, v, kept, signed_shares(kept), gap);
      start(g, v);
      cotangent_sweep<false>(mine, rule, v, kept, signed_shares(kept), gap, gap);
      for_each(S, [&](int s) {
        A sum = slopes[s];
        for (int y = 0; y < int(blockDim.y); ++y) sum += at.gaps[(long long)y * S + s];
        slopes[s] = sum;
      });
    }
  }

  // The sum over all threads, the same in each of them, in an order that never changes.
  __device__ __forceinline__ A sum(A value) const {
    __shared__ A of_thread[kTeamThreads];
    of_thread[thread] = value;
    __syncthreads();
    for (int width = kTeamThreads / 2; width > 0; width /= 2) {
      if (thread < width && thread + width < threads)
        of_thread[thread] += of_thread[thread + width];
      __syncthreads();
    }
    const A total = of_thread[0];
    __syncthreads();
    return total;
  }
};

// ordered (B, n) and masses (B, n, G); either may be absent.
template <class Rule, class A>
__device__ __forceinline__ void team_forward(const TeamShape& of, const Rule& rule, const A* values,
                                             A* ordered, A* masses) {
  const TeamSort<Rule, A> team(of, rule, rule, masses != nullptr, false);
  const long long n = of.length;
  for (long long b = blockIdx.x; b < of.lists; b += gridDim.x) {
    A* shares = team.at.kept;
    team.sort(values + b * n, rule, shares);
    if (ordered) team.for_each(n, [&](int i) { ordered[b * n + i] = team.at.x[i]; });
    if (!masses) continue;
    A* to = masses + b * n * of.num_groups;
    for (int first = 0; first < of.num_groups; first += blockDim.y) {
      const int g = first + threadIdx.y;
      A* v = team.indicator(team.at.v, g);
      mass_sweep(team.mine, rule, v, shares, signed_shares(shares));
      team.for_each_wire([&](int i) {
        if (g < of.num_groups) to[(long long)i * of.num_groups + g] = v[i];
      });
    }
  }
}

// dvalues (B, n) from the gradients of what team_forward gives; either may be absent.
template <class Rule, class A>
__device__ __forceinline__ void team_backward(const TeamShape& of, const Rule& rule,
                                              const A* values, const A* dordered, const A* dmasses,
                                              A* dvalues) {
  const TeamSort<Rule, A> team(of, rule, rule, dmasses != nullptr, false);
  const long long n = of.length;
  for (long long b = blockIdx.x; b < of.lists; b += gridDim.x) {
    const A* dlist = dordered ? dordered + b * n : nullptr;
    if (!dmasses) {
      team.write_gradient(values + b * n, dlist, NoSlopes(), dvalues + b * n);
      continue;
    }
    const A* from = dmasses + b * n * of.num_groups;
    team.sort(values + b * n, rule, team.at.kept);
    team.share_gradient([&](int g, A* v) {
      team.for_each_wire(
          [&](int i) { v[i] = g < of.num_groups ? from[(long long)i * of.num_groups + g] : A(0); });
    });
    team.write_gradient(values + b * n, dlist, team.at.slopes, dvalues + b * n);
  }
}

// loss (B) of the masses against those of a teacher (B, n), or against the groups that the wires
// lie in where it is absent; dvalues (B, n) if wanted.
template <class Rule, class A>
__device__ __forceinline__ void team_cross_entropy(const TeamShape& of, const Rule& rule,
                                                   const Rule& teacher_rule, const A* values,
                                                   const A* teacher, A* loss, A* dvalues) {
  const TeamSort<Rule, A> team(of, rule, teacher_rule, true, teacher != nullptr);
  const long long n = of.length;
  for (long long b = blockIdx.x; b < of.lists; b += gridDim.x) {
    A *taught = team.at.teacher, total = 0;
    if (teacher) team.sort(teacher + b * n, teacher_rule, taught);
    team.sort(values + b * n, rule, team.at.kept);
    team.share_gradient([&](int g, A* v) {
      A* target = nullptr;
      if (teacher) {
        target = team.indicator(team.at.target, g);
        mass_sweep(team.mine, rule, target, taught, signed_shares(taught));
      }
      team.for_each_wire([&](int i) {
        const bool in_group = g < of.num_groups && team.in_group(i, g);
        const A wanted = teacher ? target[i] : A(in_group);
        const NegativeLog<A> log(v[i]);
        total += wanted * log.value;
        v[i] = wanted * log.inverse * (A(-1) / A(n));
      });
    });
    total = team.sum(total);
    if (team.thread == 0) loss[b] = total / A(n);
    if (dvalues) team.write_gradient(values + b * n, nullptr, team.at.slopes, dvalues + b * n);
  }
}

}  // namespace sslfast::device
