#include "tests/emulator/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(GMOE_THREAD_SANITIZER)
#include <sanitizer/tsan_interface.h>

extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

#if !defined(__x86_64__)
#error "the emulator switches stacks by x86-64 assembly"
#endif

// Saves what a call must preserve, then the stack pointer to *rdi, and goes on with the stack rsi.
extern "C" void gmoe_switch_stack(void** save, void* load);
asm(R"(
.text
.globl gmoe_switch_stack
.hidden gmoe_switch_stack
.type gmoe_switch_stack, @function
gmoe_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size gmoe_switch_stack, .-gmoe_switch_stack
)");

namespace gmoe::emulator {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr std::size_t kStackBytes = 256 << 10;  // redzones make frames larger
#else
constexpr std::size_t kStackBytes = 128 << 10;
#endif
constexpr int kSavedRegisters = 6;

struct MainStack {
  void* saved = nullptr;
  void* fake_stack = nullptr;
  const void* bottom = nullptr;
  std::size_t bytes = 0;
  void* race_state = nullptr;
};
MainStack g_main;

std::size_t page_bytes() { return static_cast<std::size_t>(::sysconf(_SC_PAGESIZE)); }

}  // namespace

Fiber::Fiber() {
  void* mapping =
      ::mmap(nullptr, kStackBytes + page_bytes(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) throw std::bad_alloc();
  mapping_ = static_cast<char*>(mapping);
  bottom_ = mapping_ + page_bytes();
  if (::mprotect(bottom_, kStackBytes, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
}

Fiber::~Fiber() {
#if defined(GMOE_THREAD_SANITIZER)
  if (race_state_ != nullptr) __tsan_destroy_fiber(race_state_);
#endif
  ::munmap(mapping_, kStackBytes + page_bytes());
}

#if defined(GMOE_THREAD_SANITIZER)
// On the main stack, which the fiber need not be able to leave.
template <typename F>
void Fiber::as_this_fiber(const F& f) {
  void* main = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(race_state_, __tsan_switch_to_fiber_no_sync);
  f();
  __tsan_switch_to_fiber(main, __tsan_switch_to_fiber_no_sync);
}
#endif

void Fiber::start(Entry entry, [[maybe_unused]] void* order) {
  // After the pops and the return that begin it, the stack is as after a call: 8 bytes below a multiple of 16.
  auto* top = reinterpret_cast<std::uintptr_t*>(bottom_ + kStackBytes);
  *--top = 0;
  *--top = reinterpret_cast<std::uintptr_t>(entry);
  for (int i = 0; i < kSavedRegisters; ++i) *--top = 0;
  saved_ = top;
  finished_ = false;
  fake_stack_ = nullptr;
#if defined(GMOE_THREAD_SANITIZER)
  if (race_state_ == nullptr) race_state_ = __tsan_create_fiber(0);
  as_this_fiber([&] { __tsan_acquire(order); });
#endif
}

void Fiber::stop([[maybe_unused]] void* order) {
  if (!finished_) allow(bottom_, kStackBytes);
#if defined(GMOE_THREAD_SANITIZER)
  as_this_fiber([&] { __tsan_release(order); });
#endif
}

void Fiber::resume() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&g_main.fake_stack, bottom_, kStackBytes);
#endif
#if defined(GMOE_THREAD_SANITIZER)
  g_main.race_state = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(race_state_, __tsan_switch_to_fiber_no_sync);
#endif
  gmoe_switch_stack(&g_main.saved, saved_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(g_main.fake_stack, nullptr, nullptr);
#endif
}

void Fiber::entered() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &g_main.bottom, &g_main.bytes);
#endif
}

void Fiber::suspend() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&fake_stack_, g_main.bottom, g_main.bytes);
#endif
#if defined(GMOE_THREAD_SANITIZER)
  __tsan_switch_to_fiber(g_main.race_state, __tsan_switch_to_fiber_no_sync);
#endif
  gmoe_switch_stack(&saved_, g_main.saved);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack_, nullptr, nullptr);
#endif
}

void Fiber::finish() {
  finished_ = true;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(nullptr, g_main.bottom, g_main.bytes);
#endif
#if defined(GMOE_THREAD_SANITIZER)
  __tsan_switch_to_fiber(g_main.race_state, __tsan_switch_to_fiber_no_sync);
#endif
  gmoe_switch_stack(&saved_, g_main.saved);
  std::abort();  // a finished fiber is never resumed
}

#if defined(GMOE_THREAD_SANITIZER)
void release(void* at) { __tsan_release(at); }
void acquire(void* at) { __tsan_acquire(at); }
Unseen::Unseen() {
  AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
  AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
}
Unseen::~Unseen() {
  AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
  AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
}
#else
void release(void*) {}
void acquire(void*) {}
Unseen::Unseen() {}
Unseen::~Unseen() {}
#endif

#if defined(__SANITIZE_ADDRESS__)
void forbid(const void* begin, std::size_t bytes) { __asan_poison_memory_region(begin, bytes); }
void allow(const void* begin, std::size_t bytes) { __asan_unpoison_memory_region(begin, bytes); }
#else
void forbid(const void*, std::size_t) {}
void allow(const void*, std::size_t) {}
#endif

}  // namespace gmoe::emulator
