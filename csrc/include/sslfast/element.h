// How a caller stores the numbers of a matrix. Plain types: this header is shared by files of every
// instruction set.
#pragma once

namespace sslfast {

enum class Element : int { kFloat, kDouble, kBf16, kHalf };

// A row-major matrix as the caller has it.
struct Source {
  const void* data = nullptr;
  Element element = Element::kFloat;

  explicit operator bool() const { return data != nullptr; }
};

// bfloat16 terms that hold a number, where products are of bfloat16 alone; a float32 counts as so
// many as its caller asks for.
constexpr int terms_of(Element element, int float_terms) {
  return element == Element::kBf16 ? 1 : element == Element::kHalf ? 2 : float_terms;
}
// Products of terms that stand for one product of two numbers of so many terms (matrix/unit.h,
// `Pairs`): all, but of three terms the six largest.
constexpr int term_products(int terms) { return terms == 3 ? 6 : terms * terms; }

}  // namespace sslfast
