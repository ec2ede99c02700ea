// Device code of l2_normalize: y = x / max(|x|, eps) and its gradient.
//
// A row is read once: what does not fit the registers comes from the cache the second time. Sums
// are float32 (float64 for float64 rows); rows may lie any stride apart.
#pragma once

#include "cuda/rows/rows.cuh"
#include "sslfast/rows/l2_normalize.h"

namespace sslfast::device {

template <class T>
struct Forward {
  const T* x;    // (N, D), rows x_stride apart
  T* y;          // (N, D)
  Acc<T>* norm;  // (N)
  long long rows, features, x_stride;
  Acc<T> eps;

  template <int kWidth>
  __device__ void run() const {
    using Packs = Pack<T, kWidth>;
    const int packs = int(features / kWidth);
    for_each_row(rows, [&](long long row) {
      const T* x_row = x + row * x_stride;
      T* y_row = y + row * features;
      Packs kept[kHeld];
      Acc<T> squares = 0;
      const auto add = [&](const Packs& pack) {
#pragma unroll
        for (int e = 0; e < kWidth; ++e) squares += widen(pack.at[e]) * widen(pack.at[e]);
      };
      for_each_pack(
          packs, [&](int p, int slot) { add(kept[slot] = load_pack<T, kWidth>(x_row, p)); },
          [&](int p) { add(load_pack<T, kWidth>(x_row, p)); });
      const Acc<T> length = square_root(row_sum(squares));
      const UnitRow<Acc<T>> unit(length, eps);
      const auto write = [&](int p, Packs pack) {
#pragma unroll
        for (int e = 0; e < kWidth; ++e) narrow(unit.normalized(widen(pack.at[e])), pack.at[e]);
        store_pack(y_row, p, pack);
      };
      for_each_pack(
          packs, [&](int p, int slot) { write(p, kept[slot]); },
          [&](int p) { write(p, load_pack<T, kWidth>(x_row, p)); });
      if (threadIdx.x == 0) norm[row] = length;
    });
  }
};

template <class T>
struct Backward {
  const T* dy;         // (N, D), rows dy_stride apart
  const T* x;          // (N, D), rows x_stride apart
  const Acc<T>* norm;  // (N)
  T* dx;               // (N, D)
  long long rows, features, dy_stride, x_stride;
  Acc<T> eps;

  template <int kWidth>
  __device__ void run() const {
    using Packs = Pack<T, kWidth>;
    const int packs = int(features / kWidth);
    for_each_row(rows, [&](long long row) {
      const T *dy_row = dy + row * dy_stride, *x_row = x + row * x_stride;
      T* dx_row = dx + row * features;
      Packs kept_dy[kHeld], kept_x[kHeld];
      const UnitRow<Acc<T>> unit(norm[row], eps);
      Acc<T> product = 0;
      const auto add = [&](const Packs& g, const Packs& v) {
#pragma unroll
        for (int e = 0; e < kWidth; ++e)
          product += unit.normalized(widen(v.at[e])) * widen(g.at[e]);
      };
      for_each_pack(
          packs,
          [&](int p, int slot) {
            add(kept_dy[slot] = load_pack<T, kWidth>(dy_row, p),
                kept_x[slot] = load_pack<T, kWidth>(x_row, p));
          },
          [&](int p) { add(load_pack<T, kWidth>(dy_row, p), load_pack<T, kWidth>(x_row, p)); });
      const Acc<T> along = unit.along(row_sum(product));
      const auto write = [&](int p, const Packs& g, Packs v) {
#pragma unroll
        for (int e = 0; e < kWidth; ++e) {
          const Acc<T> y = unit.normalized(widen(v.at[e]));
          narrow(bounded(unit, unit.gradient(widen(g.at[e]), y, along)), v.at[e]);
        }
        store_pack(dx_row, p, v);
      };
      for_each_pack(
          packs, [&](int p, int slot) { write(p, kept_dy[slot], kept_x[slot]); },
          [&](int p) {
            write(p, load_pack<T, kWidth>(dy_row, p), load_pack<T, kWidth>(x_row, p));
          });
    });
  }

  // A row below eps has the gradient dy / eps, which float16 cannot hold: it saturates. NaN stays.
  static __device__ Acc<T> bounded(const UnitRow<Acc<T>>& unit, Acc<T> dx) {
    constexpr Acc<T> kMost = kSaturation<T>;
    if (kMost > 0 && unit.clamped) return dx > kMost ? kMost : dx < -kMost ? -kMost : dx;
    return dx;
  }
};

}  // namespace sslfast::device

// One pair of kernels for a dtype: both widths of load in each, since only the pointers tell.
#define SSLFAST_L2_NORMALIZE_KERNELS(T, name)                                                   \
  extern "C" __global__ void __launch_bounds__(sslfast::device::kMaxThreads,                    \
                                               sslfast::device::kMinBlocks)                     \
      l2_normalize_fwd_kernel_##name(const void* x, void* y, void* norm, long long rows,        \
                                     long long features, long long x_stride, double eps) {      \
    using namespace sslfast::device;                                                            \
    const Forward<T> forward{(const T*)x, (T*)y,    (Acc<T>*)norm, rows,                        \
                             features,    x_stride, Acc<T>(eps)};                               \
    if (is_wide(forward.x, x_stride) && features % kWide<T> == 0)                               \
      forward.run<kWide<T>>();                                                                  \
    else                                                                                        \
      forward.run<1>();                                                                         \
  }                                                                                             \
  extern "C" __global__ void __launch_bounds__(sslfast::device::kMaxThreads,                    \
                                               sslfast::device::kMinBlocks)                     \
      l2_normalize_bwd_kernel_##name(const void* dy, const void* x, const void* norm, void* dx, \
                                     long long rows, long long features, long long dy_stride,   \
                                     long long x_stride, double eps) {                          \
    using namespace sslfast::device;                                                            \
    const Backward<T> backward{(const T*)dy, (const T*)x, (const Acc<T>*)norm,                  \
                               (T*)dx,       rows,        features,                             \
                               dy_stride,    x_stride,    Acc<T>(eps)};                         \
    if (is_wide(backward.x, x_stride) && is_wide(backward.dy, dy_stride) &&                     \
        features % kWide<T> == 0)                                                               \
      backward.run<kWide<T>>();                                                                 \
    else                                                                                        \
      backward.run<1>();                                                                        \
  }

SSLFAST_L2_NORMALIZE_KERNELS(sslfast::device::Half, float16)
SSLFAST_L2_NORMALIZE_KERNELS(sslfast::device::BFloat16, bfloat16)
SSLFAST_L2_NORMALIZE_KERNELS(float, float32)
SSLFAST_L2_NORMALIZE_KERNELS(double, float64)
