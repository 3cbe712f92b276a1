// Shared memory of one block, in which every array has forbidden bytes around it. Include only from executor.cpp, which
// is compiled without ThreadSanitizer.
#pragma once

#include <sys/mman.h>

#include <cstring>
#include <new>

#include "tests/emulator/fiber.h"

namespace gmoe::emulator {

class Arena {
 public:
  Arena() {
    void* mapping = ::mmap(nullptr, kArenaBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) throw std::bad_alloc();
    base_ = static_cast<unsigned char*>(mapping);
    forbid(base_, kArenaBytes);
  }
  ~Arena() {
    allow(base_, kArenaBytes);
    ::munmap(base_, kArenaBytes);
  }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  void reset() {
    forbid(base_, used_);
    used_ = kGap;
  }
  unsigned char* take(std::size_t bytes) {
    unsigned char* at = base_ + used_;
    used_ += (bytes + kGap - 1) / kGap * kGap + kGap;
    allow(at, bytes);
    const Unseen unseen;
    std::memset(at, 0xFF, bytes);  // NaN, where it is read before it is written
    return at;
  }
  bool holds(const void* at) const { return at >= base_ && at < base_ + kArenaBytes; }

 private:
  static constexpr std::size_t kGap = 64;  // forbidden bytes around every array
  static constexpr std::size_t kArenaBytes = std::size_t{256} << 10;

  unsigned char* base_;
  std::size_t used_ = kGap;  // from the start
};

}  // namespace gmoe::emulator
