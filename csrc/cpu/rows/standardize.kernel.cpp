// y = (x - mean) r and its gradient, for one instruction set (compiled once for each).
//
// A task owns a strip of kWidth columns, of all rows or of one group of them, and sweeps it a few
// rows at a time with its sums at hand in the first cache. The sums of a sweep, of a few elements
// about their column's first, are of the precision of x; those of sweeps are double, so that
// neither a large mean nor many rows cost digits.
#include "cpu/rows/standardize.h"

#include "sslfast/host_device.h"
#include "sslfast/tiles.h"

namespace sslfast::SSLFAST_ISA {

constexpr int kWidth = 128;
constexpr int kTogether = 8;  // rows of a sweep

template <int kValue>
struct Count {
  static constexpr int value = kValue;
};

// A part of x, or of a matrix like it.
template <class T>
struct Strip {
  const Standardize<T>& p;
  int64_t first_row, rows, first;  // first: its first column
  int width;

  template <class U>
  U* row(U* matrix, int64_t i) const {
    return matrix + (first_row + i) * p.features + first;
  }
};

// Moments of a strip, the mean about its column's first element. A constant column has a mean and a
// square of exactly 0, whatever its value.
struct Moments {
  double count, mean[kWidth], square[kWidth];  // square: sum of the squared deviations

  // Chan, Golub and LeVeque 1979.
  template <class T>
  void merge(double other_count, const double* other_mean, const T* other_square, int width) {
    const double total = count + other_count;
    const double share = other_count / total, weight = count * share;
    for (int d = 0; d < width; ++d) {
      const double delta = other_mean[d] - mean[d];
      mean[d] += delta * share;
      square[d] += other_square[d] + delta * delta * weight;
    }
    count = total;
  }
};

// f(first, count) for kTogether rows at a time, then for each that is left: sums are loaded and
// stored once for all of them.
template <class F>
SSLFAST_INLINE void sweep(int64_t rows, const F& f) {
  int64_t i = 0;
  for (; i + kTogether <= rows; i += kTogether) f(i, Count<kTogether>());
  for (; i < rows; ++i) f(i, Count<1>());
}

// In pairs: the sum of equal numbers is exact, and so is their mean.
template <int kCount, class T>
SSLFAST_INLINE T mean_of(const T (&x)[kCount]) {
  if constexpr (kCount == 1) {
    return x[0];
  } else {
    T half[kCount / 2];
    for (int r = 0; r < kCount / 2; ++r) half[r] = x[2 * r] + x[2 * r + 1];
    return mean_of<kCount / 2>(half) * T(0.5);
  }
}

// The rows that a sweep takes together stay in registers between their mean and their squares,
// which are about that mean: neither a large mean nor one element far off costs the others digits.
template <class T>
Moments moments_of(const Strip<T>& s) {
  const T* anchor = s.p.x + s.first;
  Moments moments{};
  sweep(s.rows, [&](int64_t i, auto count) {
    constexpr int kCount = decltype(count)::value;
    const T* x = s.row(s.p.x, i);
    double mean[kWidth];
    T square[kWidth];
    for (int d = 0; d < s.width; ++d) {
      T offset[kCount], squares = 0;
      for (int r = 0; r < kCount; ++r) offset[r] = x[r * s.p.features + d];
      const T middle = mean_of<kCount>(offset);
      for (int r = 0; r < kCount; ++r) offset[r] -= middle;
      const T rest = mean_of<kCount>(offset);
      for (int r = 0; r < kCount; ++r) squares += (offset[r] - rest) * (offset[r] - rest);
      mean[d] = (double(middle) - double(anchor[d])) + double(rest);
      square[d] = squares;
    }
    moments.merge(kCount, mean, square, s.width);
  });
  return moments;
}

// 1 / sqrt(variance + eps) or 1 / (sqrt(variance) + eps); 0 where that is infinite.
template <class T>
double scale_of(const Standardize<T>& p, double variance) {
  if (!p.unit_variance) return 1;
  const double divisor =
      p.eps_on_deviation ? square_root(variance) + p.eps : square_root(variance + p.eps);
  return divisor == 0 ? 0 : 1 / divisor;
}

// q of dscale/dvariance = -q scale^3 / 2, as in the contract's gradient.
template <class T>
double steepness_of(const Standardize<T>& p, double variance) {
  if (!p.unit_variance) return 0;
  if (!p.eps_on_deviation) return 1;
  const double deviation = square_root(variance);
  return deviation == 0 ? 0 : (deviation + p.eps) / deviation;
}

// What an element needs of its column. The mean is in two parts: x - mean has all its digits.
template <class T>
struct Scaling {
  T mean[kWidth], rest[kWidth], scale[kWidth];

