// Mathematics of l2_normalize, for the CPU and for the GPU. A is the accumulator: float or double.
#pragma once

#include "sslfast/host_device.h"

namespace sslfast::SSLFAST_TARGET {

// One row, y = x / max(|x|, eps). Where only rounding is divided, it is multiplied by the inverse
// of the divisor; so eps is at least the smallest normal number, whose inverse is finite (a norm
// that is not 0 is larger).
template <class A>
struct UnitRow {
  A divisor, inverse;
  bool clamped;  // |x| < eps: the divisor is a constant. A NaN norm is not.

  SSLFAST_HOST_DEVICE UnitRow(A norm, A eps) {
    const A least = eps < kSmallestNormal<A> ? kSmallestNormal<A> : eps;
    clamped = norm < least;
    divisor = clamped ? least : norm;
    inverse = A(1) / divisor;
  }

  // A row of one number must give exactly 1 or -1: its gradient is 0.
  SSLFAST_HOST_DEVICE A normalized(A x) const { return quotient(x, divisor, inverse); }

  // dx = (dy - y <y, dy>) / |x|, and dy / eps below eps.
  SSLFAST_HOST_DEVICE A along(A y_dot_dy) const { return clamped ? A(0) : y_dot_dy; }
  SSLFAST_HOST_DEVICE A gradient(A dy, A y, A along) const { return (dy - y * along) * inverse; }
};

}  // namespace sslfast::SSLFAST_TARGET
