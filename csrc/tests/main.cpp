// Runs the tests of core and runtime: core_tests [FILTER] [--files N] [--seed S], all of them or those whose name
// contains FILTER; mutated_files damages N files, others for another seed.
//
// The kernels run on threads that share nothing but their start and their end. Ranges are as short as parallel_for
// allows and alternate between the threads, so neighbours are never on one thread and no lock, queue or counter orders
// them: whatever two ranges do to the same memory is a race that ThreadSanitizer sees.
#include <algorithm>
#include <charconv>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "core/isa.h"
#include "core/parallel.h"
#include "tests/check.h"
#include "tests/sanitizers.h"

GMOE_OPTIONS_OF(asan, GMOE_FILL_WITH_NAN ":detect_stack_use_after_return=1");

namespace gmoe::test {
namespace {

constexpr int kSkipped = 77;  // ctest knows this exit code as "not for this machine"
constexpr int kManyThreads = 2;

int g_threads = 1;
std::int64_t g_shared_loops = 0;  // loops that more than one thread worked on

int count_threads() { return g_threads; }

void run_ranges(std::int64_t n, std::int64_t grain, core::RangeFunction function, const void* context) {
  const std::int64_t length = std::max<std::int64_t>(1, grain);
  const auto run = [=](std::int64_t first) {
    for (std::int64_t begin = first * length; begin < n; begin += g_threads * length) {
      function(begin, std::min(n, begin + length), context);
    }
  };
  if (g_threads > 1 && n > length) ++g_shared_loops;
  std::vector<std::thread> threads;
  for (int t = 1; t < g_threads; ++t) threads.emplace_back(run, t);
  run(0);
  for (std::thread& thread : threads) thread.join();
}

void run_test(const Test& test) {
  std::uint64_t bits = 0;
  for (const int threads : {1, kManyThreads}) {
    if (threads > 1 && !test.parallel) break;
    g_threads = threads;
    g_shared_loops = 0;
    state().bits = 0;
    state().test = join(test.name, " on ", threads, " thread(s)");
    set_case("start");
    try {
      test.run();
    } catch (const std::exception& error) {
      fail(__FILE__, __LINE__, join("threw ", error.what()));
    }
    set_case("end");
    if (threads == 1) {
      bits = state().bits;
      continue;
    }
    CHECK(g_shared_loops > 0);
    CHECK(state().bits == bits);
  }
}

// False where the arguments are none of ours.
bool parse(const std::vector<std::string>& arguments) {
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    const bool is_files = argument == "--files", is_seed = argument == "--seed";
    if (!is_files && !is_seed) {
      if (argument.starts_with("-") || !options().filter.empty()) return false;
      options().filter = argument;
      continue;
    }
    if (++i == arguments.size()) return false;
    std::uint64_t value = 0;
    const char* end = arguments[i].data() + arguments[i].size();
    const std::from_chars_result read = std::from_chars(arguments[i].data(), end, value);
    if (read.ec != std::errc() || read.ptr != end) return false;
    if (is_files) options().files = static_cast<std::int64_t>(std::min<std::uint64_t>(value, 1'000'000'000));
    if (is_seed) options().seed = value;
  }
  return true;
}

int run_all(const std::string& wanted) {
  std::printf("instruction set %s\n", core::isa_name(core::active_isa()));
  core::set_parallel_backend({run_ranges, count_threads});
  std::vector<Test> all = tests();
  std::sort(all.begin(), all.end(), [](const Test& a, const Test& b) { return std::string(a.name) < b.name; });
  return run_matching(all, wanted, run_test);
}

}  // namespace
}  // namespace gmoe::test

int main(int argc, char** argv) {
  if (!gmoe::test::parse({argv + 1, argv + argc})) {
    std::fprintf(stderr, "usage: core_tests [FILTER] [--files N] [--seed S]\n");
    return 2;
  }
  try {
    gmoe::core::active_isa();
  } catch (const std::runtime_error& error) {
    std::printf("skipped: %s\n", error.what());
    return gmoe::test::kSkipped;
  }
  return gmoe::test::run_all(gmoe::test::options().filter);
}
