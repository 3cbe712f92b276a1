// Stacks to switch between within one operating-system thread, known to the sanitizers. x86-64.
#pragma once

#include <cstddef>

namespace gmoe::emulator {

// A stack with a guard page below it, and what is needed to go on with it.
class Fiber {
 public:
  using Entry = void (*)();

  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Makes it begin with `entry`, which must never return. What came before release(order) happens before that.
  void start(Entry entry, void* order);
  // Forgets where it was, without unwinding. All it did happens before acquire(order).
  void stop(void* order);
  void resume();   // from the main stack, until the fiber calls suspend() or finish()
  void suspend();  // from the fiber, back to the main stack
  [[noreturn]] void finish();

  static void entered();  // the first thing that an entry calls

 private:
  template <typename F>
  void as_this_fiber(const F& f);

  char* mapping_ = nullptr;
  char* bottom_ = nullptr;
  bool finished_ = true;
  void* saved_ = nullptr;       // stack pointer
  void* fake_stack_ = nullptr;  // of AddressSanitizer
  void* race_state_ = nullptr;  // of ThreadSanitizer
};

#if defined(GMOE_THREAD_SANITIZER)
inline constexpr bool kKnowsRaces = true;
#else
inline constexpr bool kKnowsRaces = false;
#endif

// Orders memory for ThreadSanitizer: what came before release(at) happens before what follows acquire(at). Resuming a
// fiber orders nothing.
void release(void* at);
void acquire(void* at);

// What happens while one of these lives, ThreadSanitizer does not see.
class Unseen {
 public:
  Unseen();
  ~Unseen();
  Unseen(const Unseen&) = delete;
  Unseen& operator=(const Unseen&) = delete;
};

// For AddressSanitizer: reading or writing here is a fault, or no longer one.
void forbid(const void* begin, std::size_t bytes);
void allow(const void* begin, std::size_t bytes);

}  // namespace gmoe::emulator
