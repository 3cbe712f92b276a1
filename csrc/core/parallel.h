// parallel_for over fixed ranges. Who runs the ranges is the client's choice: the torch operators install torch's own
// threads, the serving runtime its own pool; without either the loop is serial. Kernels must cut their work so that the
// result does not depend on the ranges they are handed (an output row has one owner, reductions have fixed chunks).
#pragma once

#include <cstdint>

namespace gmoe::core {

using RangeFunction = void (*)(std::int64_t begin, std::int64_t end, const void* context);

struct ParallelBackend {
  // Calls function on disjoint ranges that cover [0, n), each at least `grain` long but for the last.
  void (*run)(std::int64_t n, std::int64_t grain, RangeFunction function, const void* context);
  int (*num_threads)();
};

void set_parallel_backend(ParallelBackend backend);
const ParallelBackend& parallel_backend();

inline int num_threads() { return parallel_backend().num_threads(); }

// f(begin, end) on ranges of [0, n); f must not throw.
template <typename F>
void parallel_for(std::int64_t n, std::int64_t grain, const F& f) {
  if (n <= 0) return;
  if (n <= grain) {
    f(std::int64_t{0}, n);
    return;
  }
  const auto call = [](std::int64_t begin, std::int64_t end, const void* context) {
    (*static_cast<const F*>(context))(begin, end);
  };
  parallel_backend().run(n, grain, call, &f);
}

// Rows a thread should take at least, so that handing out work stays small beside `work_per_row` units of arithmetic.
inline std::int64_t grain_rows(std::int64_t work_per_row) {
  constexpr std::int64_t kWorkPerTask = 1 << 16;  // ~10 us of vector work
  return work_per_row >= kWorkPerTask ? 1 : kWorkPerTask / (work_per_row < 1 ? 1 : work_per_row);
}

}  // namespace gmoe::core
