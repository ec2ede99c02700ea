// csrc/cuda/shared.cuh for the emulation, whose blocks run one after the other.
#pragma once

namespace sslfast::device {

inline void* launched_shared_memory() { return emulation::dynamic_shared; }

}  // namespace sslfast::device
