// A block of 32 x 32 products by matrix instructions: AMX tiles (or their emulation), or vdpbf16ps.
//
// An operand comes in steps of 32 in depth and 32 in rows, two tiles of 16 rows, 1 KiB each:
//   left:   tile[row][k]                    16 rows of 32 bfloat16
//   right:  tile[k / 2][row][k % 2]         16 pairs in depth of 16 rows
// The block itself is four tiles of 16 x 16 float32: rows 0-15 and 16-31, of each columns 0-15 and
// 16-31.
#pragma once

#if defined(SSLFAST_EMULATE_TILES)
#include "sslfast/matrix/emulated.h"
#else
#include "sslfast/matrix/terms.h"
#endif

namespace sslfast::SSLFAST_ISA {

constexpr int64_t kBlock = 32;                       // rows, columns and depth of a step
constexpr int64_t kTileElements = 16 * 32;           // bfloat16
constexpr int64_t kStepElements = 2 * kTileElements; // bfloat16
constexpr int64_t kBlockNumbers = kBlock * kBlock;   // float32

// What a block is the product of: `steps` of each pair of terms that counts, terms `stride` apart.
struct Factor {
  const uint16_t* at;
  int64_t stride;
  int terms;

  const uint16_t* term(int t) const { return at + t * stride; }
};

// f(x, y) for the pairs of terms that count, the smallest products first.
template <class F>
SSLFAST_INLINE void for_each_pair(const Factor& x, const Factor& y, const F& f) {
  const int terms = x.terms > y.terms ? x.terms : y.terms;
  for (int order = terms - 1; order >= 0; --order)
    for (int a = 0; a <= order; ++a)
      if (a < x.terms && order - a < y.terms) f(x.term(a), y.term(order - a));
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

  // c = x y^T, or += x y^T.
  template <bool kAdd>
  SSLFAST_INLINE void multiply(const Factor& x, const Factor& y, int64_t steps, float* c) const {
    if constexpr (kAdd) {
      _tile_loadd(0, c, 64);
      _tile_loadd(1, c + 256, 64);
      _tile_loadd(2, c + 512, 64);
      _tile_loadd(3, c + 768, 64);
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
    for_each_pair(x, y, [=](const uint16_t* a, const uint16_t* b) {
      for (int64_t step = 0; step < steps; ++step, a += kStepElements, b += kStepElements) {
        _tile_loadd(6, b, 64);
        _tile_loadd(4, a, 64);
        _tile_loadd(7, b + kTileElements, 64);
        _tile_loadd(5, a + kTileElements, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    });
    _tile_stored(0, c, 64);
    _tile_stored(1, c + 256, 64);
    _tile_stored(2, c + 512, 64);
    _tile_stored(3, c + 768, 64);
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
  SSLFAST_INLINE void multiply(const Factor& x, const Factor& y, int64_t steps, float* c) const {
    for (int64_t row = 0; row < kBlock; row += kTileRows) {
      float* corner = c + row / 16 * 512 + row % 16 * 16;
      Vec<float> acc[kTileRows][2] = {};
      if constexpr (kAdd) {
        SSLFAST_UNROLL
        for (int r = 0; r < kTileRows; ++r) SSLFAST_UNROLL
        for (int v = 0; v < 2; ++v) acc[r][v] = load(corner + v * 256 + r * 16);
      }
      for_each_pair(x, y, [&](const uint16_t* a, const uint16_t* b) {
        a += row * 32;  // the tiles of a step follow each other
        for (int64_t step = 0; step < steps; ++step, a += kStepElements, b += kStepElements)
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
      });
      SSLFAST_UNROLL
      for (int r = 0; r < kTileRows; ++r) SSLFAST_UNROLL
      for (int v = 0; v < 2; ++v) store(corner + v * 256 + r * 16, acc[r][v]);
    }
  }

 private:
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
