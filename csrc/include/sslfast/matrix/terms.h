// Float32 numbers as sums of bfloat16 terms, for processors whose matrix instructions multiply
// bfloat16 and add float32:
//   x = x_0 + x_1 + x_2,   x_t the bfloat16 nearest to what the terms before it left.
// A term has 8 bits: one is a bfloat16, two hold a float16, three any float32 (Henry, Tang,
// Heinecke 2019, "Leveraging the bfloat16 Artificial Intelligence Datatype", section 3).
#pragma once

#include "sslfast/elements.h"

namespace sslfast::SSLFAST_ISA {

constexpr int kMostTerms = 3;

// 16 words of two bfloat16 each; of a pair, the first lies in the lower half.
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint32_t UnalignedWords __attribute__((vector_size(64), aligned(2), may_alias));

SSLFAST_INLINE void store_words(uint16_t* p, Words w) { *reinterpret_cast<UnalignedWords*>(p) = w; }

// The nearest bfloat16 of each lane, in the upper half of its word, which so is a float32 too.
SSLFAST_INLINE Words upper_halves(Vec<float> x) {
#if defined(__AVX512BF16__)
  const __m256i bits = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x));
  return reinterpret_cast<Words>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
#else
  const Words bits = reinterpret_cast<Words>(x);
  const Words nearest = bits + 0x7fff + ((bits >> 16) & 1);
  return (x != x ? bits | 0x400000 : nearest) & 0xffff0000;
#endif
}

// 32 neighbours of one row, 16 in each argument.
SSLFAST_INLINE Words neighbours(Words first, Words second) {
#if defined(__AVX512BW__)
  constexpr auto odd = [](int n) { return short(2 * n + 1); };
  const __m512i index =
      _mm512_set_epi16(odd(31), odd(30), odd(29), odd(28), odd(27), odd(26), odd(25), odd(24),
                       odd(23), odd(22), odd(21), odd(20), odd(19), odd(18), odd(17), odd(16),
                       odd(15), odd(14), odd(13), odd(12), odd(11), odd(10), odd(9), odd(8), odd(7),
                       odd(6), odd(5), odd(4), odd(3), odd(2), odd(1), odd(0));
  return reinterpret_cast<Words>(_mm512_permutex2var_epi16(reinterpret_cast<__m512i>(first), index,
                                                           reinterpret_cast<__m512i>(second)));
#else
  Words w;
  for (int n = 0; n < 8; ++n) {
    w[n] = first[2 * n] >> 16 | first[2 * n + 1];
    w[n + 8] = second[2 * n] >> 16 | second[2 * n + 1];
  }
  return w;
#endif
}

// Two rows of 16 columns, a pair for each column.
SSLFAST_INLINE Words pairs(Words first, Words second) { return (first >> 16) | second; }

// The next term of every vector, which is taken from it unless it is the last.
template <int kCount>
SSLFAST_INLINE void take_term(Vec<float> (&x)[kCount], Words (&term)[kCount], bool last) {
  SSLFAST_UNROLL
  for (int n = 0; n < kCount; ++n) {
    term[n] = upper_halves(x[n]);
    if (!last) x[n] -= reinterpret_cast<Vec<float>>(term[n]);
  }
}

}  // namespace sslfast::SSLFAST_ISA
