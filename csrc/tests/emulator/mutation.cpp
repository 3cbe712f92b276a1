#include "tests/emulator/mutation.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>

#include "tests/check.h"
#include "tests/emulator/orders.h"

namespace gmoe::test {
namespace {

constexpr unsigned kSecondsPerMutant = 60;  // a mutant may run for ever

// Whether a check fails, the kernel breaks a rule, or the bits of one order differ from those of another.
bool shows(const std::function<void()>& f, const std::string& place) {
  std::uint64_t bits = 0;
  const int failures = state().failures;
  for (const Settings& order : orders()) {
    emulator::settings() = order;
    emulator::settings().without = place;
    state().bits = 0;
    f();
    if (state().failures != failures) return true;
    if (&order != &orders()[0] && state().bits != bits) return true;
    bits = state().bits;
  }
  return false;
}

}  // namespace

int in_child(const std::function<void()>& f) {
  emulator::forget_threads();
  const pid_t child = ::fork();
  if (child < 0) throw std::runtime_error("fork failed");
  if (child == 0) {
    const int nowhere = ::open("/dev/null", O_WRONLY);
    ::dup2(nowhere, STDOUT_FILENO);
    ::dup2(nowhere, STDERR_FILENO);
    ::alarm(kSecondsPerMutant);
    int status = 0;
    try {
      f();
    } catch (const std::exception&) {
      status = 1;
    }
    ::_exit(status);
  }
  int status = 0;
  if (::waitpid(child, &status, 0) != child) throw std::runtime_error("waitpid failed");
  return status;
}

std::vector<Mutant> leave_out_each_place(const std::function<void()>& f, const Wanted& wanted) {
  auto& places = emulator::places();
  places.clear();
  f();
  const auto found = places;
  std::vector<Mutant> mutants;
  for (const auto& [place, kind] : found) {
    if (!wanted(place, kind)) continue;
    const int status = in_child([&, &place = place] {
      if (shows(f, place)) throw std::runtime_error("noticed");
    });
    mutants.push_back({place, kind, status != 0});
  }
  return mutants;
}

}  // namespace gmoe::test
