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

#if defined(SSLFAST_MATRIX)
// Whether the products of a problem can be taken of its rows' terms.
inline bool terms_hold(const SimilarityProblem<float>& p) {
  const auto hold = [&](const Source& x, int64_t rows) {
    return terms_of(x.element, p.float_terms) == 1 ||
           terms_hold(p.pool, p.workspace, x, rows, p.features);
  };
  return hold(p.q, p.rows) && (!p.k || hold(p.k, p.keys));
}
#endif

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
    terms_ = terms_of(p.q.element, p.float_terms);
    strip_ = symmetric() ? p.rows : strip_length<T>(all_.key_blocks, p.features, terms_);
    strip_ = strip_ < p.keys ? strip_ : p.keys;
    all_.q = packed(p.rows, Side::kLeft);
    pack(p.q, 0, p.rows, all_.q);
    if (!symmetric()) {
      k_ = packed(strip_, Side::kRight);
    } else if (Packed<T>::kSidesDiffer) {
      k_ = packed(p.rows, Side::kRight);
      pack(p.q, 0, p.rows, k_);
    } else {
      k_ = all_.q;
    }
  }

  bool symmetric() const { return !p_.k; }
  // Of the rows, and of weights that multiply them.
  Terms terms() const { return {terms_, terms_}; }
  int64_t strip_keys() const { return strip_; }
  Operands<T>& all() { return all_; }

  // Operands of keys [first, first + strip_keys): key block J counts from the strip's start.
  Operands<T> strip(int64_t first) const {
    Operands<T> o = all_;
    o.k = k_;
    if (symmetric()) {
      o.keys = o.rows;
      return o;
    }
    o.keys = p_.keys - first < strip_ ? p_.keys - first : strip_;
    o.key_blocks.count = (o.keys + o.key_blocks.size - 1) / o.key_blocks.size;
    pack(p_.k, first, o.keys, k_);
    o.key_offset += first;
    if (o.key_ids) o.key_ids += first;
    return o;
  }

 private:
  Packed<T> packed(int64_t rows, Side side) const {
    const int64_t size = Packed<T>::size(rows, p_.features, terms_);
    return {p_.workspace.template take<T>(size), p_.features, side, terms_};
  }
  // Rows [first, first + count) of a matrix.
  void pack(const Source& x, int64_t first, int64_t count, const Packed<T>& to) const {
    const Operand<T> rows = rows_of<T>(x, count, p_.features, {}, first * p_.features);
    for_each(p_.pool, Packed<T>::panels(count),
             [&](int, int64_t panel) { to.pack(rows, panel, 0); });
  }

  const SimilarityProblem<T>& p_;
  Operands<T> all_;
  int64_t strip_;
  int terms_;
  Packed<T> k_;
};

// A worker's own memory: one vector per row and one number per key, and a tile of numbers or of
// weights where it is asked for.
template <class T>
struct Scratch {
  T* row_acc;  // (block, lanes)
  T* key_acc;  // (block)
  T* tile;     // (block, block)
  WeightTile<T> weights;
};
enum class Tile { kNone, kNumbers, kWeights };
template <class T>
class ScratchPool {
 public:
  // sides, terms: of the weights.
  ScratchPool(const SimilarityProblem<T>& p, const Operands<T>& o, Tile tile, Sides sides = {},
              int terms = 1)
      : rows_(o.row_blocks.size), keys_(o.key_blocks.size), sides_(sides), terms_(terms) {
    const int64_t area = tile == Tile::kNone      ? 0
                         : tile == Tile::kNumbers ? rows_ * keys_
                                                  : WeightTile<T>::size(rows_, keys_, sides, terms);
    stride_ = round_up(rows_ * kLanes<T> + keys_ + area, 64);
    memory_ = p.workspace.template take<T>(stride_ * p.pool.workers);
  }
  Scratch<T> of(int worker) const {
    T* at = memory_ + worker * stride_;
    T* keys = at + rows_ * kLanes<T>;
    T* tile = keys + keys_;
    return {at, keys, tile, {tile, rows_, keys_, sides_, terms_}};
  }

 private:
  int64_t rows_, keys_, stride_;
  Sides sides_;
  int terms_;
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
