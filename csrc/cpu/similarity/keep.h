// What similarity_logsumexp keeps from the forward for the backward pass. The same enum and header
// stand in sslfast/_core/similarity/logsumexp_keep.py, which decides what is kept.
#pragma once

#include <stdint.h>

namespace sslfast {

enum class Keep : int { kNothing, kSums, kMeanKeys, kExponentials };

constexpr int64_t kCacheHeader = 16;  // elements before what is kept

}  // namespace sslfast
