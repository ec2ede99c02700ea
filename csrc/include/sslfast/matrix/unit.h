// A block of 32 x 32 products by matrix instructions: AMX tiles (or their emulation), or vdpbf16ps.
//
// An operand comes in steps of 32 in depth and 32 in rows, two tiles of 16 rows, 1 KiB each:
//   left:   tile[row][k]                    16 rows of 32 bfloat16
//   right:  tile[k / 2][row][k % 2]         16 pairs in depth of 16 rows
// The block itself is four tiles of 16 x 16 float32: rows 0-15 and 16-31, of each columns 0-15 and
// 16-31; they follow each other, or lie in a matrix.
#pragma once

#if defined(SSLFAST_EMULATE_TILES)
#include "sslfast/matrix/emulated.h"
#else
#include "sslfast/matrix/terms.h"
#endif

namespace sslfast::SSLFAST_ISA {

constexpr int64_t kBlock = 32;                        // rows, columns and depth of a step
constexpr int64_t kTileElements = 16 * 32;            // bfloat16
constexpr int64_t kStepElements = 2 * kTileElements;  // bfloat16
constexpr int64_t kBlockNumbers = kBlock * kBlock;    // float32

// A panel of an operand: steps follow each other, each with all its terms.
struct Factor {
  const uint16_t* at;
  int terms;

  int64_t step() const { return terms * kStepElements; }
};

// Where a block of sums lies.
struct BlockAt {
  float* at;
  int64_t row_bytes, right, below;  // from a tile to its neighbours, in numbers

  static BlockAt packed(float* at) { return {at, 64, 256, 512}; }
  static BlockAt in_matrix(float* at, int64_t stride) {
    return {at, stride * int64_t(sizeof(float)), 16, 16 * stride};
  }
  float* tile(int n) const { return at + n / 2 * below + n % 2 * right; }
  float* row(int64_t r, int v) const {
    return tile(int(r / 16) * 2 + v) + r % 16 * (row_bytes / int64_t(sizeof(float)));
  }
};

// Asks for a block ahead of its use: what a unit waits for, it cannot multiply meanwhile. (Operands
// come from caches near by; asking for them too takes more than it gives.)
SSLFAST_INLINE void prefetch(const BlockAt& c) {
  for (int64_t row = 0; row < kBlock; ++row)
    for (int v = 0; v < 2; ++v) __builtin_prefetch(c.row(row, v), 1);
}

// The pairs of terms that count: all, so that float16 is exact, but of three terms those whose
// products are above 2^-27 of the largest. One of both changes from each to the next, where
// possible, so that few are loaded; the largest product comes last.
struct Pair {
  int a, b;
};
template <int kX, int kY>
struct Pairs;
template <>
struct Pairs<1, 1> {
  static constexpr Pair kAll[] = {{0, 0}};
};
template <>
struct Pairs<1, 2> {
  static constexpr Pair kAll[] = {{0, 1}, {0, 0}};
};
template <>
struct Pairs<2, 1> {
  static constexpr Pair kAll[] = {{1, 0}, {0, 0}};
};
template <>
struct Pairs<2, 2> {
  static constexpr Pair kAll[] = {{0, 1}, {1, 1}, {1, 0}, {0, 0}};
};
template <>
struct Pairs<3, 3> {
  static constexpr Pair kAll[] = {{0, 2}, {0, 1}, {1, 1}, {1, 0}, {2, 0}, {0, 0}};
};

// f(Pairs) of two factors.
template <class F>
SSLFAST_INLINE void with_pairs(const Factor& x, const Factor& y, const F& f) {
  if (x.terms == 1 && y.terms == 1) return f(Pairs<1, 1>());
  if (x.terms == 1) return f(Pairs<1, 2>());
  if (y.terms == 1) return f(Pairs<2, 1>());
  if (x.terms == 2) return f(Pairs<2, 2>());
  return f(Pairs<3, 3>());
}

#if defined(__AMX_BF16__) || defined(SSLFAST_EMULATE_TILES)

// Holds the processor's tile registers, which cost a switch of threads dearly while they are held.
class MatrixUnit {
 public:
  MatrixUnit() {
    struct alignas(64) Configuration {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    };
    static constexpr Configuration kSquare{};
    _tile_loadconfig(&kSquare);
  }
  ~MatrixUnit() { _tile_release(); }
  MatrixUnit(const MatrixUnit&) = delete;
  MatrixUnit& operator=(const MatrixUnit&) = delete;

