// The kernels of similarity_topk for one set of vector instructions (compiled once for each).
#include "cpu/similarity/select.h"

namespace sslfast::SSLFAST_ISA {

template <class T>
bool similarity_topk(const TopkProblem<T>& p) {
  TopkPass<T>(p).run();
  return true;
}

extern const TopkKernels topk_kernels;
const TopkKernels topk_kernels = {similarity_topk<float>, similarity_topk<double>};

}  // namespace sslfast::SSLFAST_ISA
