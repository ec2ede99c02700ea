// Relaxed sorting networks, for one instruction set (compiled once for each): a vector holds as
// many lists as it has lanes, and a wire is a vector.
#include "cpu/sorting/network.h"

#include "sslfast/sorting/sweeps.h"
#include "sslfast/tiles.h"

namespace sslfast::SSLFAST_ISA {

// Arrays of one thread, for the lists of one vector.
template <class T>
struct Arrays {
  Vec<T>* wires[4];  // (n) each
  Vec<T>* swaps[6];  // (S) each

  // `memory` is aligned to vectors.
  Arrays(T* memory, int64_t length, int64_t swap_count) {
    Vec<T>* next = reinterpret_cast<Vec<T>*>(memory);
    for (Vec<T>*& array : wires) array = next, next += length;
    for (Vec<T>*& array : swaps) array = next, next += swap_count;
  }
  static int64_t numbers(int64_t length, int64_t swap_count) {
    return (4 * length + 6 * swap_count) * kLanes<T>;
  }
};

// Lists first ... of a (B, n) matrix, or every `step`-th number of a (B, n, G) one, to wires and
// back. Lanes without a list are 0.
template <class T>
struct Lists {
  int64_t first;
  int count, length;

  void load(const T* from, int64_t step, Vec<T>* wires) const {
    for (int i = 0; i < length; ++i) wires[i] = Vec<T>{};
    for (int lane = 0; lane < count; ++lane) {
      const T* list = from + (first + lane) * length * step;
      for (int i = 0; i < length; ++i) wires[i][lane] = list[i * step];
    }
  }
  void store(const Vec<T>* wires, int64_t step, T* to) const {
    for (int lane = 0; lane < count; ++lane) {
      T* list = to + (first + lane) * length * step;
      for (int i = 0; i < length; ++i) list[i * step] = wires[i][lane];
    }
  }
};

template <Relaxation kRelaxation, class T>
class Sorter {
  using V = Vec<T>;
  using Rule = Relaxed<kRelaxation, T>;

 public:
  Sorter(const SortingProblem<T>& p, T* memory)
      : p_(p), network_{p.pairs, p.swaps}, rule_{T(p.steepness), T(p.art_lambda)} {
    const Arrays<T> arrays(memory, p.length, p.swaps);
    x_ = arrays.wires[0], v_ = arrays.wires[1], target_ = arrays.wires[2];
    dx_ = arrays.wires[3];
    d_ = arrays.swaps[0], dalpha_ = arrays.swaps[1], w_ = arrays.swaps[2];
    small_ = {arrays.swaps[3]};
    teacher_d_ = arrays.swaps[4], teacher_small_ = {arrays.swaps[5]};
  }

  void run(int64_t first) {
    const int64_t left = p_.lists - first;
    lists_ = {first, int(left < kLanes<T> ? left : kLanes<T>), p_.length};
    lists_.load(p_.values, 1, x_);
    sort_sweep(network_, rule_, x_, d_, small_);
    if (p_.ordered) lists_.store(x_, 1, p_.ordered);
    bool weights_learn = false;
    if (p_.cross_entropy) {
      cross_entropy();
      weights_learn = true;
    } else if (p_.masses) {
      for (int g = 0; g < p_.groups; ++g) {
        indicate(v_, g);
        mass_sweep(network_, rule_, v_, d_, small_);
        lists_.store(v_, p_.groups, p_.masses + g);
      }
    } else if (p_.dmasses) {
      for (int g = 0; g < p_.groups; ++g) {
        indicate(v_, g);
        mass_sweep(network_, rule_, v_, d_, small_, w_);
        lists_.load(p_.dmasses + g, p_.groups, v_);
        carry(g == 0);
      }
      weights_learn = true;
    }
    if (p_.dvalues) gradient(weights_learn);
  }

 private:
  void indicate(V* v, int group) const {
    for (int i = 0; i < p_.length; ++i)
      v[i] = broadcast(T(i >= p_.bounds[group] && i < p_.bounds[group + 1]));
  }

  // S3 of the cotangents in v_.
  void carry(bool first) {
    if (first)
      cotangent_sweep<false>(network_, rule_, v_, d_, small_, w_, dalpha_);
    else
      cotangent_sweep<true>(network_, rule_, v_, d_, small_, w_, dalpha_);
  }

