// csrc/cuda/opaque.cuh for the emulation, which has no registers to spare.
#pragma once

namespace sslfast::device {

template <class T>
void make_opaque(T&) {}

}  // namespace sslfast::device
