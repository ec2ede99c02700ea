#include "sslfast/isa.h"

#include <stdexcept>

#if defined(SSLFAST_X86_ISAS)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace sslfast {
namespace {

constexpr Isa kBestFirst[] = {Isa::kAmx, Isa::kAvx512Bf16, Isa::kAvx512, Isa::kAvx2};

#if defined(SSLFAST_X86_ISAS)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

// Bit `bit` of register `index` (EAX, EBX, ECX, EDX) of CPUID's leaf 7.
bool leaf7(unsigned subleaf, int index, int bit) {
  unsigned registers[4] = {};
  if (!__get_cpuid_count(7, subleaf, registers, registers + 1, registers + 2, registers + 3))
    return false;
  return registers[index] >> bit & 1;
}
bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) && c >> 29 & 1;
}
bool has_avx512_bf16() { return has_avx512() && leaf7(1, 0, 5); }
bool has_amx() { return has_avx512_bf16() && leaf7(0, 3, 22) && leaf7(0, 3, 24); }
#endif

// Linux keeps tile registers from a process that did not ask for them (kernel 5.16 and later).
std::string refused_tiles() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted ? "" : "Linux refuses this process the tile registers of AMX";
#else
  return "tile registers are asked for on Linux alone";
#endif
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kBaseline: return "baseline";
    case Isa::kAvx2: return "avx2";
    case Isa::kAvx512: return "avx512";
    case Isa::kAvx512Bf16: return "avx512_bf16";
    case Isa::kAmx: return "amx";
    case Isa::kEmulated: return "emulated";
    default: return "best";
  }
}

bool isa_compiled(Isa isa) {
  switch (isa) {
    case Isa::kBaseline:
    case Isa::kEmulated: return true;
#if defined(SSLFAST_X86_ISAS)
    case Isa::kAvx2:
    case Isa::kAvx512: return true;
#endif
#if defined(SSLFAST_MATRIX_ISAS)
    case Isa::kAvx512Bf16:
    case Isa::kAmx: return true;
#endif
    default: return false;
  }
}

std::string isa_missing(Isa isa) {
  const std::string name = isa_name(isa);
  if (!isa_compiled(isa)) return "the native library was not compiled for " + name;
  bool has = true;
#if defined(SSLFAST_X86_ISAS)
  if (isa == Isa::kAvx2)
    has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  if (isa == Isa::kAvx512) has = has_avx512();
  if (isa == Isa::kAvx512Bf16) has = has_avx512_bf16();
  if (isa == Isa::kAmx) has = has_amx();
#endif
  if (!has) return "this processor has no " + name;
  return isa == Isa::kAmx ? refused_tiles() : "";
}

Isa resolve_isa(int isa) {
  if (isa < 0 || isa >= kIsaCount)
    throw std::runtime_error("isa = " + std::to_string(isa) + " is not an instruction set number");
  if (isa == int(Isa::kBest)) {
    static const Isa best = [] {
      for (const Isa each : kBestFirst)
        if (isa_missing(each).empty()) return each;
      return Isa::kBaseline;
    }();
    return best;
  }
  const std::string missing = isa_missing(Isa(isa));
  if (!missing.empty()) throw std::runtime_error(missing);
  return Isa(isa);
}

Isa vector_isa(Isa isa) {
  switch (isa) {
    case Isa::kAvx512Bf16:
    case Isa::kAmx: return Isa::kAvx512;
    case Isa::kEmulated:
      for (const Isa each : {Isa::kAvx512, Isa::kAvx2})
        if (isa_missing(each).empty()) return each;
      return Isa::kBaseline;
    default: return isa;
  }
}

int matrix_products(Isa isa, Element element, int float_terms) {
  if (element == Element::kDouble) return 0;
  const int products = term_products(terms_of(element, float_terms));
  // vdpbf16ps does twice the multiply-adds of an fma at most: more than one product loses.
  if (isa == Isa::kAvx512Bf16) return products == 1 ? 1 : 0;
  return isa == Isa::kAmx || isa == Isa::kEmulated ? products : 0;
}

}  // namespace sslfast
