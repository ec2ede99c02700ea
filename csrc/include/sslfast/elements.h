// Numbers of any element type, widened to what the kernels compute in as they are read.
#pragma once

#if defined(__F16C__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "sslfast/element.h"
#include "sslfast/vector.h"

namespace sslfast::SSLFAST_ISA {

struct Bf16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

SSLFAST_INLINE float wide(float x) { return x; }
SSLFAST_INLINE double wide(double x) { return x; }
SSLFAST_INLINE float wide(Bf16 x) { return __builtin_bit_cast(float, uint32_t(x.bits) << 16); }
SSLFAST_INLINE float wide(Half x) { return float(__builtin_bit_cast(_Float16, x.bits)); }

typedef uint16_t HalfLanes __attribute__((vector_size(kVectorBytes / 2)));
typedef uint16_t UnalignedHalfLanes
    __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));

SSLFAST_INLINE Vec<float> load_wide(const float* p) { return load(p); }
SSLFAST_INLINE Vec<double> load_wide(const double* p) { return load(p); }
SSLFAST_INLINE Vec<float> load_wide(const Bf16* p) {
  const HalfLanes bits = *reinterpret_cast<const UnalignedHalfLanes*>(p);
  return reinterpret_cast<Vec<float>>(__builtin_convertvector(bits, IntVec<float>) << 16);
}
SSLFAST_INLINE Vec<float> load_wide(const Half* p) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  Vec<float> v{};
  for (int lane = 0; lane < kLanes<float>; ++lane) v[lane] = wide(p[lane]);
  return v;
#endif
}

// f(data) with the pointer's own type; T is what is computed in.
template <class T, class F>
SSLFAST_INLINE void with_elements(const void* data, Element element, const F& f) {
  if constexpr (sizeof(T) == 8) {
    f(static_cast<const double*>(data));
  } else {
    switch (element) {
      case Element::kBf16: return f(static_cast<const Bf16*>(data));
      case Element::kHalf: return f(static_cast<const Half*>(data));
      default: return f(static_cast<const float*>(data));
    }
  }
}

// `count` numbers from element `at` on: where they lie, or widened into `scratch`.
template <class T>
const T* widened(const Source& source, int64_t at, int64_t count, T* scratch) {
  const T* found = scratch;
  with_elements<T>(source.data, source.element, [&](auto* data) {
    data += at;
    if constexpr (sizeof(*data) == sizeof(T)) {
      found = data;
    } else {
      int64_t n = 0;
      for (; n + kLanes<T> <= count; n += kLanes<T>) store(scratch + n, load_wide(data + n));
      for (; n < count; ++n) scratch[n] = wide(data[n]);
    }
  });
  return found;
}

// f(piece, at, count) for `count` numbers from element `first` on, so many at a time that what is
// widened stays in the innermost cache; `at` counts from `first`.
template <class T, class F>
void for_each_piece(const Source& source, int64_t first, int64_t count, const F& f) {
  constexpr int64_t kPiece = 1024;
  T scratch[kPiece];
  const int64_t most = source.element == Element::kBf16 || source.element == Element::kHalf
                           ? kPiece
                           : count;  // where they lie
  for (int64_t at = 0; at < count; at += most) {
    const int64_t left = count - at < most ? count - at : most;
    f(widened(source, first + at, left, scratch), at, left);
  }
}

}  // namespace sslfast::SSLFAST_ISA
