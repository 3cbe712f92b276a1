// gmoe_ext._C: importing it registers the torch operators and lets the kernels run on torch's own threads.
#include <pybind11/pybind11.h>

#include "core/isa.h"
#include "core/parallel.h"
#include "ops/compat.h"

namespace {

void run_on_torch_threads(std::int64_t n, std::int64_t grain, gmoe::core::RangeFunction function, const void* context) {
  torch::stable::parallel_for(0, n, grain,
                              [&](std::int64_t begin, std::int64_t end) { function(begin, end, context); });
}

int torch_num_threads() { return static_cast<int>(torch::stable::get_num_threads()); }

pybind11::dict build_info() {
  pybind11::dict info;
  info["version"] = GMOE_VERSION;
  info["torch"] = GMOE_BUILD_TORCH;
  info["compiler"] = GMOE_BUILD_COMPILER;
  info["build_type"] = GMOE_BUILD_TYPE;
  info["cpu"] = gmoe::core::isa_name(gmoe::core::active_isa());
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Registers the gmoe torch operators.";
  gmoe::core::active_isa();  // a wrong GMOE_EXT_CPU is reported at import, not in the middle of a training run
  gmoe::core::set_parallel_backend({run_on_torch_threads, torch_num_threads});
  m.def("build_info", &build_info, "Versions this library was built with, and the instruction set it runs on.");
  m.def("num_threads", &torch_num_threads, "Threads the operators use: torch.get_num_threads().");
}
