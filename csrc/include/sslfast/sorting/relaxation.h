// The relaxations of a comparator, in the order of RELAXATIONS in sslfast/_core/sorting/network.py.
#pragma once

namespace sslfast {

enum class Relaxation : int {
  kCauchy = 0,
  kReciprocal = 1,
  kOptimal = 2,
  kLogistic = 3,
  kLogisticPhi = 4,
  kGaussian = 5
};
constexpr int kRelaxations = 6;

}  // namespace sslfast
