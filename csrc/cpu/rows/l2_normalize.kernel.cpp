// y = x / max(|x|, eps) and its gradient, for one instruction set (compiled once for each).
#include "cpu/rows/l2_normalize.h"

#include "sslfast/rows/l2_normalize.h"
#include "sslfast/tiles.h"

namespace sslfast::SSLFAST_ISA {

template <class T>
void normalize_forward(const Normalize<T>& p) {
  for_each_row(p.pool, p.rows, [&](int64_t i) {
    const T* x = p.x + i * p.features;
    T* y = p.out + i * p.features;
    const T norm = square_root(dot(x, x, p.features));
    const UnitRow<T> row(norm, T(p.eps));
    for (int64_t d = 0; d < p.features; ++d) y[d] = row.normalized(x[d]);
    p.norm[i] = norm;
  });
}

template <class T>
void normalize_backward(const Normalize<T>& p) {
  for_each_row(p.pool, p.rows, [&](int64_t i) {
    const T *x = p.x + i * p.features, *dy = p.dy + i * p.features;
    T* dx = p.out + i * p.features;  // holds y until its product with dy is known
    const UnitRow<T> row(p.norm[i], T(p.eps));
    for (int64_t d = 0; d < p.features; ++d) dx[d] = row.normalized(x[d]);
    const T along = row.along(dot(dx, dy, p.features));
    for (int64_t d = 0; d < p.features; ++d) dx[d] = row.gradient(dy[d], dx[d], along);
  });
}

extern const NormalizeKernels normalize_kernels;
const NormalizeKernels normalize_kernels = {normalize_forward<float>, normalize_forward<double>,
                                            normalize_backward<float>, normalize_backward<double>};

}  // namespace sslfast::SSLFAST_ISA
