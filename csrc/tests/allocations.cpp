#include "tests/allocations.h"

#include <algorithm>

// The sanitizers' allocator interface; null where the program is linked without one. Hooks, and no operator new of our
// own, so that what AddressSanitizer knows about new and delete stays in force.
extern "C" {
__attribute__((weak)) int __sanitizer_install_malloc_and_free_hooks(void (*allocated)(const volatile void*,
                                                                                      std::size_t),
                                                                    void (*freed)(const volatile void*));
__attribute__((weak)) std::size_t __sanitizer_get_allocated_size(const volatile void*);
}

namespace gmoe::test {
namespace {

struct Count {
  bool on = false;
  std::size_t held = 0, peak = 0;
};
thread_local Count t_count;

void allocated(const volatile void*, std::size_t size) {
  Count& count = t_count;
  if (!count.on) return;
  count.held += size;
  count.peak = std::max(count.peak, count.held);
}

void freed(const volatile void* address) {
  Count& count = t_count;
  if (!count.on || address == nullptr) return;
  // What was allocated before the count began is not in it.
  count.held -= std::min(count.held, __sanitizer_get_allocated_size(address));
}

}  // namespace

bool CountAllocations::possible() {
  static const bool installed = __sanitizer_install_malloc_and_free_hooks != nullptr &&
                                __sanitizer_install_malloc_and_free_hooks(allocated, freed) != 0;
  return installed;
}

CountAllocations::CountAllocations() {
  if (possible()) t_count = {.on = true};
}
CountAllocations::~CountAllocations() { t_count.on = false; }

std::size_t CountAllocations::peak() const { return t_count.peak; }

}  // namespace gmoe::test
