// gmoe_ext._C of the tests: the torch operators on CPU tensors by the wrappers and kernels of CUDA, in the host
// executor.
#include <pybind11/pybind11.h>

#include "ops/compat.h"
#include "ops/cuda/index_faults.h"

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
