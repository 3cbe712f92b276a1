#include "core/parallel.h"

namespace gmoe::core {
namespace {

void run_serial(std::int64_t n, std::int64_t, RangeFunction function, const void* context) { function(0, n, context); }
int one_thread() { return 1; }

ParallelBackend g_backend{run_serial, one_thread};

}  // namespace

void set_parallel_backend(ParallelBackend backend) { g_backend = backend; }
const ParallelBackend& parallel_backend() { return g_backend; }

}  // namespace gmoe::core
