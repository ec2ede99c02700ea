// The comparators of csrc/cuda/sorting/network.cuh, for tests/test_cuda_sorting.py.
#include "emulate.h"
//
#include "cuda/sorting/network.cuh"

using namespace sslfast::device;
extern "C" int comparators(int network, int length, Comparator* to) {
  return network::list(network ? Network::kBitonic : Network::kOddEven, length, to);
}
