// Arrays out of a workspace, each 16-byte aligned. The same calls on no memory count the bytes to ask for.
#pragma once

#include <cstdint>

#include "core/types.h"

namespace gmoe::core::cuda {

class Workspace {
 public:
  explicit Workspace(void* memory) : memory_(static_cast<unsigned char*>(memory)) {}

  template <typename T>
  T* take(std::int64_t n) {
    constexpr std::int64_t kAlignment = 16;
    const std::int64_t at = bytes_;
    bytes_ += round_up(n * static_cast<std::int64_t>(sizeof(T)), kAlignment);
    return memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + at);
  }
  std::int64_t bytes() const { return bytes_; }
  bool counts_only() const { return memory_ == nullptr; }

 private:
  unsigned char* memory_;
  std::int64_t bytes_ = 0;
};

}  // namespace gmoe::core::cuda
