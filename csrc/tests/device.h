// The device that a test's kernels run on. Tests of kernels are compiled into core_tests for the CPU and, with
// GMOE_TEST_CUDA, into cuda_tests for CUDA on the emulator; bench/device compiles them for a GPU. A subject's `run`
// functions call the kernel of the device at hand, and cases and checks are the same.
#pragma once

#include <cstdint>
#include <vector>

#include "core/cuda/launch.h"
#include "tests/check.h"

namespace gmoe::test {

#ifdef GMOE_TEST_CUDA
inline constexpr bool kOnDevice = true;
#else
inline constexpr bool kOnDevice = false;
#endif

// What a CUDA launcher takes beside its arguments: a workspace of exactly the bytes that the operator asks for, full of
// NaN, and a word for bad indices. Idle on the CPU, where callers check indices.
class Device {
 public:
  core::cuda::Call call(std::int64_t workspace_bytes = 0) {
    // 16-byte aligned, as memory of the device is, and not one byte longer.
    workspace_ = std::vector<unsigned char>(static_cast<std::size_t>(workspace_bytes), 0xFF);
    bad_index_[0] = core::cuda::kNoBadIndex;
    return {.workspace = workspace_.data(), .bad_index = bad_index_.data(), .stream = nullptr};
  }
  // Position of the first bad index, or -1.
  std::int64_t bad_index() const { return static_cast<std::int64_t>(bad_index_[0]); }

 private:
  std::vector<unsigned char> workspace_;
  // In a vector, for a device does not see the stack.
  std::vector<core::cuda::BadIndex> bad_index_ = std::vector<core::cuda::BadIndex>(1, core::cuda::kNoBadIndex);
};

// Bad indices are a case on a device only. {false, true} there, else {false}.
inline std::vector<bool> good_and_bad() { return kOnDevice ? std::vector{false, true} : std::vector{false}; }

}  // namespace gmoe::test

// Runs in all orders of a device's threads; on the CPU its work is too little to share.
#define GMOE_SMALL_TEST(name) GMOE_TEST_OF_KIND(name, ::gmoe::test::kOnDevice)
