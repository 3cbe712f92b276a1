// gmoe_ext._cuda: importing it, after _C, gives the gmoe torch operators their kernels for CUDA tensors. Starts no
// device.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>

#include "ops/cuda/index_faults.h"

namespace {

pybind11::dict build_info() {
  pybind11::dict info;
  info["cuda"] = std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
  info["cuda_architectures"] = GMOE_CUDA_ARCHITECTURES;
  return info;
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "Kernels of the gmoe torch operators for CUDA tensors.";
  m.def("build_info", &build_info, "The version of CUDA and the architectures that this was built for.");
  m.def("raise_index_faults", &gmoe::ops::raise_index_faults, pybind11::arg("device"),
        "Raises for a bad index that is known on a device; waits for nothing.");
}
