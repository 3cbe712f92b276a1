// Mutants of kernels, made at run time: one barrier does nothing, or one wait is weaker by a group of copies.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "tests/emulator/executor.h"

namespace gmoe::test {

struct Mutant {
  std::string place;  // file:line:column of the barrier or wait
  emulator::Kind kind;
  bool noticed;  // a check failed, bits depended on the order, or the process ended
};

// Runs f with each place left out that f meets and `wanted` names, in all orders until it is noticed.
using Wanted = std::function<bool(const std::string& place, emulator::Kind kind)>;
std::vector<Mutant> leave_out_each_place(
    const std::function<void()>& f, const Wanted& wanted = [](const auto&, auto) { return true; });

// Exit status of f in a process of its own, whose output is dropped: what f breaks stays there.
int in_child(const std::function<void()>& f);

}  // namespace gmoe::test
