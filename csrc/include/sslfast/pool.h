// Work on the caller's thread pool, handed to kernels that know no torch header.
#pragma once

#include <stdint.h>

namespace sslfast {

struct Pool {
  int workers;
  // Calls body(data, worker) once for every worker in 0..workers-1, possibly at the same time.
  void (*run)(int workers, void (*body)(void* data, int worker), void* data);
};

// Memory for the time of one call, from the caller's allocator.
struct Workspace {
  void* owner;
  void* (*allocate)(void* owner, int64_t bytes);

  template <class T>
  T* take(int64_t count) const {
    return static_cast<T*>(allocate(owner, count * int64_t(sizeof(T))));
  }
};

}  // namespace sslfast
