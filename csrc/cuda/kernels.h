// The kernels of the prebuilt library by name. A launcher in Python starts a kernel with the same
// name, blocks and arguments whether it comes from here or from NVRTC.
#pragma once

namespace sslfast {

struct Kernel {
  const char* name;
  const void* function;
  const Kernel* next;

  Kernel(const char* name, const void* function) : name(name), function(function), next(first()) {
    first() = this;
  }
  static const Kernel*& first() {
    static const Kernel* latest = nullptr;
    return latest;
  }
};

}  // namespace sslfast

#define SSLFAST_KERNEL(name) \
  const sslfast::Kernel listed_##name(#name, reinterpret_cast<const void*>(name));
