// The kernels of similarity_logsumexp for one set of vector instructions (compiled once for each).
#include "cpu/similarity/backward.h"
#include "cpu/similarity/forward.h"

namespace sslfast::SSLFAST_ISA {

template <class T>
bool similarity_forward(const SimilarityForward<T>& p) {
  ForwardPass<T>(p).run();
  return true;
}
template <class T>
bool similarity_backward(const SimilarityBackward<T>& p) {
  p.mean_keys ? gradient_from_means(p) : BackwardPass<T>(p).run();
  return true;
}

extern const SimilarityKernels similarity_kernels;
const SimilarityKernels similarity_kernels = {similarity_forward<float>, similarity_forward<double>,
                                              similarity_backward<float>,
                                              similarity_backward<double>};

}  // namespace sslfast::SSLFAST_ISA
