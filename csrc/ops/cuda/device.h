// What the wrappers need of a device and its runtime. device.cpp asks torch and CUDA; tests have a device that is the
// CPU (tests/emulator/torch_module.cpp): its memory is that of CPU tensors, and launches are over when they return.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "core/cuda/launch.h"
#include "ops/compat.h"

namespace gmoe::ops {

// Whether t lies on a device, whichever.
bool on_device(const Tensor& t);
// As torch prints it.
std::string device_name(std::int32_t device);

// Makes a device the current one of this thread for its scope.
class DeviceScope {
 public:
  explicit DeviceScope(std::int32_t device);
  ~DeviceScope();
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  void* guard_;
};

// torch's current stream on a device.
core::cuda::Stream current_stream(std::int32_t device);
void wait_for(core::cuda::Stream stream);
// Copies back in the order of the stream; done once wait_for returned.
void copy_to_host(void* to, const void* from, std::size_t bytes, core::cuda::Stream stream);

// Words that the host reads where they lie while the current device writes them: page-locked, never given back.
struct SharedWords {
  core::cuda::BadIndex* on_host;
  core::cuda::BadIndex* on_device;
};
SharedWords allocate_shared_words(std::size_t count);

}  // namespace gmoe::ops
