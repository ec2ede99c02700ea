// The instruction sets the CPU kernels are compiled for, and the choice among them at run time.
//
// Three have vector instructions alone. The others multiply matrices of bfloat16 too; they compile
// only the kernels that are made of products (*.matrix.cpp), and leave the rest, and what their
// products cannot hold, to the vector set beneath them.
#pragma once

#include <string>

#include "sslfast/element.h"

// Used by sslfast._native, across the boundary of the library.
#define SSLFAST_EXPORT __attribute__((visibility("default")))

namespace sslfast {

enum class Isa : int {
  kBest = 0,
  kBaseline = 1,
  kAvx2 = 2,
  kAvx512 = 3,
  kAvx512Bf16 = 4,  // vdpbf16ps
  kAmx = 5,         // tiles of bfloat16
  kEmulated = 6,    // the same in plain loops: for tests, never the best
};
constexpr int kIsaCount = 7;

// "baseline", "avx2", "avx512", "avx512_bf16", "amx", "emulated".
SSLFAST_EXPORT const char* isa_name(Isa isa);
SSLFAST_EXPORT bool isa_compiled(Isa isa);
// Why it cannot run here; empty where it can. The first question about AMX asks Linux for its use.
SSLFAST_EXPORT std::string isa_missing(Isa isa);
// The best one that can run for kBest; otherwise `isa`. Throws std::runtime_error where it cannot.
SSLFAST_EXPORT Isa resolve_isa(int isa);
// The vector instructions that go with a set.
SSLFAST_EXPORT Isa vector_isa(Isa isa);
// Products of bfloat16 that stand for one product of these numbers, where a float32 counts as so
// many terms; 0 where a set has no matrix instructions, or its vector instructions are faster.
SSLFAST_EXPORT int matrix_products(Isa isa, Element element, int float_terms);

}  // namespace sslfast

// Each instruction set's table of kernels is one constant of the same name in its own namespace.
// SSLFAST_DECLARE_KERNELS(Table, name) declares those of the vector sets; name_for(isa) is the
// table to call. SSLFAST_DECLARE_MATRIX_KERNELS adds name_by_matrix(isa): that of the matrix
// instructions, or null for a set without them.
#define SSLFAST_DECLARE_TABLE(isa, Table, name) \
  namespace sslfast::isa {                      \
  extern const Table name;                      \
  }

#if defined(SSLFAST_X86_ISAS)
#define SSLFAST_DECLARE_KERNELS(Table, name)                    \
  SSLFAST_DECLARE_TABLE(baseline, Table, name)                  \
  SSLFAST_DECLARE_TABLE(avx2, Table, name)                      \
  SSLFAST_DECLARE_TABLE(avx512, Table, name)                    \
  static const sslfast::Table& name##_for(int isa) {            \
    switch (sslfast::vector_isa(sslfast::resolve_isa(isa))) {   \
      case sslfast::Isa::kAvx512: return sslfast::avx512::name; \
      case sslfast::Isa::kAvx2: return sslfast::avx2::name;     \
      default: return sslfast::baseline::name;                  \
    }                                                           \
  }
#else
#define SSLFAST_DECLARE_KERNELS(Table, name)         \
  SSLFAST_DECLARE_TABLE(baseline, Table, name)       \
  static const sslfast::Table& name##_for(int isa) { \
    sslfast::resolve_isa(isa);                       \
    return sslfast::baseline::name;                  \
  }
#endif

#if defined(SSLFAST_MATRIX_ISAS)
#define SSLFAST_DECLARE_MATRIX_KERNELS(Table, name)                       \
  SSLFAST_DECLARE_TABLE(avx512_bf16, Table, name)                         \
  SSLFAST_DECLARE_TABLE(amx, Table, name)                                 \
  SSLFAST_DECLARE_TABLE(emulated, Table, name)                            \
  static const sslfast::Table* name##_by_matrix(int isa) {                \
    switch (sslfast::resolve_isa(isa)) {                                  \
      case sslfast::Isa::kAvx512Bf16: return &sslfast::avx512_bf16::name; \
      case sslfast::Isa::kAmx: return &sslfast::amx::name;                \
      case sslfast::Isa::kEmulated: return &sslfast::emulated::name;      \
      default: return nullptr;                                            \
    }                                                                     \
  }
#else
#define SSLFAST_DECLARE_MATRIX_KERNELS(Table, name)                             \
  SSLFAST_DECLARE_TABLE(emulated, Table, name)                                  \
  static const sslfast::Table* name##_by_matrix(int isa) {                      \
    const bool emulated = sslfast::resolve_isa(isa) == sslfast::Isa::kEmulated; \
    return emulated ? &sslfast::emulated::name : nullptr;                       \
  }
#endif
