// The kernel of similarity_topk for one set of matrix instructions (compiled once for each).
#include "cpu/similarity/select.h"

namespace sslfast::SSLFAST_ISA {

static bool similarity_topk(const TopkProblem<float>& p) {
  if (!terms_hold(p)) return false;
  TopkPass<float>(p).run();
  return true;
}

extern const TopkKernels topk_kernels;
const TopkKernels topk_kernels = {similarity_topk, nullptr};

}  // namespace sslfast::SSLFAST_ISA
