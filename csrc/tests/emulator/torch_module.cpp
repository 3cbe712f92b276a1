// A gmoe_ext._C for tests: the torch operators on CPU tensors, by the wrappers and kernels of CUDA on the emulator.
#include <pybind11/pybind11.h>

#include <cstring>
#include <mutex>

#include "ops/compat.h"
#include "ops/cuda/device.h"
#include "ops/cuda/index_faults.h"

namespace gmoe::ops {
namespace {

std::recursive_mutex g_emulator;  // which runs one kernel at a time

}  // namespace

bool on_device(const Tensor& t) { return t.is_cpu(); }
std::string device_name(std::int32_t) { return "cpu"; }

DeviceScope::DeviceScope(std::int32_t) : guard_(nullptr) { g_emulator.lock(); }
DeviceScope::~DeviceScope() { g_emulator.unlock(); }

core::cuda::Stream current_stream(std::int32_t) { return nullptr; }
void wait_for(core::cuda::Stream) {}
void copy_to_host(void* to, const void* from, std::size_t bytes, core::cuda::Stream) { std::memcpy(to, from, bytes); }

SharedWords allocate_shared_words(std::size_t count) {
  auto* words = new core::cuda::BadIndex[count];
  return {words, words};
}

}  // namespace gmoe::ops

namespace {

pybind11::dict build_info() {
  pybind11::dict info;
  info["version"] = GMOE_VERSION;
  info["torch"] = GMOE_BUILD_TORCH;
  info["compiler"] = GMOE_BUILD_COMPILER;
  info["build_type"] = GMOE_BUILD_TYPE;
  info["cpu"] = "emulated";
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Registers the gmoe torch operators on an emulated device.";
  m.def("build_info", &build_info, "Versions this library was built with.");
  m.def("num_threads", [] { return 1; }, "The emulated device runs one thread at a time.");
  m.def("raise_index_faults", &gmoe::ops::raise_index_faults, pybind11::arg("device"),
        "Raises for a bad index that is known; waits for nothing.");
}
