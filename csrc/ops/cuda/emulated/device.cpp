// The device of the tests: CPU tensors, and the host executor, which runs one kernel at a time.
#include <cstring>
#include <mutex>

#include "ops/cuda/device.h"

namespace gmoe::ops {
namespace {

std::recursive_mutex g_executor;

}  // namespace

bool on_device(const Tensor& t) { return t.is_cpu(); }
std::string device_name(std::int32_t) { return "cpu"; }

DeviceScope::DeviceScope(std::int32_t) : guard_(nullptr) { g_executor.lock(); }
DeviceScope::~DeviceScope() { g_executor.unlock(); }

core::cuda::Stream current_stream(std::int32_t) { return nullptr; }
void wait_for(core::cuda::Stream) {}
void copy_to_host(void* to, const void* from, std::size_t bytes, core::cuda::Stream) { std::memcpy(to, from, bytes); }

SharedWords allocate_shared_words(std::size_t count) {
  auto* words = new core::cuda::BadIndex[count];
  return {words, words};
}

}  // namespace gmoe::ops
