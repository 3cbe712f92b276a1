// What a test needs to call a CUDA launcher on the emulator.
#pragma once

#include <cstdint>
#include <vector>

#include "core/cuda/launch.h"
#include "tests/check.h"

namespace gmoe::test {

// A workspace of exactly the bytes that the operator asks for, full of NaN, and a word for bad indices.
class Device {
 public:
  core::cuda::Call call(std::int64_t workspace_bytes = 0) {
    // 16-byte aligned, as memory of the device is, and not one byte longer.
    workspace_ = std::vector<unsigned char>(static_cast<std::size_t>(workspace_bytes), 0xFF);
    bad_index_[0] = core::cuda::kNoBadIndex;
    return {workspace_.data(), bad_index_.data(), nullptr};
  }
  // Position of the first bad index, or -1.
  std::int64_t bad_index() const { return static_cast<std::int64_t>(bad_index_[0]); }

 private:
  std::vector<unsigned char> workspace_;
  // In a vector, for a device does not see the stack.
  std::vector<core::cuda::BadIndex> bad_index_ = std::vector<core::cuda::BadIndex>(1, core::cuda::kNoBadIndex);
};

}  // namespace gmoe::test
