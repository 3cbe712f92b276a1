#include "ops/cuda/index_faults.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <map>
#include <mutex>

#include "ops/cuda/device.h"

namespace gmoe::ops {
namespace {

using core::cuda::BadIndex;
using core::cuda::kNoBadIndex;

constexpr std::size_t kMaxOperators = 128;

// What the last call of an operator said about its indices.
struct LastCall {
  const char* op;
  std::array<IndexArgument, kMaxIndexArguments> arguments;
  std::size_t num_arguments;
  const char* beyond;
};

struct DeviceWords {
  SharedWords words;
  std::array<LastCall, kMaxOperators> calls;
  std::size_t num_operators = 0;

  DeviceWords() : words(allocate_shared_words(kMaxOperators)) {
    std::fill_n(words.on_host, kMaxOperators, kNoBadIndex);
  }
};

std::mutex g_mutex;
// An operator keeps its word for good: a recorded graph goes on writing to it.
std::map<std::int32_t, DeviceWords> g_devices;

std::string describe(const LastCall& call, BadIndex position, const std::string& device) {
  const std::string where = join(", found on ", device, " by an earlier call");
  auto at = static_cast<std::int64_t>(position);
  for (std::size_t i = 0; i < call.num_arguments; ++i) {
    const IndexArgument& a = call.arguments[i];
    // gmoe_ext/errors.py parses the text into a GraphIndexError: change both together.
    if (at < a.size) {
      return join(call.op, ": index out of range: '", a.name, "' at position ", at, ", expected 0 <= index < ", a.bound,
                  where);
    }
    at -= a.size;
  }
  return join(call.op, ": expected ", call.beyond != nullptr ? call.beyond : "indices in range", where);
}

}  // namespace

BadIndex* index_fault_word(std::int32_t device, const char* op, const IndexArgument* arguments,
                           std::size_t num_arguments, const char* beyond) {
  const std::lock_guard lock(g_mutex);
  DeviceWords& own = g_devices[device];
  std::size_t i = 0;
  while (i < own.num_operators && own.calls[i].op != op) ++i;
  check(i < kMaxOperators, op, ": too many operators");
  own.num_operators = std::max(own.num_operators, i + 1);
  LastCall& call = own.calls[i];
  call.op = op;
  call.beyond = beyond;
  call.num_arguments = num_arguments;
  std::copy_n(arguments, num_arguments, call.arguments.begin());
  return own.words.on_device + i;
}

void raise_index_faults(std::int32_t device) {
  const std::lock_guard lock(g_mutex);
  const auto found = g_devices.find(device);
  if (found == g_devices.end()) return;
  DeviceWords& own = found->second;
  std::string message;
  for (std::size_t i = 0; i < own.num_operators; ++i) {
    std::atomic_ref word(own.words.on_host[i]);
    if (word.load(std::memory_order_relaxed) == kNoBadIndex) continue;
    const BadIndex position = word.exchange(kNoBadIndex, std::memory_order_relaxed);
    // As a rule the others follow from the same index.
    message +=
        message.empty() ? describe(own.calls[i], position, device_name(device)) : join("; so did ", own.calls[i].op);
  }
  check(message.empty(), message);
}

}  // namespace gmoe::ops
