// Numbers of the CPU kernels that Python's formulas of cost and memory know too. sslfast._native
// exports them, and tests/registry/test_constants.py compares.
#pragma once

#include <stdint.h>

namespace sslfast {

constexpr int64_t kLargestBlock = 192;             // rows of a block, the side of a tile
constexpr int64_t kMostPanel = 32;                 // rows of a packed panel, in any instruction set
constexpr int64_t kPackedDepth = 384;              // that vector kernels pack at a time
constexpr int64_t kStripBytes = int64_t(2) << 20;  // of packed keys at a time,
constexpr int64_t kLeastStripBlocks = 4;           // but at least so many blocks of them

}  // namespace sslfast
