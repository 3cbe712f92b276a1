// Uninitialised memory for kernels, at the start of a cache line or on huge pages.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "core/types.h"

namespace gmoe::core {

inline constexpr std::int64_t kCacheLine = 64, kHugePage = std::int64_t{2} << 20;

// Large fresh arrays cost more in page faults than in arithmetic: 87 MB on pages of 4 KiB is 21,000 faults, on pages of
// 2 MiB it is 42. Call this before the first write. It is a hint, without effect where the system does not support it.
inline void ask_for_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] std::size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr auto kPage = static_cast<std::uintptr_t>(kHugePage);
  if (bytes < 2 * kPage) return;  // an allocation this small is likely to reuse mapped pages
  const auto begin = reinterpret_cast<std::uintptr_t>(data);
  const std::uintptr_t first = (begin + kPage - 1) / kPage * kPage, last = (begin + bytes) / kPage * kPage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

// Starts at a multiple of Alignment bytes. A Workspace on huge pages also avoids most translation misses of random
// reads.
template <typename T, std::int64_t Alignment = kCacheLine>
class Workspace {
 public:
  explicit Workspace(std::int64_t size) {
    const std::int64_t bytes = round_up(std::max<std::int64_t>(1, size) * sizeof(T), Alignment);
    memory_.reset(static_cast<T*>(std::aligned_alloc(Alignment, static_cast<std::size_t>(bytes))));
    if (!memory_) throw std::bad_alloc();
    if constexpr (Alignment == kHugePage) ask_for_huge_pages(memory_.get(), static_cast<std::size_t>(bytes));
  }
  T* data() const { return memory_.get(); }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> memory_;
};

}  // namespace gmoe::core
