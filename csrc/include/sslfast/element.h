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

}  // namespace sslfast