  explicit Scaling(const Strip<T>& s) {
    for (int d = 0; d < s.width; ++d) {
      mean[d] = s.p.mean[s.first + d];
      rest[d] = s.p.given ? T(0) : s.p.rest[s.first + d];
      scale[d] = T(scale_of(s.p, double(s.p.variance[s.first + d])));
    }
  }
  SSLFAST_INLINE T centred(T x, int d) const { return (x - mean[d]) - rest[d]; }
};

template <class T>
void write_statistics(const Strip<T>& s, const Moments& moments) {
  for (int d = 0; d < s.width; ++d) {
    const double anchor = s.p.x[s.first + d];
    const T mean = T(anchor + moments.mean[d]);
    s.p.mean[s.first + d] = mean;
    s.p.rest[s.first + d] = T((anchor - double(mean)) + moments.mean[d]);
    s.p.variance[s.first + d] = T(moments.square[d] / double(s.p.rows - s.p.ddof));
  }
}

template <class T>
void write_standardized(const Strip<T>& s) {
  const Scaling<T> column(s);
  for (int64_t i = 0; i < s.rows; ++i) {
    const T* x = s.row(s.p.x, i);
    T* y = s.row(s.p.out, i);
    for (int d = 0; d < s.width; ++d) y[d] = column.centred(x[d], d) * column.scale[d];
  }
}

// Sums of dy and of z dy, z = (x - mean) scale.
struct Sums {
  double dy[kWidth], along[kWidth];
};

template <class T>
Sums sums_of(const Strip<T>& s) {
  const Scaling<T> column(s);
  Sums sums{};
  sweep(s.rows, [&](int64_t i, auto count) {
    const T *x = s.row(s.p.x, i), *dy = s.row(s.p.dy, i);
    for (int d = 0; d < s.width; ++d) {
      T total = 0, along = 0;
      for (int r = 0; r < count.value; ++r) {
        const int64_t at = r * s.p.features + d;
        total += dy[at];
        along += column.centred(x[at], d) * dy[at];
      }
      sums.dy[d] += total;
      sums.along[d] += double(along) * column.scale[d];
    }
  });
  return sums;
}

template <class T>
void write_own_gradient(const Strip<T>& s, const Sums& sums) {
  const Scaling<T> column(s);
  T mean[kWidth], along[kWidth], slope[kWidth], shift[kWidth];
  const double rows = double(s.p.rows), freedom = double(s.p.rows - s.p.ddof);
  for (int d = 0; d < s.width; ++d) {
    mean[d] = T(sums.dy[d] / rows);
    along[d] = T(steepness_of(s.p, double(s.p.variance[s.first + d])) * sums.along[d] / freedom);
    slope[d] = T(2 * double(s.p.dvariance[s.first + d]) / freedom);
    shift[d] = T(double(s.p.dmean[s.first + d]) / rows);
  }
  for (int64_t i = 0; i < s.rows; ++i) {
    const T *x = s.row(s.p.x, i), *dy = s.row(s.p.dy, i);
    T* dx = s.row(s.p.out, i);
    for (int d = 0; d < s.width; ++d) {
      const T centred = column.centred(x[d], d);
      const T radial = centred * column.scale[d] * along[d];
      dx[d] = column.scale[d] * ((dy[d] - mean[d]) - radial) + (centred * slope[d] + shift[d]);
    }
  }
}

template <class T>
void write_given_gradient(const Strip<T>& s) {
  const Scaling<T> column(s);
  for (int64_t i = 0; i < s.rows; ++i) {
    const T* dy = s.row(s.p.dy, i);
    T* dx = s.row(s.p.out, i);
    for (int d = 0; d < s.width; ++d) dx[d] = column.scale[d] * dy[d];
  }
}

template <class T>
void write_gradient_of_statistics(const Strip<T>& s, const Sums& sums) {
  for (int d = 0; d < s.width; ++d) {
    const double variance = s.p.variance[s.first + d];
    const double scale = scale_of(s.p, variance);
    s.p.dgiven_mean[s.first + d] = T(-scale * sums.dy[d]);
    s.p.dgiven_variance[s.first + d] =
        T(-0.5 * sums.along[d] * steepness_of(s.p, variance) * scale * scale);
  }
}

// f(strip, group) for every strip of every group of rows.
template <class T, class F>
void for_each_strip(const Standardize<T>& p, int64_t groups, const F& f) {
  const int64_t strips = (p.features + kWidth - 1) / kWidth;
  const int64_t group_rows = groups == 1 ? p.rows : standardize_group_rows(p.features);
  for_each(p.pool, groups * strips, [&](int, int64_t task) {
    const int64_t group = task / strips, first = task % strips * kWidth;
    const int64_t begin = group * group_rows, left = p.rows - begin;
    const int64_t width = p.features - first < kWidth ? p.features - first : kWidth;
    f(Strip<T>{p, begin, left < group_rows ? left : group_rows, first, int(width)}, group);
  });
}

// The two lines of sums that a group of rows leaves.
struct Partial {
  double *one, *other;

