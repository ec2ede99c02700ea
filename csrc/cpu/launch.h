// What every CPU launcher needs of torch: checks, memory and threads, through the stable ABI.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <sys/mman.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "sslfast/element.h"
#include "sslfast/isa.h"
#include "sslfast/pool.h"

namespace sslfast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The kernels take contiguous CPU tensors of one dtype; the Python launcher sees to it, and this
// keeps a direct call from reading what is not there.
inline void check(const Tensor& t, const char* name, ScalarType dtype) {
  STD_TORCH_CHECK(t.device().type() == torch::headeronly::DeviceType::CPU, name,
                  " must be on the CPU");
  STD_TORCH_CHECK(t.is_contiguous(), name, " must be contiguous");
  STD_TORCH_CHECK(t.scalar_type() == dtype, name, " has the wrong dtype");
}

// What a matrix of a floating-point dtype is to the kernels, and what they add its numbers up in.
inline Element element_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return Element::kFloat;
    case ScalarType::Double: return Element::kDouble;
    case ScalarType::BFloat16: return Element::kBf16;
    case ScalarType::Half: return Element::kHalf;
    default: STD_TORCH_CHECK(false, name, " must be float16, bfloat16, float32 or float64");
  }
}
inline ScalarType accumulator(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}
inline Source source_of(const Tensor& t, const char* name) {
  return {t.const_data_ptr(), element_of(t, name)};
}

// Runs the kernel of matrix instructions where there is one that pays and takes the problem, else
// that of vector instructions.
template <class Table, class P>
void run_kernel(int64_t isa, Element element, int float_terms, const Table* by_matrix,
                const Table& by_vector, bool (*Table::*kernel)(const P&), const P& problem) {
  const bool pays = by_matrix && matrix_products(resolve_isa(int(isa)), element, float_terms) > 0;
  if (pays && (by_matrix->*kernel)(problem)) return;
  (by_vector.*kernel)(problem);
}

// With pages of 2 MiB the system hands memory out 512 times less often. Only a hint; does nothing
// where the system has no such pages.
inline void prefer_huge_pages(const Tensor& t) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t(2) << 20;
  const uintptr_t begin =
      (reinterpret_cast<uintptr_t>(t.const_data_ptr()) + kPage - 1) & ~(kPage - 1);
  const uintptr_t bytes = uintptr_t(t.numel()) * t.element_size();
  const uintptr_t end = (reinterpret_cast<uintptr_t>(t.const_data_ptr()) + bytes) & ~(kPage - 1);
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

inline Tensor empty(std::initializer_list<int64_t> shape, ScalarType dtype) {
  const std::vector<int64_t> size(shape);
  Tensor t = torch::stable::empty({size.data(), size.size()}, dtype);
  if (t.numel()) prefer_huge_pages(t);
  return t;
}
inline Tensor zeros(std::initializer_list<int64_t> shape, ScalarType dtype) {
  Tensor t = empty(shape, dtype);
  return torch::stable::zero_(t);
}

template <class T>
constexpr ScalarType kDtype = sizeof(T) == 4 ? ScalarType::Float : ScalarType::Double;

template <class T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}
template <class T>
T* mutable_data(const Tensor& t) {
  return t.numel() ? static_cast<T*>(t.mutable_data_ptr()) : nullptr;
}

// torch's own threads, as many as torch.get_num_threads() says.
inline Pool torch_pool() {
  return {int(torch::stable::get_num_threads()),
          [](int workers, void (*body)(void*, int), void* data) {
            torch::stable::parallel_for(0, workers, 1, [=](int64_t begin, int64_t end) {
              for (int64_t worker = begin; worker < end; ++worker) body(data, int(worker));
            });
          }};
}

// Scratch from torch's allocator, freed with this object: pieces of few large tensors, whose pages
// are large too. Walking small ones took a fifth of the time of products by matrix instructions.
class TorchWorkspace {
 public:
  operator Workspace() { return {this, &TorchWorkspace::allocate}; }

 private:
  static constexpr int64_t kAlignment = 64, kFirst = 1 << 20, kMost = 32 << 20;

  static void* allocate(void* owner, int64_t bytes) {
    return static_cast<TorchWorkspace*>(owner)->take((bytes + kAlignment - 1) & -kAlignment);
  }
  void* take(int64_t bytes) {
    if (bytes > left_) {
      left_ = bytes > next_ ? bytes : next_;
      next_ = 2 * left_ < kMost ? 2 * left_ : kMost;
      tensors_.push_back(empty({left_ + kAlignment}, ScalarType::Byte));
      const auto at = reinterpret_cast<uintptr_t>(tensors_.back().mutable_data_ptr());
      free_ = reinterpret_cast<char*>((at + kAlignment - 1) & -uintptr_t(kAlignment));
    }
    void* taken = free_;
    free_ += bytes;
    left_ -= bytes;
    return taken;
  }

  std::vector<Tensor> tensors_;
  char* free_ = nullptr;
  int64_t left_ = 0, next_ = kFirst;
};

}  // namespace sslfast
