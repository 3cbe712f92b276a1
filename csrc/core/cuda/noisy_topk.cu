// Forward, a warp takes a few rows at a time, whose noisy logits stand in shared memory (top_k.cuh). A block goes
// through a chunk of rows and adds up what its warps found; a second launch adds the chunks in their order. Backward,
// as many lanes as there are experts share a row, up to a warp, and meet in shuffles alone. Floor: the time to read the
// logits.
#include "core/noisy_topk.h"

#include "core/cuda/top_k.cuh"

namespace gmoe::core::cuda {
namespace {

constexpr std::int64_t kMaxChunks = 3 * 132;  // blocks that an H100 holds at once
constexpr int kAddWarps = 8;
constexpr int kGradThreads = 256;

template <typename T>
__device__ Accumulator<T> noisy_logit(const NoisyLogits<T>& l, std::int64_t at) {
  return widened(l.clean[at]) + widened(l.noise[at]) * widened(l.sigma[at]);
}

template <typename A>
__device__ A standard_normal_below(A z) {
  return A{0.5} * std::erfc(z * A{-0.70710678118654752440});  // 1 / sqrt(2)
}
template <typename A>
__device__ A standard_normal_density(A z) {
  return std::exp(A{-0.5} * z * z) * A{0.39894228040143267794};  // 1 / sqrt(2 pi)
}

template <typename T>
struct Forward {
  using A = Accumulator<T>;

  NoisyTopk<T> a;
  std::int64_t rows_per_chunk, num_chunks;
  A* partial;  // [num_chunks, 2, num_experts]: sums of gates and of chances

