// From the launcher's problem to packed operands, shared by the forward and the backward pass.
#pragma once

#include "cpu/similarity/keep.h"
#include "cpu/similarity/problem.h"
#include "cpu/similarity/tiles.h"

namespace sslfast::SSLFAST_ISA {

// The range of the fixed shift: exponentials reach e^kHead above the shift, and a sum below
// M 2^kTiny may have lost terms to underflow (each lost term is below the smallest normal number,
// so above it what is lost is less than the rounding of the sum).
template <class T>
constexpr double kHead = sizeof(T) == 4 ? 60 : 650;
template <class T>
constexpr double kTiny = sizeof(T) == 4 ? -102 : -966;

template <class T>
T* filled(const Workspace& w, int64_t count, T value) {
  T* p = w.take<T>(count);
  for (int64_t i = 0; i < count; ++i) p[i] = value;
  return p;
}

// (count) -> (padded); what lies beyond is `rest`.
template <class To, class From>
To* padded(const Workspace& w, const From* from, int64_t count, int64_t size, To rest) {
  To* p = w.take<To>(size);
  for (int64_t i = 0; i < count; ++i) p[i] = To(from[i]);
  for (int64_t i = count; i < size; ++i) p[i] = rest;
  return p;
}

template <class T>
int64_t panels_size(int64_t rows, int64_t features) {
  return round_up(rows, kPanel<T>) * features;
}

// One problem's constants and packing buffers. `strip(j)` packs the keys from j on and returns the
// operands of that strip.
template <class T>
class Tiling {
 public:
  explicit Tiling(const SimilarityProblem<T>& p) : p_(p), all_{} {
    all_.rows = p.rows;
    all_.features = p.features;
    all_.row_blocks = make_blocks(p.rows);
    all_.key_blocks = symmetric() ? all_.row_blocks : make_blocks(p.keys);
    const Workspace& w = p.workspace;
    const int64_t padded_rows = all_.row_blocks.size * all_.row_blocks.count;
    const int64_t padded_keys = all_.key_blocks.size * all_.key_blocks.count;
    T* scale = filled<T>(w, padded_rows, T(0));
    for (int64_t i = 0; i < p.rows; ++i) scale[i] = p.scale ? p.scale[p.row_scale ? i : 0] : T(1);
    all_.scale = scale;
    all_.row_offset = filled<T>(w, padded_rows, T(0));
    all_.key_offset = filled<T>(w, padded_keys, T(0));
    for (int64_t j = 0; p.bias && j < p.keys; ++j) all_.key_offset[j] = p.bias[j];
    if (p.row_ids) {
      all_.row_ids = padded<Int<T>>(w, p.row_ids, p.rows, padded_rows, Int<T>(0));
      all_.key_ids =
          symmetric() ? all_.row_ids : padded<Int<T>>(w, p.key_ids, p.keys, padded_keys, Int<T>(0));
    }
    T* panels = w.take<T>(panels_size<T>(p.rows, p.features));
    pack_rows(p.pool, p.q, p.rows, p.features, panels);
    all_.q_panels = panels;
    strip_ = symmetric() ? p.rows : strip_length<T>(all_.key_blocks, p.features);
    strip_ = strip_ < p.keys ? strip_ : p.keys;
    if (!symmetric()) k_panels_ = w.take<T>(panels_size<T>(strip_, p.features));
  }

  bool symmetric() const { return p_.k == nullptr; }
  int64_t strip_keys() const { return strip_; }
  Operands<T>& all() { return all_; }

  // Operands of keys [first, first + strip_keys): key block J counts from the strip's start.
  Operands<T> strip(int64_t first) const {
    Operands<T> o = all_;
    if (symmetric()) {
      o.keys = o.rows;
      o.k_panels = o.q_panels;
      return o;
    }
    o.keys = p_.keys - first < strip_ ? p_.keys - first : strip_;
    o.key_blocks.count = (o.keys + o.key_blocks.size - 1) / o.key_blocks.size;
    pack_rows(p_.pool, p_.k + first * p_.features, o.keys, p_.features, k_panels_);
    o.k_panels = k_panels_;
    o.key_offset += first;
    if (o.key_ids) o.key_ids += first;
    return o;
  }

 private:
  const SimilarityProblem<T>& p_;
  Operands<T> all_;
  int64_t strip_;
  T* k_panels_ = nullptr;
};

// A worker's own memory: a tile (block x block), a panel of rows to multiply it with, and one
// vector per row and per key.
template <class T>
struct Scratch {
  T* tile;
  T* panel;    // (block, kPanel)
  T* row_acc;  // (block, lanes)
  T* key_acc;  // (block)
};
template <class T>
class ScratchPool {
 public:
  ScratchPool(const SimilarityProblem<T>& p, const Operands<T>& o, bool with_tile)
      : rows_(o.row_blocks.size),
        keys_(o.key_blocks.size),
        tile_(with_tile ? rows_ * keys_ : 0),
        panel_(with_tile ? (rows_ > keys_ ? rows_ : keys_) * kPanel<T> : 0) {
    stride_ = round_up(tile_ + panel_ + rows_ * kLanes<T> + keys_, 64);
    memory_ = p.workspace.template take<T>(stride_ * p.pool.workers);
  }
  Scratch<T> of(int worker) const {
    T* at = memory_ + worker * stride_;
    T* sums = at + tile_ + panel_;
    return {at, at + tile_, sums, sums + rows_ * kLanes<T>};
  }

 private:
  int64_t rows_, keys_, tile_, panel_, stride_;
  T* memory_;
};

// Exponentials kept from the forward pass for the backward pass: a header and a tile for every pair
// of a row block and a key block, in the symmetric form for every unordered pair. Element 0 is the
// shift they were computed with, NaN where they are not valid.
template <class T>
class Cache {
 public:
  Cache() = default;
  // Empty where `memory` has no room for all. `blocks` are those of all rows and keys.
  Cache(T* memory, int64_t elements, const Blocks& rows, const Blocks& keys, bool symmetric)
      : symmetric_(symmetric), area_(rows.size * keys.size), keys_(keys) {
    const int64_t tiles = symmetric ? rows.count * (rows.count + 1) / 2 : rows.count * keys.count;
    if (elements >= kCacheHeader + tiles * area_) memory_ = memory;
  }

  explicit operator bool() const { return memory_ != nullptr; }
  T& shift() const { return *memory_; }
  // Key block J of the strip that begins with key `first`.
  T* tile(int64_t I, int64_t J, int64_t first) const {
    J += first / keys_.size;
    const int64_t high = I > J ? I : J, low = I > J ? J : I;
    const int64_t slot = symmetric_ ? high * (high + 1) / 2 + low : I * keys_.count + J;
    return memory_ + kCacheHeader + slot * area_;
  }

 private:
  T* memory_ = nullptr;
  bool symmetric_ = false;
  int64_t area_ = 0;
  Blocks keys_{};
};

}  // namespace sslfast::SSLFAST_ISA
