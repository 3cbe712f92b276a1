// The orders in which tests run kernels.
#pragma once

#include <string>
#include <vector>

#include "tests/emulator/executor.h"

namespace gmoe::test {

using Settings = emulator::Settings;
using emulator::Copies;
using emulator::Order;

// Each order once, with early and late copies. Sanitizers see their faults whatever the order, and are slow.
inline const std::vector<Settings>& orders() {
#if defined(GMOE_THREAD_SANITIZER) || defined(__SANITIZE_ADDRESS__)
  static const std::vector<Settings> all = {{Order::lowest, Copies::eager, 0, ""},
                                            {Order::highest, Copies::deferred, 0, ""}};
#else
  static const std::vector<Settings> all = {
      {Order::lowest, Copies::eager, 0, ""},    {Order::highest, Copies::deferred, 0, ""},
      {Order::random, Copies::deferred, 1, ""}, {Order::lowest, Copies::deferred, 0, ""},
      {Order::highest, Copies::eager, 0, ""},   {Order::random, Copies::eager, 2, ""}};
#endif
  return all;
}

inline std::string describe(const Settings& s) {
  const char* order = s.order == Order::lowest ? "lowest" : s.order == Order::highest ? "highest" : "random";
  return std::string(order) + " thread first, copies " + (s.copies == Copies::eager ? "early" : "late");
}

}  // namespace gmoe::test
