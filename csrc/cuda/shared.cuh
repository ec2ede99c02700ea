// The shared memory of a block that its launch asks for.
#pragma once

namespace sslfast::device {

__device__ __forceinline__ void* launched_shared_memory() {
  extern __shared__ double memory[];
  return memory;
}

}  // namespace sslfast::device
