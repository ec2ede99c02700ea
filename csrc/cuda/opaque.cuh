// Keeps the compiler from holding on to what it has computed from a number, where computing it
// again is cheaper than a register.
#pragma once

namespace sslfast::device {

__device__ __forceinline__ void make_opaque(float& x) { asm volatile("" : "+f"(x)); }
__device__ __forceinline__ void make_opaque(int& x) { asm volatile("" : "+r"(x)); }
__device__ __forceinline__ void make_opaque(unsigned long long& x) { asm volatile("" : "+l"(x)); }

}  // namespace sslfast::device
