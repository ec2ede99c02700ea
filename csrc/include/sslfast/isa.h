// The instruction sets the CPU kernels are compiled for, and the choice among them at run time.
#pragma once

#include <string>

// Used by sslfast._native, across the boundary of the library.
#define SSLFAST_EXPORT __attribute__((visibility("default")))

namespace sslfast {

enum class Isa : int { kBest = 0, kBaseline = 1, kAvx2 = 2, kAvx512 = 3 };
constexpr int kIsaCount = 4;

// "baseline", "avx2", "avx512".
SSLFAST_EXPORT const char* isa_name(Isa isa);
SSLFAST_EXPORT bool isa_compiled(Isa isa);
SSLFAST_EXPORT bool isa_supported(Isa isa);  // compiled, and this processor has it
// The best supported one for kBest; otherwise `isa`. Throws std::runtime_error where it cannot run.
SSLFAST_EXPORT Isa resolve_isa(int isa);

}  // namespace sslfast

// Each instruction set's table of kernels is one constant of the same name in its own namespace.
// SSLFAST_DECLARE_KERNELS(Table, name) declares them; name_for(isa) is the table to call.
#if defined(SSLFAST_X86_ISAS)
#define SSLFAST_DECLARE_KERNELS(Table, name)                    \
  namespace sslfast::baseline {                                 \
  extern const Table name;                                      \
  }                                                             \
  namespace sslfast::avx2 {                                     \
  extern const Table name;                                      \
  }                                                             \
  namespace sslfast::avx512 {                                   \
  extern const Table name;                                      \
  }                                                             \
  static const sslfast::Table& name##_for(int isa) {            \
    switch (sslfast::resolve_isa(isa)) {                        \
      case sslfast::Isa::kAvx512: return sslfast::avx512::name; \
      case sslfast::Isa::kAvx2: return sslfast::avx2::name;     \
      default: return sslfast::baseline::name;                  \
    }                                                           \
  }
#else
#define SSLFAST_DECLARE_KERNELS(Table, name)         \
  namespace sslfast::baseline {                      \
  extern const Table name;                           \
  }                                                  \
  static const sslfast::Table& name##_for(int isa) { \
    sslfast::resolve_isa(isa);                       \
    return sslfast::baseline::name;                  \
  }
#endif
