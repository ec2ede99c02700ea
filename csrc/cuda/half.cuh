// Half precision on the device: its types and their conversions.
//
// By instructions, not by cuda_fp16.h, which NVRTC finds only where a CUDA toolkit is installed.
#pragma once

namespace sslfast::device {

struct Half {
  unsigned short bits;
};
struct BFloat16 {
  unsigned short bits;
};

__device__ inline float widen(Half x) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return wide;
}
__device__ inline float widen(BFloat16 x) { return __uint_as_float(unsigned(x.bits) << 16); }

// To nearest even, as torch rounds.
__device__ inline void narrow(float x, Half& out) {
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
}
__device__ inline void narrow(float x, BFloat16& out) {
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
}

}  // namespace sslfast::device
