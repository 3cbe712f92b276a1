// What every CUDA launcher takes beside its arguments. Needs no CUDA header, so that callers can be plain C++.
#pragma once

#include <cstdint>

namespace gmoe::core::cuda {

// A cudaStream_t; null is the default stream.
using Stream = void*;

// Where kernels note a bad index instead of following it: a word that the device can reach and that the caller set to
// kNoBadIndex. It ends as the flat position of the first bad value, whatever the order of the threads.
using BadIndex = unsigned long long;
inline constexpr BadIndex kNoBadIndex = ~BadIndex{0};

struct Call {
  void* workspace;  // as many bytes as the operator's <op>_workspace(...) says, 16-byte aligned; contents do not matter
  BadIndex* bad_index;  // not needed by operators that follow no index
  Stream stream;
};

// Of the routers and of expert_plan: the scores of a few rows, or the counts of a few warps, stand in shared memory.
inline constexpr std::int64_t kMaxExperts = 1024;

}  // namespace gmoe::core::cuda
