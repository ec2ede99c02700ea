// Soft ranks and soft sorting by isotonic regression, for the CPU and for the GPU.
//
// A row in ascending order falls into blocks of consecutive positions; pooling adjacent blocks that
// violate the order of their solutions, from left to right, finds them in O(n) steps. What a block
// is described by, when two of them violate the order, and what the elements of one become, is a
// rule: RankL2, RankKl, SortL2 or SortKl. A is the accumulator; X, G and the like are whatever can
// be indexed by a position: pointers, or views of a strided or permuted row.
#pragma once

#include "sslfast/elementary.h"
#include "sslfast/host_device.h"

namespace sslfast::SSLFAST_TARGET {

#if !defined(__CUDACC__)  // a row is walked one value at a time; elementary.h has those of vectors
SSLFAST_HOST_DEVICE float exponential(float x) { return __builtin_expf(x); }
SSLFAST_HOST_DEVICE double exponential(double x) { return __builtin_exp(x); }
SSLFAST_HOST_DEVICE float logarithm(float x) { return __builtin_logf(x); }
SSLFAST_HOST_DEVICE double logarithm(double x) { return __builtin_log(x); }
#endif

// A row in ascending order, seen from its first value: far from 0 the differences keep the digits.
template <class A, class X>
struct Ascending {
  X x;
  A least;

  SSLFAST_HOST_DEVICE explicit Ascending(X row) : x(row), least(A(row[0])) {}
  SSLFAST_HOST_DEVICE A operator[](int i) const { return A(x[i]) - least; }
};

// Positions first .. end - 1.
struct Span {
  int first, end;

  SSLFAST_HOST_DEVICE int count() const { return end - first; }
};

// rank_i = mean of the ranks of the block + (x_i - mean of the block) / strength.
template <class A, class X>
struct RankL2 {
  struct State {
    A sum;
  };
  Ascending<A, X> x;
  A strength;

  SSLFAST_HOST_DEVICE State single(int i) const { return {x[i]}; }
  // mean_right - mean_left <= strength (rank_right - rank_left), times both counts: exact where the
  // sums are, so that ties of both sides are pooled.
  SSLFAST_HOST_DEVICE bool violate(State l, Span left, State r, Span right) const {
    const A m = A(left.count()), n = A(right.count());
    return r.sum * m - l.sum * n <= strength * (A(0.5) * (m + n) * m * n);
  }
  SSLFAST_HOST_DEVICE State merged(State l, Span, State r, Span) const { return {l.sum + r.sum}; }

  template <class Out>
  SSLFAST_HOST_DEVICE void write(State s, Span block, const Out& out) const {
    const A mean = s.sum / A(block.count()), rank = A(0.5) * (A(block.first) + A(block.end) + 1);
    for (int i = block.first; i < block.end; ++i) out(i, rank + (x[i] - mean) / strength);
  }

  template <class G, class Out>
  SSLFAST_HOST_DEVICE static void gradient(X, A strength, Span block, const G& g, const Out& out) {
    if (block.count() == 1) return out(block.first, A(0));
    A mean = 0;
    for (int i = block.first; i < block.end; ++i) mean += A(g[i]);
    mean /= A(block.count());
    for (int i = block.first; i < block.end; ++i) out(i, (A(g[i]) - mean) / strength);
  }
};

// sorted_i = mean of the block + (i - mean of its positions) / strength.
template <class A, class X>
struct SortL2 {
  using State = typename RankL2<A, X>::State;
  Ascending<A, X> x;
  A strength;

  SSLFAST_HOST_DEVICE State single(int i) const { return {x[i]}; }
  SSLFAST_HOST_DEVICE bool violate(State l, Span left, State r, Span right) const {
    const A m = A(left.count()), n = A(right.count());
    return (r.sum * m - l.sum * n) * strength >= A(0.5) * (m + n) * m * n;
  }
  SSLFAST_HOST_DEVICE State merged(State l, Span, State r, Span) const { return {l.sum + r.sum}; }

  template <class Out>
  SSLFAST_HOST_DEVICE void write(State s, Span block, const Out& out) const {
    const A mean = s.sum / A(block.count()) + x.least;
    const A middle = A(0.5) * (A(block.first) + A(block.end) - 1);
    for (int i = block.first; i < block.end; ++i) out(i, mean + (A(i) - middle) / strength);
  }

  template <class G, class Out>
  SSLFAST_HOST_DEVICE static void gradient(X, A, Span block, const G& g, const Out& out) {
    A mean = 0;
    for (int i = block.first; i < block.end; ++i) mean += A(g[i]);
    mean /= A(block.count());
    for (int i = block.first; i < block.end; ++i) out(i, mean);
  }
};

// rank_i = (sum of the ranks of the block) exp(x_i / strength) / sum_block exp(x / strength). The
// sum is kept relative to its largest term, the block's last, so that it is between 1 and the
// count; what underflows beside it is far below the order it would violate.
template <class A, class X>
struct RankKl {
  struct State {
    A sum;
  };
  Ascending<A, X> x;
  A strength;

  SSLFAST_HOST_DEVICE static A ranks(Span block) {
    return A(0.5) * A(block.count()) * (A(block.first) + A(block.end) + 1);
  }
  SSLFAST_HOST_DEVICE A decay(Span left, Span right) const {
    return exponential((x[left.end - 1] - x[right.end - 1]) / strength);
  }

