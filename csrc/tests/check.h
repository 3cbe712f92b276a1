// Tests register themselves; checks note a failure and go on, so that one run shows all of them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

#include "core/types.h"

namespace gmoe::test {

struct Test {
  const char* name;
  void (*run)();
  bool parallel;  // runs with one and with several threads, which must share work and give the same bits
};
inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}
struct Registration {
  Registration(const char* name, void (*run)(), bool parallel) { tests().push_back({name, run, parallel}); }
};

struct State {
  std::string test, where;  // the test and its case at hand, for messages
  int failures = 0;
  std::uint64_t bits = 0;  // of everything that was checked since the test began
};
inline State& state() {
  static State all;
  return all;
}

// What the command line chooses.
struct Options {
  std::string filter;         // of tests, by name
  std::int64_t files = 5000;  // damaged at random
  std::uint64_t seed = 1;     // of their damage
};
inline Options& options() {
  static Options all;
  return all;
}

template <typename... Parts>
std::string join(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

// Names the case that the following checks belong to.
template <typename... Parts>
void set_case(const Parts&... parts) {
  state().where = join(parts...);
}

inline void fail(const char* file, int line, const std::string& what) {
  constexpr int kMostShown = 50;
  if (++state().failures > kMostShown) return;
  std::fprintf(stderr, "%s:%d: %s: %s\n    %s\n", file, line, state().test.c_str(), state().where.c_str(),
               what.c_str());
}

template <typename T>
void add_bits(const std::vector<T>& values) {
  for (const T& value : values) {
    std::uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    state().bits = (state().bits ^ bits) * 0x9E3779B97F4A7C15u + 1;
  }
}

template <typename T>
inline constexpr double kTolerance = 1e-5;  // docs/developing/numerics.md; gradients may be twice as far
template <>
inline constexpr double kTolerance<double> = 1e-12;
template <>
inline constexpr double kTolerance<core::bfloat16> = 1e-2;

template <typename T>
void check_close(const char* file, int line, const char* what, const std::vector<T>& got,
                 const std::vector<double>& want, double tolerance = 2 * kTolerance<T>) {
  if (got.size() != want.size()) return fail(file, line, join(what, ": ", got.size(), " values, not ", want.size()));
  add_bits(got);
  double largest = 0;
  for (const double value : want) largest = std::isfinite(value) ? std::max(largest, std::fabs(value)) : largest;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const auto value = static_cast<double>(core::widen(got[i]));
    const bool equal = value == want[i] || (std::isnan(value) && std::isnan(want[i]));
    if (equal || std::fabs(value - want[i]) <= tolerance * (std::fabs(want[i]) + largest)) continue;
    return fail(file, line, join(what, "[", i, "] is ", value, ", expected ", want[i]));
  }
}

template <typename T>
void check_equal(const char* file, int line, const char* what, const std::vector<T>& got, const std::vector<T>& want) {
  if (got.size() != want.size()) return fail(file, line, join(what, ": ", got.size(), " values, not ", want.size()));
  add_bits(got);
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (got[i] == want[i]) continue;
    return fail(file, line, join(what, "[", i, "] is ", got[i], ", expected ", want[i]));
  }
}

// Runs the tests whose names contain `wanted`, each by run_test(test), and says how each went. Returns the exit code:
// a selection that runs nothing is a failure too.
template <typename RunTest>
int run_matching(const std::vector<Test>& all, const std::string& wanted, const RunTest& run_test) {
  int run = 0;
  for (const Test& test : all) {
    if (std::string(test.name).find(wanted) == std::string::npos) continue;
    const int before = state().failures;
    run_test(test);
    std::printf("%s %s\n", state().failures == before ? "ok    " : "FAILED", test.name);
    std::fflush(stdout);
    ++run;
  }
  std::printf("%d tests, %d failed checks\n", run, state().failures);
  return run > 0 && state().failures == 0 ? 0 : 1;
}

}  // namespace gmoe::test

#define GMOE_TEST_OF_KIND(name, parallel)                                                \
  static void test_##name();                                                             \
  static const ::gmoe::test::Registration register_##name(#name, test_##name, parallel); \
  static void test_##name()
#define GMOE_TEST(name) GMOE_TEST_OF_KIND(name, false)
#define GMOE_PARALLEL_TEST(name) GMOE_TEST_OF_KIND(name, true)
#define CHECK(condition) ((condition) ? void() : ::gmoe::test::fail(__FILE__, __LINE__, #condition))
#define CHECK_CLOSE(got, want) ::gmoe::test::check_close(__FILE__, __LINE__, #got, got, want)
#define CHECK_EQUAL(got, want) ::gmoe::test::check_equal(__FILE__, __LINE__, #got, got, want)
