// Runs device code on the CPU, so that its arithmetic and its indices are tested without a GPU.
//
// A thread of a block is a fiber; a fiber runs until it waits for its warp or its block, then the
// next one goes on. It shows neither races nor speed: threads never run at the same time.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#define __CUDACC__ 1
#define __CUDA_ARCH__ 900
#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

struct Index {
  unsigned x = 0, y = 0, z = 0;
};
inline Index threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

constexpr int kWarp = 32;
constexpr std::size_t kStack = 64 << 10;

// Fibers wait here until as many as take part have come.
struct Meeting {
  int come = 0;
  unsigned times = 0;
};
struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Index index;
  bool ended = false;
};
struct Block {
  ucontext_t scheduler;
  std::vector<Fiber> fibers;
  std::vector<Meeting> warps;
  std::vector<double> lanes;  // what a lane shows its warp, as bytes
  Meeting all;
  std::function<void()> body;
  int current = 0;
};
inline Block* block;

inline void wait(Meeting& meeting, int fibers) {
  const unsigned before = meeting.times;
  if (++meeting.come == fibers) {
    meeting.come = 0;
    ++meeting.times;
  }
  while (meeting.times == before)
    swapcontext(&block->fibers[block->current].context, &block->scheduler);
}

inline void enter() {
  block->body();
  block->fibers[block->current].ended = true;
}

// Every block starts with noise in its shared memory, and must leave alone what is not its own.
constexpr int kMostShared = 48 << 10;
constexpr char kNoise = char(0xff);  // NaN, whatever the type
alignas(16) inline char dynamic_shared[kMostShared];
inline void poison_shared(int) { std::memset(dynamic_shared, kNoise, kMostShared); }
inline void check_shared(int own) {
  static const std::vector<char> noise(kMostShared, kNoise);
  if (std::memcmp(dynamic_shared + own, noise.data(), kMostShared - own) == 0) return;
  std::fprintf(stderr, "shared memory was written beyond the %d bytes of a block\n", own);
  std::abort();
}

inline void run_block(const std::function<void()>& body) {
  const int threads = int(blockDim.x * blockDim.y);
  Block here;
  here.fibers.resize(threads);
  here.warps.resize(threads / kWarp);
  here.lanes.resize(threads);
  here.body = body;
  block = &here;
  for (int thread = 0; thread < threads; ++thread) {
    Fiber& fiber = here.fibers[thread];
    fiber.index = {thread % blockDim.x, thread / blockDim.x, 0};
    fiber.stack.reset(new char[kStack]);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = &here.scheduler;
    makecontext(&fiber.context, enter, 0);
  }
  for (int left = threads; left > 0;)
    for (here.current = 0; here.current < threads; ++here.current) {
      Fiber& fiber = here.fibers[here.current];
      if (fiber.ended) continue;
      threadIdx = fiber.index;
      swapcontext(&here.scheduler, &fiber.context);
      left -= fiber.ended;
    }
}

// How a kernel is started: blocks, threads (x, y) of a block, bytes of shared memory beyond what
// the kernel declares.
struct Start {
  int grid, x, y, shared;
};

// kernel<<<...>>>(arguments...), whose arguments are of eight bytes each, as in an array of them.
template <class... A, std::size_t... I>
void launch(const Start& start, const void* arguments, void (*kernel)(A...),
            std::index_sequence<I...>) {
  const auto argument = [&](auto* as, std::size_t index) {
    static_assert(sizeof *as == 8);
    std::memcpy(as, static_cast<const char*>(arguments) + 8 * index, 8);
  };
  std::tuple<A...> given;
  (argument(&std::get<I>(given), I), ...);
  gridDim = {unsigned(start.grid), 1, 1};
  blockDim = {unsigned(start.x), unsigned(start.y), 1};
  for (int b = 0; b < start.grid; ++b) {
    blockIdx = {unsigned(b), 0, 0};
    poison_shared(start.shared);
    run_block([&] { std::apply(kernel, given); });
    check_shared(start.shared);
  }
}
template <class... A>
void launch(const Start& start, const void* arguments, void (*kernel)(A...)) {
  launch(start, arguments, kernel, std::index_sequence_for<A...>());
}

}  // namespace emulation

// The kernel as a function of the CPU, for ctypes: emulated_<kernel>.
#define EMULATED(kernel)                                                                    \
  extern "C" void emulated_##kernel(const emulation::Start* start, const void* arguments) { \
    emulation::launch(*start, arguments, kernel);                                           \
  }

// Compiled with -fsanitize=alignment and linked without its library: an address that is no multiple
// of what is read there, which a GPU refuses and this processor does not, is counted.
inline int misaligned = 0;
extern "C" void __ubsan_handle_type_mismatch_v1(void*, void*) { ++misaligned; }
extern "C" int emulation_misaligned() { return misaligned; }

inline float __fdividef(float x, float y) { return x / y; }
inline float normcdff(float x) { return float(erfc(-0.70710678118654752440 * x) / 2); }
inline double normcdf(double x) { return erfc(-0.70710678118654752440 * x) / 2; }
inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

inline void __syncthreads() {
  emulation::wait(emulation::block->all, int(emulation::block->fibers.size()));
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  using namespace emulation;
  const int lane = block->current;
  Meeting& warp = block->warps[lane / kWarp];
  std::memcpy(&block->lanes[lane], &value, sizeof value);
  wait(warp, kWarp);
  T other;
  std::memcpy(&other, &block->lanes[lane ^ mask], sizeof other);
  wait(warp, kWarp);
  return other;
}
