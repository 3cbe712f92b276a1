// Runs the tests of the CUDA kernels on the emulator: all of them, or those whose name contains the first
// argument.
//
// A kernel's test runs in every order of threads and blocks, with copies as early and as late as they may happen, and
// must give the same bits each time. With --mutate first, every barrier and wait that the kernels meet is left out in
// turn, which must show in one of the tests that meet it. A __syncwarp is tried under ThreadSanitizer alone: shuffles
// hold the lanes together in every order but make nothing visible.
#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include "tests/check.h"
#include "tests/emulator/executor.h"
#include "tests/emulator/fiber.h"
#include "tests/emulator/mutation.h"
#include "tests/emulator/orders.h"
#include "tests/sanitizers.h"

GMOE_OPTIONS_OF(asan, GMOE_FILL_WITH_NAN);
// A write of the value that is there already is a race too. The first one ends the process: a mutant is noticed by
// that.
GMOE_OPTIONS_OF(tsan, "suppress_equal_addresses=0:halt_on_error=1");

namespace gmoe::test {
namespace {

// AddressSanitizer needs one order, and sees most where a copy touches memory as late as it may: in the last.
std::vector<Settings> orders_of(const Test& test) {
#ifdef __SANITIZE_ADDRESS__
  return {test.parallel ? orders().back() : orders().front()};
#else
  return test.parallel ? orders() : std::vector{orders().front()};
#endif
}

void run_test(const Test& test) {
  std::uint64_t bits = 0;
  bool first = true;
  for (const Settings& order : orders_of(test)) {
    emulator::settings() = order;
    state().bits = 0;
    state().test = join(test.name, ", ", describe(order));
    set_case("start");
    try {
      test.run();
    } catch (const std::exception& error) {
      fail(__FILE__, __LINE__, join("unexpected: ", error.what()));
    }
    set_case("end");
    if (first) bits = state().bits;
    CHECK(state().bits == bits);
    first = false;
  }
}

int run_all(const std::string& wanted) { return run_matching(tests(), wanted, run_test); }

// A place may be needed in one test and idle in another. ThreadSanitizer, which is slow, tries those that the orders
// may not show, and nothing else does.
int mutate_all(const std::string& wanted) {
  std::map<std::string, Mutant> tried;
  const auto is_open = [&](const std::string& place, emulator::Kind kind) {
    const bool noticed = tried.contains(place) && tried.at(place).noticed;
    return !noticed && emulator::kKnowsRaces == (kind == emulator::Kind::warp_barrier);
  };
  for (const Test& test : tests()) {
    const std::string name = test.name;
    // Those of the executor break rules on purpose.
    if (!test.parallel || name.starts_with("executor") || name.find(wanted) == std::string::npos) continue;
    emulator::settings() = {};
    for (const Mutant& mutant : leave_out_each_place(test.run, is_open)) tried.insert_or_assign(mutant.place, mutant);
  }
  int failures = 0;
  for (const auto& [place, mutant] : tried) {
    failures += mutant.noticed ? 0 : 1;
    std::printf("%s %s\n", mutant.noticed ? "needed" : "FAILED", place.c_str());
  }
  std::printf("%zu barriers and waits, %d without effect\n", tried.size(), failures);
  return failures == 0 && !tried.empty() ? 0 : 1;
}

}  // namespace
}  // namespace gmoe::test

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  const bool mutate = !arguments.empty() && arguments[0] == "--mutate";
  const std::string wanted = arguments.size() > (mutate ? 1 : 0) ? arguments.back() : "";
  return mutate ? gmoe::test::mutate_all(wanted) : gmoe::test::run_all(wanted);
}
