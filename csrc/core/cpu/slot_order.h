// Sorts the slots of a block of rows by expert, so that what belongs to an expert stays in registers over its slots.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/isa.h"

namespace gmoe::core::GMOE_ISA {

// At most max_slots slots by expert, ascending within each.
class SlotOrder {
 public:
  SlotOrder(std::int64_t num_experts, std::int64_t max_slots)
      : start_(static_cast<std::size_t>(num_experts + 1)), order_(static_cast<std::size_t>(max_slots)) {}

  void sort(const std::int64_t* expert, std::int64_t num_slots) {
    std::fill(start_.begin(), start_.end(), 0);
    for (std::int64_t s = 0; s < num_slots; ++s) ++start_[expert[s]];
    for (std::size_t e = 1; e < start_.size(); ++e) start_[e] += start_[e - 1];
    for (std::int64_t s = num_slots - 1; s >= 0; --s) order_[--start_[expert[s]]] = s;
  }
  std::int64_t begin(std::int64_t e) const { return start_[e]; }
  std::int64_t end(std::int64_t e) const { return start_[e + 1]; }
  std::int64_t slot(std::int64_t place) const { return order_[place]; }

 private:
  std::vector<std::int64_t> start_, order_;
};

}  // namespace gmoe::core::GMOE_ISA
