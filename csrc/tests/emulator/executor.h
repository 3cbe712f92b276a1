// Runs CUDA kernels on the CPU, for tests: it proves indexing, arithmetic and synchronisation, not speed.
//
// A block's threads are fibers, blocks run one after another, a barrier is a switch. Nothing runs in lockstep: a thread
// goes on until it waits, and who goes next follows an order that the test chooses. What a kernel leaves to chance
// (an exchange without a barrier, a copy without a wait) shows as a result that depends on the order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <source_location>
#include <stdexcept>
#include <string>
#include <tuple>

namespace gmoe::emulator {

// Which of the threads that could go on does, and in which order blocks run.
enum class Order { lowest, highest, random };
// When an asynchronous copy happens: at once, or as late as its wait allows.
enum class Copies { eager, deferred };

struct Settings {
  Order order = Order::lowest;
  Copies copies = Copies::eager;
  std::uint64_t seed = 0;  // of Order::random
  std::string without;     // the barrier or wait at this place, as places() names it, does nothing
};
Settings& settings();

// Barriers and waits that kernels have met since this was last cleared, by their "file:line:column".
enum class Kind { block_barrier, warp_barrier, wait };
std::map<std::string, Kind>& places();

// A launch that no GPU would accept, or a kernel that breaks a rule of CUDA: what, where, which block and thread.
struct LaunchError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Index3 {
  unsigned x = 0, y = 0, z = 0;
};
struct Indices {
  Index3 thread, block, block_size, grid_size;
};
extern Indices g_indices;  // of the running thread

using Place = std::source_location;

enum class Exchange { sync, shuffle, ballot, match, together };

// What core/cuda/instructions.cuh calls, all from within a kernel.
struct Votes {
  int count = 0;  // of threads whose predicate is true
};
Votes sync_threads(bool predicate, const Place& place);
// Waits for the lanes of mask. shuffle: the value of lane `source`; ballot: lanes with a value other than 0; match:
// lanes with the same value.
std::uint64_t exchange(Exchange kind, unsigned mask, std::uint64_t value, int source, const Place& place);
int lane();
// What a warp does as one: f, once all lanes have come, on what each of them gave. f must not be seen by
// ThreadSanitizer (matrix.cpp), or it takes the lanes' variables for shared ones.
using Together = void (*)(void* const (&lane)[32]);
void together(Together f, void* own, const Place& place);
void copy_async16(void* shared, const void* global, bool valid, const Place& place);
void commit_copies();
void wait_for_copies(int newest_left, const Place& place);
void* shared_array(const void* key, std::size_t bytes, std::size_t alignment, const Place& place);
// Bytes [begin, end) of the dynamic memory; those up to the next multiple of 16 are forbidden.
unsigned char* dynamic_shared(std::int64_t begin, std::int64_t end, const Place& place);
void check_alignment(const void* address, std::size_t alignment, const Place& place);

struct Shape {
  const char* kernel;
  std::int64_t blocks;
  int threads;
  std::size_t shared_bytes;
};
// Between launches, before a fork: ThreadSanitizer sees nothing in the child of a process that has several threads.
void forget_threads();
void run(const Shape& shape, void (*body)(void* context), void* context);

template <typename... Parameters, typename... Arguments>
void launch(const Shape& shape, void (*kernel)(Parameters...), const Arguments&... arguments) {
  std::tuple<Parameters...> copies(arguments...);
  auto body = [&] { std::apply(kernel, copies); };
  run(shape, [](void* context) { (*static_cast<decltype(body)*>(context))(); }, &body);
}

}  // namespace gmoe::emulator
