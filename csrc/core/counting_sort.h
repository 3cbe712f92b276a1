// Stable sorts by small integer keys: one pass counts, one places.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace gmoe::core {

// order[n] = the positions 0 to n - 1 by their key, ascending within a key; those of key e are in
// [offsets[e], offsets[e + 1]), e < num_keys.
inline void counting_sort(const std::int64_t* key, std::int64_t n, std::int64_t num_keys, std::int64_t* offsets,
                          std::int64_t* order) {
  std::fill(offsets, offsets + num_keys + 1, 0);
  for (std::int64_t s = 0; s < n; ++s) ++offsets[key[s]];
  for (std::int64_t e = 1; e <= num_keys; ++e) offsets[e] += offsets[e - 1];
  for (std::int64_t s = n - 1; s >= 0; --s) order[--offsets[key[s]]] = s;
}

// Slots of a block of rows, at most max_slots of them, by expert. Reused from block to block.
class SlotOrder {
 public:
  SlotOrder(std::int64_t num_experts, std::int64_t max_slots)
      : offsets_(static_cast<std::size_t>(num_experts + 1)), order_(static_cast<std::size_t>(max_slots)) {}

  void sort(const std::int64_t* expert, std::int64_t num_slots) {
    counting_sort(expert, num_slots, static_cast<std::int64_t>(offsets_.size()) - 1, offsets_.data(), order_.data());
  }
  std::int64_t begin(std::int64_t e) const { return offsets_[e]; }
  std::int64_t end(std::int64_t e) const { return offsets_[e + 1]; }
  std::int64_t slot(std::int64_t place) const { return order_[place]; }

 private:
  std::vector<std::int64_t> offsets_, order_;
};

}  // namespace gmoe::core
