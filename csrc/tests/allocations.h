// How much memory a piece of code asks for, told by the sanitizer the tests are built with.
#pragma once

#include <cstddef>

namespace gmoe::test {

// Counts what its thread allocates while it lives; one at a time on a thread.
class CountAllocations {
 public:
  CountAllocations();
  ~CountAllocations();
  CountAllocations(const CountAllocations&) = delete;

  // False in a build without a sanitizer, where nothing is counted.
  static bool possible();
  std::size_t peak() const;  // most bytes held at once so far
};

}  // namespace gmoe::test