  template <class T>
  Partial(const Strip<T>& s, int64_t group)
      : one(s.p.partial + 2 * group * s.p.features + s.first), other(one + s.p.features) {}

  void write(const double* a, const double* b, int width) const {
    for (int d = 0; d < width; ++d) one[d] = a[d];
    for (int d = 0; d < width; ++d) other[d] = b[d];
  }
};

template <class T>
Moments merged_moments(const Strip<T>& s, int64_t groups) {
  const int64_t group_rows = standardize_group_rows(s.p.features);
  Moments moments{};
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t left = s.p.rows - group * group_rows;
    const Partial partial(s, group);
    moments.merge(double(left < group_rows ? left : group_rows), partial.one, partial.other,
                  s.width);
  }
  return moments;
}

template <class T>
Sums merged_sums(const Strip<T>& s, int64_t groups) {
  Sums sums{};
  for (int64_t group = 0; group < groups; ++group) {
    const Partial partial(s, group);
    for (int d = 0; d < s.width; ++d) sums.dy[d] += partial.one[d];
    for (int d = 0; d < s.width; ++d) sums.along[d] += partial.other[d];
  }
  return sums;
}

template <class T>
void standardize_forward(const Standardize<T>& p) {
  const int64_t groups = standardize_groups(p.rows, p.features);
  if (!p.given && groups == 1) {
    for_each_strip(p, 1, [&](const Strip<T>& s, int64_t) {
      write_statistics(s, moments_of(s));
      write_standardized(s);
    });
    return;
  }
  if (!p.given) {
    for_each_strip(p, groups, [&](const Strip<T>& s, int64_t group) {
      const Moments moments = moments_of(s);
      Partial(s, group).write(moments.mean, moments.square, s.width);
    });
    for_each_strip(
        p, 1, [&](const Strip<T>& s, int64_t) { write_statistics(s, merged_moments(s, groups)); });
  }
  for_each_strip(p, groups, [&](const Strip<T>& s, int64_t) { write_standardized(s); });
}

template <class T>
void own_backward(const Standardize<T>& p, int64_t groups) {
  if (groups == 1) {
    for_each_strip(p, 1, [&](const Strip<T>& s, int64_t) { write_own_gradient(s, sums_of(s)); });
    return;
  }
  for_each_strip(p, groups, [&](const Strip<T>& s, int64_t group) {
    const Sums sums = sums_of(s);
    Partial(s, group).write(sums.dy, sums.along, s.width);
  });
  for_each_strip(p, 1, [&](const Strip<T>& s, int64_t) {
    const Sums sums = merged_sums(s, groups);
    Partial(s, 0).write(sums.dy, sums.along, s.width);  // where the next loop reads them
  });
  for_each_strip(p, groups,
                 [&](const Strip<T>& s, int64_t) { write_own_gradient(s, merged_sums(s, 1)); });
}

template <class T>
void given_backward(const Standardize<T>& p, int64_t groups) {
  const bool learn = p.dgiven_mean != nullptr;
  for_each_strip(p, groups, [&](const Strip<T>& s, int64_t group) {
    write_given_gradient(s);
    if (!learn) return;
    const Sums sums = sums_of(s);
    if (groups == 1)
      write_gradient_of_statistics(s, sums);
    else
      Partial(s, group).write(sums.dy, sums.along, s.width);
  });
  if (!learn || groups == 1) return;
  for_each_strip(p, 1, [&](const Strip<T>& s, int64_t) {
    write_gradient_of_statistics(s, merged_sums(s, groups));
  });
}

template <class T>
void standardize_backward(const Standardize<T>& p) {
  const int64_t groups = standardize_groups(p.rows, p.features);
  if (p.given)
    given_backward(p, groups);
  else
    own_backward(p, groups);
}

extern const StandardizeKernels standardize_kernels;
const StandardizeKernels standardize_kernels = {
    standardize_forward<float>, standardize_forward<double>, standardize_backward<float>,
    standardize_backward<double>};

}  // namespace sslfast::SSLFAST_ISA
