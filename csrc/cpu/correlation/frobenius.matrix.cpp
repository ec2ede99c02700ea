// The kernels of cross_frobenius for one set of matrix instructions (compiled once for each).
#include "cpu/correlation/cross_products.h"

namespace sslfast::SSLFAST_ISA {

static bool terms_hold(const FrobeniusProblem<float>& p) {
  const auto hold = [&](const Source& x, int64_t features) {
    return terms_of(p).rows == 1 || terms_hold(p.pool, p.workspace, x, p.rows, features);
  };
  return hold(p.a, p.features) && (!p.b || hold(p.b, p.others));
}

static bool frobenius_forward(const FrobeniusForward<float>& p) {
  if (!terms_hold(p)) return false;
  *p.total = float(Products<float>(p, p.cache).forward(p));
  return true;
}
static bool frobenius_backward(const FrobeniusBackward<float>& p) {
  if (!terms_hold(p)) return false;
  Products<float>(p, p.cache).backward(p);
  return true;
}

extern const FrobeniusKernels frobenius_kernels;
const FrobeniusKernels frobenius_kernels = {frobenius_forward, nullptr, frobenius_backward,
                                            nullptr};

}  // namespace sslfast::SSLFAST_ISA
