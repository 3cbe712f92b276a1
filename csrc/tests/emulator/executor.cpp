// This file is compiled without ThreadSanitizer: what it does on behalf of threads orders nothing but at barriers.
#include "tests/emulator/executor.h"

#include <algorithm>
#include <array>
#include <bit>
#include <deque>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "tests/emulator/arena.h"
#include "tests/emulator/fiber.h"

namespace gmoe::emulator {

Indices g_indices;

Settings& settings() {
  static Settings all;
  return all;
}
std::map<std::string, Kind>& places() {
  static std::map<std::string, Kind> all;
  return all;
}

namespace {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 1024;
constexpr std::int64_t kMaxBlocks = 0x7fffffff;
constexpr std::size_t kMaxStaticShared = 48 << 10;
constexpr std::size_t kMaxShared = 163 << 10;  // of sm_80
constexpr std::size_t kMaxStuckShown = 4;

enum class Status { ready, at_barrier, at_exchange, done };

struct Copy {
  void* shared;
  const void* global;
  bool valid;
};

struct Thread {
  Fiber fiber;
  Status status = Status::done;
  int rank = 0;  // a lower rank goes first
  Place place;   // of the barrier or exchange it waits at
  bool predicate = false;
  Exchange kind = Exchange::sync;
  unsigned mask = 0;
  std::uint64_t value = 0, result = 0;
  int source = 0;
  Together together = nullptr;
  std::deque<std::vector<Copy>> copies;  // groups; the last one is open
  int barriers = 0;                      // met so far, for the parity of the addresses that order memory
  int warp_barriers = 0;
};

struct Slot {
  const void* key;
  unsigned char* at;
};

struct Block {
  Shape shape;
  void (*body)(void*);
  void* context;
  std::int64_t index = 0;
  std::vector<Thread*> threads;
  std::vector<int> by_rank;
  std::array<std::uint64_t, kMaxThreads / 64> ready{};
  int arrived = 0, done = 0, votes = 0;
  std::vector<Slot> slots;
  std::size_t static_bytes = 0;
  unsigned char* dynamic = nullptr;
  Arena* arena = nullptr;
  std::vector<std::unique_ptr<Arena>> arenas;
  std::string error;
  // Only their addresses are used.
  std::array<char, 2> barrier_order{};
  std::array<std::array<char, 2>, kMaxThreads / kWarp> warp_order{};
  char start_order = 0;
  char end_order = 0;  // of all threads before what follows the launch
};

Block* g_block = nullptr;
int g_current = -1;

Thread& current() { return *g_block->threads[static_cast<std::size_t>(g_current)]; }

std::string text(const Place& place) {
  const std::string file = place.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(place.line()) + ":" + std::to_string(place.column());
}
bool same(const Place& a, const Place& b) {
  return a.line() == b.line() && a.column() == b.column() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

std::string waits_at(int thread) {
  const Thread& t = *g_block->threads[static_cast<std::size_t>(thread)];
  const std::string name = "thread " + std::to_string(thread);
  switch (t.status) {
    case Status::done: return name + " has left the kernel";
    case Status::ready: return name + " runs";
    case Status::at_barrier: return name + " waits at the barrier " + text(t.place);
    case Status::at_exchange: return name + " waits at the warp operation " + text(t.place);
  }
  return name;
}

// Ends the launch: thread_main keeps the message, the other fibers stay where they are, and run() throws on the main
// stack. Nothing is unwound through a switch.
[[noreturn]] void fail(const std::string& what, const Place& place) {
  const Unseen unseen;
  throw LaunchError(what + ", at " + text(place) + ", block " + std::to_string(g_block->index) + ", thread " +
                    std::to_string(g_current));
}

void set_ready(int thread, bool value) {
  const auto rank = static_cast<unsigned>(g_block->threads[static_cast<std::size_t>(thread)]->rank);
  const std::uint64_t bit = std::uint64_t{1} << (rank % 64);
  std::uint64_t& word = g_block->ready[rank / 64];
  word = value ? word | bit : word & ~bit;
}

void wait(Status status, const Place& place) {
  Thread& t = current();
  t.status = status;
  t.place = place;
  set_ready(g_current, false);
}
void wake(int thread) {
  g_block->threads[static_cast<std::size_t>(thread)]->status = Status::ready;
  set_ready(thread, true);
}

bool left_out(Kind kind, const Place& place) {
  const Unseen unseen;
  const std::string name = text(place);
  places().emplace(name, kind);
  return name == settings().without;
}

void do_copy(const Copy& copy) {
  if (copy.valid) {
    std::memcpy(copy.shared, copy.global, 16);
  } else {
    std::memset(copy.shared, 0, 16);
  }
}

void finish_copies(std::size_t groups_left) {
  auto& groups = current().copies;
  while (groups.size() > groups_left) {
    if (settings().copies == Copies::deferred) {
      for (const Copy& copy : groups.front()) do_copy(copy);
    }
    const Unseen unseen;
    groups.pop_front();
  }
}

void leave_kernel() {
  Thread& t = current();
  const bool waited = std::all_of(t.copies.begin(), t.copies.end(), [](const auto& group) { return group.empty(); });
  if (!waited) fail("a thread leaves the kernel without waiting for its asynchronous copies", Place::current());
  t.status = Status::done;
  ++g_block->done;
  set_ready(g_current, false);
  for (std::size_t other = 0; other < g_block->threads.size(); ++other) {
    if (g_block->threads[other]->status == Status::at_barrier) {
      fail("a thread leaves the kernel while " + waits_at(static_cast<int>(other)), g_block->threads[other]->place);
    }
  }
}

void thread_main() {
  Fiber::entered();
  try {
    g_block->body(g_block->context);
    leave_kernel();
  } catch (const std::exception& error) {
    const Unseen unseen;
    g_block->error = error.what();
  }
  current().fiber.finish();
}

int next_ready() {
  for (std::size_t word = 0; word < g_block->ready.size(); ++word) {
    if (g_block->ready[word] != 0) {
      return g_block->by_rank[word * 64 + static_cast<std::size_t>(std::countr_zero(g_block->ready[word]))];
    }
  }
  return -1;
}

std::string stuck() {
  std::string all = "no thread can go on:";
  std::vector<Place> shown;
  for (std::size_t i = 0; i < g_block->threads.size() && shown.size() < kMaxStuckShown; ++i) {
    const Thread& t = *g_block->threads[i];
    const bool known = std::any_of(shown.begin(), shown.end(), [&](const Place& p) { return same(p, t.place); });
    if (t.status != Status::done && known) continue;
    shown.push_back(t.place);
    all += (shown.size() > 1 ? "; " : " ") + waits_at(static_cast<int>(i));
  }
  return all + "; block " + std::to_string(g_block->index);
}

void order_threads(std::mt19937_64& random) {
  Block& block = *g_block;
  block.by_rank.resize(block.threads.size());
  std::iota(block.by_rank.begin(), block.by_rank.end(), 0);
  if (settings().order == Order::highest) std::reverse(block.by_rank.begin(), block.by_rank.end());
  if (settings().order == Order::random) std::shuffle(block.by_rank.begin(), block.by_rank.end(), random);
  for (std::size_t rank = 0; rank < block.by_rank.size(); ++rank) {
    block.threads[static_cast<std::size_t>(block.by_rank[rank])]->rank = static_cast<int>(rank);
  }
}

void run_block(std::int64_t index, std::mt19937_64& random) {
  Block& block = *g_block;
  block.index = index;
  block.arrived = block.done = block.votes = 0;
  block.slots.clear();
  block.static_bytes = 0;
  // Blocks that share nothing, not even memory in turn, show ThreadSanitizer what they do to each other's.
  if (block.arenas.empty() || kKnowsRaces) block.arenas.push_back(std::make_unique<Arena>());
  block.arena = block.arenas.back().get();
  block.arena->reset();
  block.dynamic = block.shape.shared_bytes > 0 ? block.arena->take(block.shape.shared_bytes) : nullptr;
  if (kKnowsRaces) {
    // A fiber's own past is ordered. Another one's thread takes it over, else the same threads of two blocks never
    // race.
    std::rotate(block.threads.begin(), block.threads.begin() + (kWarp + 1) % block.threads.size(), block.threads.end());
  }
  release(&block.start_order);
  order_threads(random);
  for (std::size_t i = 0; i < block.threads.size(); ++i) {
    Thread& t = *block.threads[i];
    const Unseen unseen;
    t.copies.assign(1, {});
    t.barriers = t.warp_barriers = 0;
    wake(static_cast<int>(i));
    t.fiber.start(thread_main, &block.start_order);
  }
  g_indices.block = {static_cast<unsigned>(index), 0, 0};
  for (;;) {
    g_current = next_ready();
    if (g_current < 0) break;
    g_indices.thread = {static_cast<unsigned>(g_current), 0, 0};
    current().fiber.resume();
    if (!block.error.empty()) break;
  }
  if (block.error.empty() && block.done < static_cast<int>(block.threads.size())) block.error = stuck();
  for (Thread* t : block.threads) {
    t->status = Status::done;
    t->fiber.stop(&block.end_order);
  }
}

void check_shape(const Shape& shape) {
  const std::string name = std::string("launch of ") + shape.kernel + ": ";
  if (shape.blocks < 1 || shape.blocks > kMaxBlocks) {
    throw LaunchError(name + std::to_string(shape.blocks) + " blocks, expected 1 to 2147483647");
  }
  if (shape.threads < kWarp || shape.threads > kMaxThreads || shape.threads % kWarp != 0) {
    throw LaunchError(name + std::to_string(shape.threads) + " threads, expected a multiple of 32 up to 1024");
  }
  if (shape.shared_bytes > kMaxShared) {
    throw LaunchError(name + std::to_string(shape.shared_bytes) + " bytes of shared memory, expected at most " +
                      std::to_string(kMaxShared));
  }
  if (g_block != nullptr) throw LaunchError(name + "a kernel launches another");
}

// Threads are kept between launches: a thousand stacks are not made anew for each.
std::vector<std::unique_ptr<Thread>>& pool() {
  static std::vector<std::unique_ptr<Thread>> all;
  return all;
}
Thread* pooled_thread(std::size_t i) {
  while (pool().size() <= i) pool().push_back(std::make_unique<Thread>());
  return pool()[i].get();
}

bool complete(unsigned mask, int first) {
  for (int l = 0; l < kWarp; ++l) {
    if ((mask >> l & 1) != 0 && g_block->threads[static_cast<std::size_t>(first + l)]->status != Status::at_exchange) {
      return false;
    }
  }
  return true;
}

void hand_out(Exchange kind, unsigned mask, int first) {
  const auto at = [&](int l) -> Thread& { return *g_block->threads[static_cast<std::size_t>(first + l)]; };
  if (kind == Exchange::together) {
    void* lane[kWarp];
    for (int l = 0; l < kWarp; ++l) std::memcpy(lane + l, &at(l).value, sizeof lane[l]);
    at(0).together(lane);
  }
  for (int l = 0; l < kWarp; ++l) {
    if ((mask >> l & 1) == 0) continue;
    Thread& t = at(l);
    t.result = 0;
    if (kind == Exchange::shuffle) t.result = at(t.source).value;
    for (int other = 0; other < kWarp && (kind == Exchange::ballot || kind == Exchange::match); ++other) {
      if ((mask >> other & 1) == 0) continue;
      const bool set = kind == Exchange::ballot ? at(other).value != 0 : at(other).value == t.value;
      if (set) t.result |= std::uint64_t{1} << other;
    }
    wake(first + l);
  }
}

}  // namespace

void forget_threads() { pool().clear(); }

void run(const Shape& shape, void (*body)(void*), void* context) {
  check_shape(shape);
  Block block{};
  block.shape = shape;
  block.body = body;
  block.context = context;
  for (int i = 0; i < shape.threads; ++i) block.threads.push_back(pooled_thread(static_cast<std::size_t>(i)));
  g_indices.block_size = {static_cast<unsigned>(shape.threads), 1, 1};
  g_indices.grid_size = {static_cast<unsigned>(shape.blocks), 1, 1};
  g_block = &block;
  std::mt19937_64 random(settings().seed);
  std::vector<std::int64_t> blocks(static_cast<std::size_t>(shape.blocks));
  std::iota(blocks.begin(), blocks.end(), 0);
  if (settings().order == Order::highest) std::reverse(blocks.begin(), blocks.end());
  if (settings().order == Order::random) std::shuffle(blocks.begin(), blocks.end(), random);
  for (const std::int64_t index : blocks) {
    run_block(index, random);
    if (!block.error.empty()) break;
  }
  acquire(&block.end_order);
  g_block = nullptr;
  if (!block.error.empty()) throw LaunchError(std::string("kernel ") + shape.kernel + ": " + block.error);
}

Votes sync_threads(bool predicate, const Place& place) {
  if (left_out(Kind::block_barrier, place)) return {};
  Block& block = *g_block;
  Thread& t = current();
  const int size = static_cast<int>(block.threads.size());
  for (int other = 0; other < size; ++other) {
    const Thread& o = *block.threads[static_cast<std::size_t>(other)];
    if (o.status == Status::done) fail("a barrier is met after " + waits_at(other), place);
    if (o.status != Status::at_barrier) continue;
    if (!same(o.place, place)) fail("a barrier is met while " + waits_at(other), place);
    break;  // the others met the same one
  }
  if (block.done > 0) fail("a barrier is met after a thread has left the kernel", place);
  char* order = &block.barrier_order[static_cast<std::size_t>(t.barriers++ % 2)];
  release(order);
  t.predicate = predicate;
  block.votes += predicate ? 1 : 0;
  wait(Status::at_barrier, place);
  if (++block.arrived == size) {
    for (int i = 0; i < size; ++i) {
      block.threads[static_cast<std::size_t>(i)]->result = static_cast<std::uint64_t>(block.votes);
      wake(i);
    }
    block.arrived = block.votes = 0;
  }
  t.fiber.suspend();
  acquire(order);
  return {static_cast<int>(t.result)};
}

int lane() { return g_current % kWarp; }

std::uint64_t exchange(Exchange kind, unsigned mask, std::uint64_t value, int source, const Place& place) {
  if (kind == Exchange::sync && left_out(Kind::warp_barrier, place)) return 0;
  Thread& t = current();
  const int first = g_current - lane(), warp = g_current / kWarp;
  if ((mask >> lane() & 1) == 0) fail("a lane takes part in a warp operation whose mask leaves it out", place);
  if (kind == Exchange::shuffle && (mask >> source & 1) == 0) fail("a shuffle reads a lane outside its mask", place);
  for (int l = 0; l < kWarp; ++l) {
    if ((mask >> l & 1) == 0 || l == lane()) continue;
    const Thread& other = *g_block->threads[static_cast<std::size_t>(first + l)];
    const bool elsewhere =
        other.status == Status::at_exchange && (other.mask != mask || other.kind != kind || !same(other.place, place));
    if (elsewhere || other.status == Status::done || other.status == Status::at_barrier) {
      fail("a warp operation needs a lane that is elsewhere: " + waits_at(first + l), place);
    }
  }
  char* order = &g_block->warp_order[static_cast<std::size_t>(warp)][static_cast<std::size_t>(t.warp_barriers % 2)];
  if (kind == Exchange::sync) {
    ++t.warp_barriers;
    release(order);
  }
  t.kind = kind;
  t.mask = mask;
  t.value = value;
  t.source = source;
  wait(Status::at_exchange, place);
  if (complete(mask, first)) hand_out(kind, mask, first);
  t.fiber.suspend();
  if (kind == Exchange::sync) acquire(order);
  return t.result;
}

void together(Together f, void* own, const Place& place) {
  current().together = f;
  std::uint64_t value = 0;
  std::memcpy(&value, &own, sizeof own);
  exchange(Exchange::together, 0xffffffffu, value, 0, place);
}

void copy_async16(void* shared, const void* global, bool valid, const Place& place) {
  check_alignment(shared, 16, place);
  check_alignment(global, 16, place);
  if (!g_block->arena->holds(shared)) fail("an asynchronous copy goes elsewhere than to shared memory", place);
  const Copy copy{shared, global, valid};
  if (settings().copies == Copies::eager) do_copy(copy);
  const Unseen unseen;
  current().copies.back().push_back(copy);
}

void commit_copies() {
  const Unseen unseen;
  current().copies.emplace_back();
}

void wait_for_copies(int newest_left, const Place& place) {
  const int more = left_out(Kind::wait, place) ? 1 : 0;  // weaker by one group
  // The open group is none of those that wait counts.
  finish_copies(static_cast<std::size_t>(newest_left + more + 1));
}

void* shared_array(const void* key, std::size_t bytes, std::size_t alignment, const Place& place) {
  Block& block = *g_block;
  for (const Slot& slot : block.slots) {
    if (slot.key == key) return slot.at;
  }
  block.static_bytes += (bytes + alignment - 1) / alignment * alignment;
  if (block.static_bytes > kMaxStaticShared || block.static_bytes + block.shape.shared_bytes > kMaxShared) {
    fail("more shared memory than a block may have", place);
  }
  unsigned char* at = block.arena->take(bytes);
  block.slots.push_back({key, at});
  return at;
}

unsigned char* dynamic_shared(std::int64_t begin, std::int64_t end, const Place& place) {
  const auto size = static_cast<std::int64_t>(g_block->shape.shared_bytes), next = (end + 15) / 16 * 16;
  if (g_block->dynamic == nullptr) fail("the launch gave no dynamic shared memory", place);
  if (end > size) fail("arrays outgrow the dynamic shared memory of the launch", place);
  forbid(g_block->dynamic + end, static_cast<std::size_t>(std::min(next, size) - end));
  return g_block->dynamic + begin;
}

void check_alignment(const void* address, std::size_t alignment, const Place& place) {
  if (reinterpret_cast<std::uintptr_t>(address) % alignment != 0) {
    fail("an access of " + std::to_string(alignment) + " bytes is not aligned", place);
  }
}

}  // namespace gmoe::emulator