  void cross_entropy() {
    const T share = T(1) / T(p_.length);
    V total{};
    if (p_.teacher) {
      const Rule taught{T(p_.teacher_steepness), T(p_.art_lambda)};
      lists_.load(p_.teacher, 1, x_);
      sort_sweep(network_, taught, x_, teacher_d_, teacher_small_);
    }
    // Of two groups the second one's masses serve both, unless 1 - mass would lose its digits.
    const bool shared = !Rule::kSaturates && p_.groups == 2 && !p_.teacher;
    for (int g = shared; g < p_.groups; ++g) {
      indicate(v_, g);
      masses_with_gradient();
      if (p_.teacher) {
        indicate(target_, g);
        mass_sweep(network_, rule_, target_, teacher_d_, teacher_small_);
      }
      V of_group{};  // sums of sums keep more digits
      for (int i = 0; i < p_.length; ++i) {
        const bool own = i >= p_.bounds[g] && i < p_.bounds[g + 1];
        const bool complement = shared && !own;
        const NegativeLog<V> log(complement ? T(1) - v_[i] : v_[i]);
        const V target = p_.teacher ? target_[i] : broadcast(T(own || complement));
        of_group += target * log.value;
        const V cotangent = target * log.inverse * share;
        v_[i] = complement ? cotangent : -cotangent;
      }
      total += of_group;
      if (p_.dvalues) carry(g == int(shared));
    }
    const V mean = total * share;
    for (int lane = 0; lane < lists_.count; ++lane)
      p_.cross_entropy[lists_.first + lane] = mean[lane];
  }

  void masses_with_gradient() {
    if (p_.dvalues)
      mass_sweep(network_, rule_, v_, d_, small_, w_);
    else
      mass_sweep(network_, rule_, v_, d_, small_);
  }

  void gradient(bool weights_learn) {
    if (!weights_learn)
      for (int s = 0; s < p_.swaps; ++s) dalpha_[s] = V{};
    if (p_.dordered)
      lists_.load(p_.dordered, 1, dx_);
    else
      for (int i = 0; i < p_.length; ++i) dx_[i] = V{};
    gradient_sweep(network_, rule_, dx_, d_, small_, dalpha_);
    lists_.store(dx_, 1, p_.dvalues);
  }

  const SortingProblem<T>& p_;
  TableNetwork network_;
  Rule rule_;
  Lists<T> lists_;
  V *x_, *v_, *target_, *dx_;
  V *d_, *dalpha_, *w_, *teacher_d_;
  Kept<V> small_, teacher_small_;
};

// Lists are independent: any thread may take any vector of them.
template <Relaxation kRelaxation, class T>
void sort_lists(const SortingProblem<T>& p) {
  const int64_t numbers = Arrays<T>::numbers(p.length, p.swaps);
  const int64_t vectors = (p.lists + kLanes<T> - 1) / kLanes<T>;
  constexpr int64_t kAlign = kVectorBytes / int64_t(sizeof(T));
  T* memory = p.workspace.template take<T>(p.pool.workers * (numbers + kAlign) + kAlign);
  const auto aligned = [](T* at) {
    return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(at) + kVectorBytes - 1) /
                                kVectorBytes * kVectorBytes);
  };
  for_each(p.pool, vectors, [&](int worker, int64_t vector) {
    Sorter<kRelaxation, T> sorter(p, aligned(memory + worker * (numbers + kAlign)));
    sorter.run(vector * kLanes<T>);
  });
}

extern const SortingKernels sorting_kernels;
const SortingKernels sorting_kernels = {
    {sort_lists<Relaxation::kCauchy, float>, sort_lists<Relaxation::kReciprocal, float>,
     sort_lists<Relaxation::kOptimal, float>, sort_lists<Relaxation::kLogistic, float>,
     sort_lists<Relaxation::kLogisticPhi, float>, sort_lists<Relaxation::kGaussian, float>},
    {sort_lists<Relaxation::kCauchy, double>, sort_lists<Relaxation::kReciprocal, double>,
     sort_lists<Relaxation::kOptimal, double>, sort_lists<Relaxation::kLogistic, double>,
     sort_lists<Relaxation::kLogisticPhi, double>, sort_lists<Relaxation::kGaussian, double>}};

}  // namespace sslfast::SSLFAST_ISA