  SSLFAST_HOST_DEVICE State single(int) const { return {A(1)}; }
  SSLFAST_HOST_DEVICE bool violate(State l, Span left, State r, Span right) const {
    return l.sum * decay(left, right) * ranks(right) >= r.sum * ranks(left);
  }
  SSLFAST_HOST_DEVICE State merged(State l, Span left, State r, Span right) const {
    return {l.sum * decay(left, right) + r.sum};
  }

  template <class Out>
  SSLFAST_HOST_DEVICE void write(State s, Span block, const Out& out) const {
    const A scale = ranks(block) / s.sum, most = x[block.end - 1];
    for (int i = block.first; i < block.end; ++i)
      out(i, scale * exponential((x[i] - most) / strength));
  }

  template <class G, class Out>
  SSLFAST_HOST_DEVICE static void gradient(X row, A strength, Span block, const G& g,
                                           const Out& out) {
    if (block.count() == 1) return out(block.first, A(0));
    const A most = A(row[block.end - 1]);
    A sum = 0, along = 0;
    for (int i = block.first; i < block.end; ++i) {
      const A share = exponential((A(row[i]) - most) / strength);
      sum += share;
      along += share * A(g[i]);
    }
    const A mean = along / sum, scale = ranks(block) / sum;
    for (int i = block.first; i < block.end; ++i) {
      const A share = exponential((A(row[i]) - most) / strength);
      out(i, scale * share * ((A(g[i]) - mean) / strength));
    }
  }
};

// sorted_i = i / strength + log sum_block exp(-j / strength) - log sum_block exp(-x_j). Both sums
// are kept relative to their first terms, the largest.
template <class A, class X>
struct SortKl {
  struct State {
    A sum, positions;
  };
  Ascending<A, X> x;
  A strength;

  SSLFAST_HOST_DEVICE State single(int) const { return {A(1), A(1)}; }
  SSLFAST_HOST_DEVICE bool violate(State l, Span left, State r, Span right) const {
    const A apart = x[right.first] - x[left.first] - A(left.count()) / strength;
    const A decay = exponential(apart < 0 ? apart : -apart);
    const A lower = l.positions * r.sum, upper = r.positions * l.sum;
    return apart < 0 ? lower <= upper * decay : lower * decay <= upper;
  }
  SSLFAST_HOST_DEVICE State merged(State l, Span left, State r, Span right) const {
    const A gap = x[right.first] - x[left.first];
    return {l.sum + exponential(-gap) * r.sum,
            l.positions + exponential(-A(left.count()) / strength) * r.positions};
  }

  template <class Out>
  SSLFAST_HOST_DEVICE void write(State s, Span block, const Out& out) const {
    const A start = x[block.first] + logarithm(s.positions / s.sum) + x.least;
    for (int i = block.first; i < block.end; ++i) out(i, start + A(i - block.first) / strength);
  }

  template <class G, class Out>
  SSLFAST_HOST_DEVICE static void gradient(X row, A, Span block, const G& g, const Out& out) {
    const A least = A(row[block.first]);
    A sum = 0, total = 0;
    for (int i = block.first; i < block.end; ++i) {
      sum += exponential(least - A(row[i]));
      total += A(g[i]);
    }
    for (int i = block.first; i < block.end; ++i)
      out(i, total / sum * exponential(least - A(row[i])));
  }
};

// Finds the blocks of n values, calls out(i, value) for every position, and leaves in blocks[i] the
// first position of the block of i. `states` is scratch for n of them; `blocks` is the stack of
// first positions while blocks are being pooled.
template <class Rule, class Blocks, class States, class Out>
SSLFAST_HOST_DEVICE void isotonic_forward(const Rule& rule, int n, Blocks blocks, States states,
                                          const Out& out) {
  int top = 0;
  for (int i = 0; i < n; ++i) {
    typename Rule::State state = rule.single(i);
    Span span{i, i + 1};
    for (; top > 0; --top) {
      const Span left{blocks[top - 1], span.first};
      const typename Rule::State other = states[top - 1];
      if (!rule.violate(other, left, state, span)) break;
      state = rule.merged(other, left, state, span);
      span.first = left.first;
    }
    blocks[top] = span.first;
    states[top++] = state;
  }
  // From the last block back: block t starts at position t or later, so the stack below is intact.
  for (int end = n; top > 0;) {
    const Span span{blocks[--top], end};
    rule.write(states[top], span, out);
    for (int i = span.first; i < span.end; ++i) blocks[i] = span.first;
    end = span.first;
  }
}

// out(i, dx of the value at position i), from g[i], the gradient of what position i became.
template <class Rule, class A, class X, class Blocks, class G, class Out>
SSLFAST_HOST_DEVICE void isotonic_backward(X row, A strength, int n, Blocks blocks, const G& g,
                                           const Out& out) {
  for (Span span{0, 0}; span.first < n; span.first = span.end) {
    for (span.end = span.first + 1; span.end < n && blocks[span.end] == span.first;) ++span.end;
    Rule::gradient(row, strength, span, g, out);
  }
}

}  // namespace sslfast::SSLFAST_TARGET
