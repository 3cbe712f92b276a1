// Bad indices that kernels have met. A kernel leaves a bad index out and notes its position in a word of its operator,
// which lies in page-locked memory: no call copies or clears it, and only a fault changes it. Whoever looks next raises
// for it: the next operator on that device, or who has waited for the device anyway.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/cuda/launch.h"

namespace gmoe::ops {

// An array of indices that a kernel follows, valid in [0, bound). Where a kernel reads several, positions go on from
// one to the next.
struct IndexArgument {
  const char* name;
  std::int64_t size, bound;
};

inline constexpr std::size_t kMaxIndexArguments = 4;

// The operator's word on a device, which is current, as the device sees it. A fault found in it is taken for one of the
// last call, whose arguments these are; `beyond` says what was expected where a position lies past all of them.
// The texts are literals: they are kept.
core::cuda::BadIndex* index_fault_word(std::int32_t device, const char* op, const IndexArgument* arguments,
                                       std::size_t num_arguments, const char* beyond);

// Raises if a bad index is known on this device, and forgets it. Waits for nothing.
void raise_index_faults(std::int32_t device);

}  // namespace gmoe::ops
