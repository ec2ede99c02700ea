// The kernels of cross_frobenius for one set of vector instructions (compiled once for each).
#include "cpu/correlation/cross_products.h"

namespace sslfast::SSLFAST_ISA {

template <class T>
bool frobenius_forward(const FrobeniusForward<T>& p) {
  *p.total = T(Products<T>(p, p.cache).forward(p));
  return true;
}
template <class T>
bool frobenius_backward(const FrobeniusBackward<T>& p) {
  Products<T>(p, p.cache).backward(p);
  return true;
}

extern const FrobeniusKernels frobenius_kernels;
const FrobeniusKernels frobenius_kernels = {frobenius_forward<float>, frobenius_forward<double>,
                                            frobenius_backward<float>, frobenius_backward<double>};

}  // namespace sslfast::SSLFAST_ISA
