#include "sslfast/isa.h"

#include <stdexcept>

namespace sslfast {

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kBaseline: return "baseline";
    case Isa::kAvx2: return "avx2";
    case Isa::kAvx512: return "avx512";
    default: return "best";
  }
}

bool isa_compiled(Isa isa) {
#if defined(SSLFAST_X86_ISAS)
  return isa != Isa::kBest;
#else
  return isa == Isa::kBaseline;
#endif
}

bool isa_supported(Isa isa) {
  if (!isa_compiled(isa)) return false;
#if defined(SSLFAST_X86_ISAS)
  if (isa == Isa::kAvx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == Isa::kAvx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
  return true;
}

Isa resolve_isa(int isa) {
  if (isa < 0 || isa >= kIsaCount)
    throw std::runtime_error("isa = " + std::to_string(isa) + " is not an instruction set number");
  if (isa == int(Isa::kBest)) {
    static const Isa best = isa_supported(Isa::kAvx512) ? Isa::kAvx512
                            : isa_supported(Isa::kAvx2) ? Isa::kAvx2
                                                        : Isa::kBaseline;
    return best;
  }
  if (!isa_supported(Isa(isa)))
    throw std::runtime_error(std::string("this processor or this build has no ") +
                             isa_name(Isa(isa)) + " kernels");
  return Isa(isa);
}

}  // namespace sslfast