  // c = x y^T, or += x y^T, over so many steps.
  template <bool kAdd>
  SSLFAST_INLINE void multiply(const Factor& x, const Factor& y, int64_t steps,
                               const BlockAt& c) const {
    if constexpr (kAdd) {
      _tile_loadd(0, c.tile(0), c.row_bytes);
      _tile_loadd(1, c.tile(1), c.row_bytes);
      _tile_loadd(2, c.tile(2), c.row_bytes);
      _tile_loadd(3, c.tile(3), c.row_bytes);
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
    with_pairs(x, y, [=]<class P>(P) {
      const uint16_t *a = x.at, *b = y.at;
      for (int64_t step = 0; step < steps; ++step, a += x.step(), b += y.step())
        add_step<P, kAdd>(a, b);
    });
    _tile_stored(0, c.tile(0), c.row_bytes);
    _tile_stored(1, c.tile(1), c.row_bytes);
    _tile_stored(2, c.tile(2), c.row_bytes);
    _tile_stored(3, c.tile(3), c.row_bytes);
  }

 private:
  template <class P, bool kAdd>
  static SSLFAST_INLINE void add_step(const uint16_t* a, const uint16_t* b) {
    constexpr int kCount = sizeof(P::kAll) / sizeof(Pair);
    SSLFAST_UNROLL
    for (int n = 0; n < kCount; ++n) {
      const uint16_t *of_x = a + P::kAll[n].a * kStepElements,
                     *of_y = b + P::kAll[n].b * kStepElements;
      const bool same_x = n > 0 && P::kAll[n].a == P::kAll[n - 1].a;
      const bool same_y = n > 0 && P::kAll[n].b == P::kAll[n - 1].b;
      if (!same_y) {
        _tile_loadd(6, of_y, 64);
        _tile_loadd(7, of_y + kTileElements, 64);
      }
      // x goes by once for a panel of y, which should not leave the innermost cache for it; where
      // sums come and go too, the hint does not pay.
      if (!same_x && kAdd) {
        _tile_loadd(4, of_x, 64);
        _tile_loadd(5, of_x + kTileElements, 64);
      } else if (!same_x) {
        _tile_stream_loadd(4, of_x, 64);
        _tile_stream_loadd(5, of_x + kTileElements, 64);
      }
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
};

#else

// acc + a_0 b_0 + a_1 b_1 of every word.
SSLFAST_INLINE Vec<float> add_pairs(Vec<float> acc, Words a, Words b) {
  return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}

class MatrixUnit {
 public:
  template <bool kAdd>
  SSLFAST_INLINE void multiply(const Factor& x, const Factor& y, int64_t steps,
                               const BlockAt& c) const {
    for (int64_t row = 0; row < kBlock; row += kTileRows)
      with_pairs(x, y, [&]<class P>(P) {
        const uint16_t *a = x.at + row * 32, *b = y.at;  // the tiles of a step follow each other
        for (int64_t first = 0; first < steps; first += kChainSteps) {
          Vec<float> acc[kTileRows][2] = {};
          for (int64_t step = first; step < steps && step < first + kChainSteps; ++step) {
            for (const Pair& terms : P::kAll)
              add_step(acc, a + terms.a * kStepElements, b + terms.b * kStepElements);
            a += x.step();
            b += y.step();
          }
          SSLFAST_UNROLL
          for (int r = 0; r < kTileRows; ++r) SSLFAST_UNROLL
          for (int v = 0; v < 2; ++v) {
            float* to = c.row(row + r, v);
            store(to, kAdd || first > 0 ? load(to) + acc[r][v] : acc[r][v]);
          }
        }
      });
  }

 private:
  static constexpr int64_t kChainSteps = 4;  // in depth; rounding grows with the length of a chain

  static SSLFAST_INLINE void add_step(Vec<float> (&acc)[kTileRows][2], const uint16_t* a,
                                      const uint16_t* b) {
    for (int pair = 0; pair < 16; ++pair) {
      const Words b0 = load_words(b + pair * 32);
      const Words b1 = load_words(b + kTileElements + pair * 32);
      SSLFAST_UNROLL
      for (int r = 0; r < kTileRows; ++r) {
        const Words ar = Words{} + word(a + r * 32 + pair * 2);
        acc[r][0] = add_pairs(acc[r][0], ar, b0);
        acc[r][1] = add_pairs(acc[r][1], ar, b1);
      }
    }
  }
  static SSLFAST_INLINE Words load_words(const uint16_t* p) {
    return *reinterpret_cast<const UnalignedWords*>(p);
  }
  static SSLFAST_INLINE uint32_t word(const uint16_t* p) {
    uint32_t w;
    __builtin_memcpy(&w, p, sizeof w);
    return w;
  }
};

#endif

}  // namespace sslfast::SSLFAST_ISA
