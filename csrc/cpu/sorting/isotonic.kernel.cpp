// Soft ranks and soft sorting for one instruction set (compiled once for each). A row is walked by
// one thread; blocks are accumulated in double, since it is their comparison that decides.
#include "cpu/sorting/isotonic.h"

#include "sslfast/sorting/isotonic.h"
#include "sslfast/tiles.h"

namespace sslfast::SSLFAST_ISA {

// A row in the order of its values.
template <class T>
struct Permuted {
  T* x;
  const int64_t* order;

  SSLFAST_INLINE T& operator[](int i) const { return x[order[i]]; }
};

// f(worker, row), in tasks of about 4096 values: short lists come many at a time.
template <class T, class F>
void for_each_list(const IsotonicRank<T>& p, const F& f) {
  const int64_t group = p.length < 4096 ? 4096 / p.length : 1;
  for_each(p.pool, (p.rows + group - 1) / group, [&](int worker, int64_t task) {
    const int64_t last = (task + 1) * group;
    for (int64_t row = task * group; row < last && row < p.rows; ++row) f(worker, row);
  });
}

template <class Rule, class T>
void forward_by(const IsotonicRank<T>& p) {
  for_each_list(p, [&](int worker, int64_t row) {
    const int64_t at = row * p.length;
    auto* states =
        reinterpret_cast<typename Rule::State*>(p.states + worker * p.length * kIsotonicState);
    static_assert(sizeof(*states) <= kIsotonicState * sizeof(double));
    const Rule rule{Ascending<double, const T*>(p.x + at), p.strength};
    T* out = p.out + at;
    const int64_t* order = p.order + at;
    if (p.sort)
      isotonic_forward(rule, int(p.length), p.blocks + at, states,
                       [=](int i, double value) { out[i] = T(value); });
    else
      isotonic_forward(rule, int(p.length), p.blocks + at, states,
                       [=](int i, double value) { out[order[i]] = T(value); });
  });
}

template <class Rule, class T>
void backward_by(const IsotonicRank<T>& p) {
  for_each_list(p, [&](int, int64_t row) {
    const int64_t at = row * p.length;
    const int64_t* order = p.order + at;
    const Permuted<const T> x{p.x + at, order}, dranks{p.dout + at, order};
    const Permuted<T> dx{p.out + at, order};
    const auto write = [=](int i, double value) { dx[i] = T(value); };
    const T* dsorted = p.dout + at;
    if (p.sort)
      isotonic_backward<Rule>(x, p.strength, int(p.length), p.blocks + at, dsorted, write);
    else
      isotonic_backward<Rule>(x, p.strength, int(p.length), p.blocks + at, dranks, write);
  });
}

template <class T>
void isotonic_rank_forward(const IsotonicRank<T>& p) {
  using X = const T*;
  if (p.sort)
    p.kl ? forward_by<SortKl<double, X>>(p) : forward_by<SortL2<double, X>>(p);
  else
    p.kl ? forward_by<RankKl<double, X>>(p) : forward_by<RankL2<double, X>>(p);
}

template <class T>
void isotonic_rank_backward(const IsotonicRank<T>& p) {
  using X = Permuted<const T>;
  if (p.sort)
    p.kl ? backward_by<SortKl<double, X>>(p) : backward_by<SortL2<double, X>>(p);
  else
    p.kl ? backward_by<RankKl<double, X>>(p) : backward_by<RankL2<double, X>>(p);
}

extern const IsotonicKernels isotonic_kernels;
const IsotonicKernels isotonic_kernels = {
    isotonic_rank_forward<float>, isotonic_rank_forward<double>, isotonic_rank_backward<float>,
    isotonic_rank_backward<double>};

}  // namespace sslfast::SSLFAST_ISA
