// y = x / max(|x|, eps) and its gradient, for one instruction set (compiled once for each).
#include "cpu/l2_normalize.h"

#include "sslfast/tiles.h"

namespace sslfast::SSLFAST_ISA {

template <class T>
void normalize_forward(const Normalize<T>& p) {
  for_each_row(p.pool, p.rows, [&](int64_t i) {
    const T* x = p.x + i * p.features;
    T* y = p.out + i * p.features;
    const T norm = __builtin_sqrt(dot(x, x, p.features));
    const T divisor = norm < T(p.eps) ? T(p.eps) : norm;
    for (int64_t d = 0; d < p.features; ++d) y[d] = x[d] / divisor;
    p.norm[i] = norm;
  });
}

// dx = (dy - y <y, dy>) / |x|; below eps the divisor is a constant, and dx = dy / eps.
template <class T>
void normalize_backward(const Normalize<T>& p) {
  for_each_row(p.pool, p.rows, [&](int64_t i) {
    const T *x = p.x + i * p.features, *dy = p.dy + i * p.features;
    T* dx = p.out + i * p.features;
    const T norm = p.norm[i];
    const bool clamped = norm < T(p.eps);
    const T divisor = clamped ? T(p.eps) : norm;
    const T along = clamped ? T(0) : dot(x, dy, p.features) / divisor;
    for (int64_t d = 0; d < p.features; ++d) dx[d] = (dy[d] - x[d] / divisor * along) / divisor;
  });
}

extern const NormalizeKernels normalize_kernels;
const NormalizeKernels normalize_kernels = {normalize_forward<float>, normalize_forward<double>,
                                            normalize_backward<float>, normalize_backward<double>};

}  // namespace sslfast::SSLFAST_ISA
