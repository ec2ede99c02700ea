// AMX's tile instructions in plain loops, for processors without them: what the kernels do with
// tiles can be tested anywhere. Palette 1, eight tiles of 16 rows of 64 bytes, as MatrixUnit asks.
#pragma once

#include "sslfast/matrix/terms.h"

namespace sslfast::SSLFAST_ISA {

struct alignas(64) EmulatedTile {
  Words rows[16];
};
inline thread_local EmulatedTile emulated_tiles[8];

// Like the real ones: without a configuration every use is an error, here a jump to nowhere.
inline thread_local bool tiles_are_configured = false;
SSLFAST_INLINE EmulatedTile& emulated_tile(int tile) {
  if (!tiles_are_configured) __builtin_trap();
  return emulated_tiles[tile];
}

template <class C>
void emulated_loadconfig(const C* c) {
  for (int tile = 0; tile < 8; ++tile)
    if (c->palette != 1 || c->row_bytes[tile] != 64 || c->rows[tile] != 16) __builtin_trap();
  tiles_are_configured = true;
}
inline void emulated_release() { tiles_are_configured = false; }
inline void emulated_zero(int tile) { emulated_tile(tile) = {}; }
inline void emulated_load(int tile, const void* from, int64_t stride) {
  EmulatedTile& t = emulated_tile(tile);
  for (int row = 0; row < 16; ++row)
    t.rows[row] =
        *reinterpret_cast<const UnalignedWords*>(static_cast<const char*>(from) + row * stride);
}
inline void emulated_store(int tile, void* to, int64_t stride) {
  const EmulatedTile& t = emulated_tile(tile);
  for (int row = 0; row < 16; ++row)
    *reinterpret_cast<UnalignedWords*>(static_cast<char*>(to) + row * stride) = t.rows[row];
}
// c (16, 16) += x (16, 32) y (32, 16), y in pairs. As the real unit rounds: the first numbers of
// all pairs are added up apart from the second ones, and the sum of both is added to c. That was
// seen on a Sapphire Rapids, 51,200 of 51,200 random elements equal to the last bit.
inline void emulated_multiply(int c, int x, int y) {
  const auto low = [](Words w) { return reinterpret_cast<Vec<float>>(w << 16); };
  const auto high = [](Words w) { return reinterpret_cast<Vec<float>>(w & 0xffff0000); };
  const EmulatedTile &left = emulated_tile(x), &right = emulated_tile(y);
  EmulatedTile& sum = emulated_tile(c);
  for (int row = 0; row < 16; ++row) {
    Vec<float> first{}, second{};
    for (int pair = 0; pair < 16; ++pair) {
      const Words a = Words{} + left.rows[row][pair], b = right.rows[pair];
      first += low(a) * low(b);
      second += high(a) * high(b);
    }
    const Vec<float> added = reinterpret_cast<Vec<float>>(sum.rows[row]) + (first + second);
    sum.rows[row] = reinterpret_cast<Words>(added);
  }
}

#define _tile_loadconfig(configuration) emulated_loadconfig(configuration)
#define _tile_release() emulated_release()
#define _tile_zero(tile) emulated_zero(tile)
#define _tile_loadd(tile, from, stride) emulated_load(tile, from, stride)
#define _tile_stream_loadd(tile, from, stride) emulated_load(tile, from, stride)
#define _tile_stored(tile, to, stride) emulated_store(tile, to, stride)
#define _tile_dpbf16ps(c, x, y) emulated_multiply(c, x, y)

}  // namespace sslfast::SSLFAST_ISA