  Forward(const NoisyTopk<T>& call, void* workspace) : a(call), partial(static_cast<A*>(workspace)) {
    const std::int64_t rows = router_warps(a.logits.num_experts) * kRowsPerWarp;  // at once
    const std::int64_t steps = divide_up(a.logits.num_rows, kMaxChunks * rows);
    rows_per_chunk = rows * (steps > 1 ? steps : 1);
    num_chunks = divide_up(a.logits.num_rows, rows_per_chunk);
  }
  __host__ __device__ std::int64_t num_sums() const { return 2 * a.logits.num_experts; }
  // Of a row's logits, the chosen and the best of the rest, if there is one.
  __host__ __device__ std::int64_t held() const {
    return a.logits.k < a.logits.num_experts ? a.logits.k + 1 : a.logits.k;
  }
  std::int64_t bytes() const { return num_chunks * num_sums() * static_cast<std::int64_t>(sizeof(A)); }
};

// What a warp has in shared memory of its rows.
template <typename A>
struct WarpRows {
  A* score;   // [rows, num_experts]: noisy logits, then gates, 0 where not chosen
  A* chance;  // [rows, num_experts]: of being chosen
  int* rank;  // [rows, num_experts]
  A* top;     // [rows, held]
};

// Gates, indices and chances of `count` rows from `first` on. By a whole warp.
template <typename T, typename A = Accumulator<T>>
__device__ void route(const Forward<T>& f, std::int64_t first, int count, const WarpRows<A>& rows) {
  const NoisyLogits<T>& l = f.a.logits;
  const std::int64_t experts = l.num_experts, k = l.k, held = f.held(), begin = first * experts;
  for (std::int64_t i = lane_id(); i < count * experts; i += kWarp) rows.score[i] = noisy_logit(l, begin + i);
  __syncwarp();
  for (std::int64_t i = lane_id(); i < count * experts; i += kWarp) {
    const std::int64_t row = i / experts, rank = rank_of(rows.score + row * experts, experts, i % experts);
    rows.rank[i] = static_cast<int>(rank);
    if (rank < held) rows.top[row * held + rank] = rows.score[i];
  }
  __syncwarp();
  for (std::int64_t i = lane_id(); i < count * experts; i += kWarp) {
    const std::int64_t row = i / experts, rank = rows.rank[i];
    const A* top = rows.top + row * held;
    A gate = 0;
    if (rank < k) {
      // The largest comes first, or NaN, which makes the whole row NaN.
      A sum = 0;
      for (std::int64_t r = 0; r < k; ++r) sum += std::exp(top[r] - top[0]);
      gate = std::exp(top[rank] - top[0]) / sum;
      f.a.gate[(first + row) * k + rank] = narrowed<T>(gate);
      f.a.index[(first + row) * k + rank] = i % experts;
    }
    rows.score[i] = gate;
    // An expert is chosen when it beats the k-th best of the others.
    const A rival = rank < k ? top[held - 1] : top[k - 1];
    const A ahead = (widened(l.clean[begin + i]) - rival) / widened(l.sigma[begin + i]);
    rows.chance[i] = k == experts ? A{1} : standard_normal_below(ahead);
  }
}

template <typename T>
__global__ void noisy_topk_kernel(Forward<T> f) {
  using A = Accumulator<T>;
  const std::int64_t experts = f.a.logits.num_experts, scores = kRowsPerWarp * experts, warps = warps_per_block();
  DynamicShared shared;
  const WarpRows<A> rows{shared.take<A>(warps * scores) + warp_id() * scores,
                         shared.take<A>(warps * scores) + warp_id() * scores,
                         shared.take<int>(warps * scores) + warp_id() * scores,
                         shared.take<A>(warps * kRowsPerWarp * f.held()) + warp_id() * kRowsPerWarp * f.held()};
  A* sums = shared.take<A>(warps * f.num_sums());  // of every warp; a lane owns those that it adds up
  A* own = sums + warp_id() * f.num_sums();
  for (std::int64_t j = lane_id(); j < f.num_sums(); j += kWarp) own[j] = 0;
  const std::int64_t begin = blockIdx.x * f.rows_per_chunk;
  const std::int64_t end =
      begin + f.rows_per_chunk < f.a.logits.num_rows ? begin + f.rows_per_chunk : f.a.logits.num_rows;
  for (std::int64_t first = begin + warp_id() * kRowsPerWarp; first < end; first += warps * kRowsPerWarp) {
    const int count = static_cast<int>(end - first < kRowsPerWarp ? end - first : kRowsPerWarp);
    route(f, first, count, rows);
    __syncwarp();
    for (std::int64_t j = lane_id(); j < f.num_sums(); j += kWarp) {
      const A* value = j < experts ? rows.score + j : rows.chance + j - experts;
      for (int row = 0; row < count; ++row) own[j] += value[row * experts];
    }
    __syncwarp();
  }
  __syncthreads();
  for (std::int64_t j = threadIdx.x; j < f.num_sums(); j += blockDim.x) {
    A total = 0;
    for (std::int64_t w = 0; w < warps; ++w) total += sums[w * f.num_sums() + j];
    f.partial[blockIdx.x * f.num_sums() + j] = total;
  }
}

// A block adds up 32 of the sums: a warp a share of the chunks, a lane a sum.
template <typename T>
__global__ void __launch_bounds__(kAddWarps* kWarp) add_chunks_kernel(Forward<T> f) {
  using A = Accumulator<T>;
  GMOE_SHARED_ARRAY(A, part, kAddWarps * kWarp);
  const std::int64_t experts = f.a.logits.num_experts, j = static_cast<std::int64_t>(blockIdx.x) * kWarp + lane_id();
  const std::int64_t per_warp = divide_up(f.num_chunks, kAddWarps), begin = warp_id() * per_warp;
  const std::int64_t end = begin + per_warp < f.num_chunks ? begin + per_warp : f.num_chunks;
  A sum = 0;
  if (j < f.num_sums()) {
#pragma unroll 8
    for (std::int64_t c = begin; c < end; ++c) sum += f.partial[c * f.num_sums() + j];
  }
  part[threadIdx.x] = sum;
  __syncthreads();
  if (warp_id() > 0 || j >= f.num_sums()) return;
  sum = 0;
  for (int w = 0; w < kAddWarps; ++w) sum += part[w * kWarp + lane_id()];
  (j < experts ? f.a.importance[j] : f.a.load[j - experts]) = sum;
}

// Lanes that share a row, a power of two.
inline int grad_lanes(std::int64_t num_experts) {
  int lanes = 1;
  while (lanes < kWarp && lanes < num_experts) lanes *= 2;
  return lanes;
}
template <typename A>
__device__ A sum_over(int lanes, A value) {
  for (int step = lanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

template <typename A>
struct Expert {
  A noisy;
  int number;  // -1: none

  __device__ bool beats(const Expert& other) const {
    if (number < 0 || other.number < 0) return other.number < 0;
    return ranks_above(noisy, other.noisy) || (!ranks_above(other.noisy, noisy) && number < other.number);
  }
};
template <typename A>
__device__ Expert<A> best_over(int lanes, Expert<A> own) {
  for (int step = lanes / 2; step > 0; step /= 2) {
    const Expert<A> other{__shfl_xor_sync(kAllLanes, own.noisy, step), __shfl_xor_sync(kAllLanes, own.number, step)};
    if (other.beats(own)) own = other;
  }
  return own;
}

// A row of the gradient, on `lanes` lanes, of which `lane` takes every lanes-th expert. Lanes without a row have no
// experts and no choices, but take part in the shuffles.
template <typename T>
struct GradRow {
  using A = Accumulator<T>;

  const NoisyTopkGrad<T>& g;
  std::int64_t row, experts, k;
  int lanes, lane;
  BadIndex* bad;

  __device__ std::int64_t at(std::int64_t e) const { return row * g.logits.num_experts + e; }
  __device__ A noisy(std::int64_t e) const { return noisy_logit(g.logits, at(e)); }
  // The choice that is this expert, or -1.
  __device__ int choice(std::int64_t e) const {
    int found = -1;
    for (std::int64_t r = 0; r < k; ++r) found = g.index[row * k + r] == e ? static_cast<int>(r) : found;
    return found;
  }
  // What reaches the gate of a choice, by itself and by the importance of its expert.
  __device__ A grad_gate(std::int64_t r) const {
    const std::int64_t s = row * k + r, e = g.index[s];
    const A grad = widened(g.grad_gate[s]);
    return e >= 0 && e < experts ? grad + g.grad_importance[e] : grad;
  }
  __device__ A mean_grad_gate() const {
    A sum = 0, gates = 0;
    for (std::int64_t r = lane; r < k; r += lanes) {
      check_index(g.index[row * k + r], experts, row * k + r, bad);
      sum += widened(g.gate[row * k + r]) * grad_gate(r);
      gates += widened(g.gate[row * k + r]);
    }
    sum = sum_over(lanes, sum);
    // Gates that were rounded do not add up to 1; the difference would carry that error of the whole grad_gate.
    if constexpr (std::is_same_v<T, bfloat16>) sum /= sum_over(lanes, gates);
    return sum;
  }
  // The last choice; none if its index is bad.
  __device__ Expert<A> last() const {
    const std::int64_t e = k > 0 ? g.index[row * k + k - 1] : -1;
    return e >= 0 && e < experts ? Expert<A>{noisy(e), static_cast<int>(e)} : Expert<A>{A{0}, -1};
  }
  // The best expert that is not chosen.
  __device__ Expert<A> next() const {
    Expert<A> best{A{0}, -1};
    for (std::int64_t e = lane; e < experts; e += lanes) {
      const Expert<A> own{noisy(e), static_cast<int>(e)};
      if (choice(e) < 0 && own.beats(best)) best = own;
    }
    return best_over(lanes, best);
  }
};

// With a_e = grad_load_e phi(z_e) / sigma_e, the gradients of clean and sigma through z are a_e and -a_e z_e, and that
// of the logit that is the threshold -a_e. What reaches a noisy logit, by the gates or as a threshold, goes to clean as
// it is and to sigma times the noise.
template <typename T>
__global__ void __launch_bounds__(kGradThreads) noisy_topk_grad_kernel(NoisyTopkGrad<T> g, int lanes, BadIndex* bad) {
  using A = Accumulator<T>;
  const std::int64_t i = (static_cast<std::int64_t>(blockIdx.x) * kGradThreads + threadIdx.x) / lanes;
  const bool real = i < g.logits.num_rows, all = g.logits.k == g.logits.num_experts;
  const GradRow<T> row{
      g, i, real ? g.logits.num_experts : 0, real ? g.logits.k : 0, lanes, static_cast<int>(threadIdx.x) % lanes, bad};
  const A mean = row.mean_grad_gate();
  const Expert<A> none{A{0}, -1}, last = all ? none : row.last(), next = all ? none : row.next();
  const auto ahead = [&](std::int64_t e, bool chosen) {
    return (widened(g.logits.clean[row.at(e)]) - (chosen ? next.noisy : last.noisy)) /
           widened(g.logits.sigma[row.at(e)]);
  };
  const auto through_chance = [&](std::int64_t e, A z) {
    return all ? A{0} : g.grad_load[e] * standard_normal_density(z) / widened(g.logits.sigma[row.at(e)]);
  };
  A inside = 0, outside = 0;  // sums of a
#pragma unroll 1
  for (std::int64_t e = row.lane; e < row.experts; e += lanes) {
    const bool chosen = row.choice(e) >= 0;
    (chosen ? inside : outside) += through_chance(e, ahead(e, chosen));
  }
  inside = sum_over(lanes, inside);
  outside = sum_over(lanes, outside);
#pragma unroll 1
  for (std::int64_t e = row.lane; e < row.experts; e += lanes) {
    const int r = row.choice(e);
    const A z = all ? A{0} : ahead(e, r >= 0), own = through_chance(e, z);
    A noisy = r < 0 ? A{0} : widened(g.gate[i * g.logits.k + r]) * (row.grad_gate(r) - mean);
    if (e == next.number) noisy -= inside;
    if (e == last.number) noisy -= outside;
    g.grad_clean[row.at(e)] = narrowed<T>(own + noisy);
    g.grad_sigma[row.at(e)] = narrowed<T>(noisy * widened(g.logits.noise[row.at(e)]) - own * z);
  }
}

}  // namespace

template <typename T>
std::int64_t noisy_topk_workspace(std::int64_t num_rows, std::int64_t num_experts) {
  NoisyTopk<T> a{};
  a.logits.num_rows = num_rows;
  a.logits.num_experts = num_experts;
  return Forward<T>(a, nullptr).bytes();
}

template <typename T>
void noisy_topk(const NoisyTopk<T>& a, const Call& call) {
  using A = Accumulator<T>;
  check_experts("noisy_topk", a.logits.num_experts);
  const Forward<T> f(a, call.workspace);
  const int warps = router_warps(a.logits.num_experts);
  const std::int64_t scores = warps * kRowsPerWarp * a.logits.num_experts;
  if (f.num_chunks > 0) {
    launch("noisy_topk", noisy_topk_kernel<T>, f.num_chunks, warps * kWarp,
           shared_bytes<A, A, int, A, A>(scores, scores, scores, warps * kRowsPerWarp * f.held(), warps * f.num_sums()),
           call.stream, f);
  }
  launch("noisy_topk/add_chunks", add_chunks_kernel<T>, divide_up(f.num_sums(), kWarp), kAddWarps * kWarp, 0,
         call.stream, f);
}

template <typename T>
void noisy_topk_grad(const NoisyTopkGrad<T>& g, const Call& call) {
  if (g.logits.num_rows * g.logits.num_experts == 0) return;
  const int lanes = grad_lanes(g.logits.num_experts);
  launch("noisy_topk_grad", noisy_topk_grad_kernel<T>, divide_up(g.logits.num_rows * lanes, kGradThreads), kGradThreads,
         0, call.stream, g, lanes, call.bad_index);
}

#define GMOE_INSTANTIATE(T)                                                  \
  template std::int64_t noisy_topk_workspace<T>(std::int64_t, std::int64_t); \
  template void noisy_topk(const NoisyTopk<T>&, const Call&);                \
  template void noisy_topk_grad(const NoisyTopkGrad<T>&, const Call&);
GMOE_INSTANTIATE(float)
GMOE_INSTANTIATE(double)
GMOE_INSTANTIATE(bfloat16)
#undef GMOE_INSTANTIATE

}  // namespace gmoe::core::cuda
