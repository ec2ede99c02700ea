// The kernels of similarity_logsumexp for one set of matrix instructions (compiled once for each).
#include "cpu/similarity/backward.h"
#include "cpu/similarity/forward.h"

namespace sslfast::SSLFAST_ISA {

static bool similarity_forward(const SimilarityForward<float>& p) {
  if (!terms_hold(p)) return false;
  ForwardPass<float>(p).run();
  return true;
}
static bool similarity_backward(const SimilarityBackward<float>& p) {
  if (!terms_hold(p)) return false;
  p.mean_keys ? gradient_from_means(p) : BackwardPass<float>(p).run();
  return true;
}

extern const SimilarityKernels similarity_kernels;
const SimilarityKernels similarity_kernels = {similarity_forward, nullptr, similarity_backward,
                                              nullptr};

}  // namespace sslfast::SSLFAST_ISA
