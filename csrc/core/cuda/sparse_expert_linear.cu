// A warp takes a row, or for the gradient of the weights an input of an expert; its lanes take the outputs, kPack of
// them at a time. Entries are read by all lanes at once, weights and gradients of outputs as whole rows. An input's
// entries are looked through once for every expert, and only those of its slots are followed. Floor: a row of weights
// for every entry and slot, at the second-level cache's speed.
#include "core/sparse_expert_linear.h"

#include "core/cuda/row_segments.cuh"

namespace gmoe::core::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kBlocksAtOnce = 2;  // of registers, which the compiler would spill for more

template <int V, typename A, typename T>
__device__ __forceinline__ void add_pack(A (&sum)[V], A factor, const T* row) {
  const Pack<T, V> pack = load<V>(row);
#pragma unroll
  for (int v = 0; v < V; ++v) sum[v] += factor * widened(pack.value[v]);
}
template <int V, typename T, typename A>
__device__ __forceinline__ void store_sum(T* row, const A (&sum)[V]) {
  Pack<T, V> pack;
#pragma unroll
  for (int v = 0; v < V; ++v) pack.value[v] = narrowed<T>(sum[v]);
  store<V>(row, pack);
}

// The entries of a row and the expert of each of its slots, as far as they exist.
template <typename T>
struct Row {
  const SparseExpertLinear<T>& a;
  BadIndex* bad;
  std::int64_t row, begin, end;

  __device__ Row(const SparseExpertLinear<T>& a, std::int64_t row, BadIndex* bad) : a(a), bad(bad), row(row) {
    begin = clamped(a.offsets[row], 0, a.experts.num_values);
    end = clamped(a.offsets[row + 1], begin, a.experts.num_values);
  }
  __device__ std::int64_t expert(std::int64_t r) const {
    const std::int64_t slot = row * a.experts.k + r, e = a.experts.index[slot];
    return check_index(e, a.experts.num_experts, a.experts.num_values + slot, bad) ? e : -1;
  }
  // sum = W_e S_e x_i + b_e in the outputs from d on.
  template <int V, typename A>
  __device__ void add(std::int64_t r, std::int64_t e, std::int64_t d, A (&sum)[V]) const {
    const SparseExperts<T>& x = a.experts;
    for (std::int64_t j = begin; j < end; ++j) {
      const std::int64_t column = a.columns[j];
      if (!check_index(column, x.in_dim, j, bad)) continue;
      const std::int64_t input = e * x.in_dim + column;
      const A scale = x.scale != nullptr ? widened(x.scale[input]) : A{1};
      add_pack<V>(sum, scale * x.value_of(j, r), x.weight + input * x.out_dim + d);
    }
    if (x.bias != nullptr) add_pack<V>(sum, A{1}, x.bias + e * x.out_dim + d);
  }
};

template <typename T>
__device__ std::int64_t own_row(const SparseExpertLinear<T>& a, BadIndex* bad) {
  const SparseExperts<T>& x = a.experts;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kWarps + warp_id();
  check_offsets(a.offsets, x.num_rows, x.num_values, row * kWarp + lane_id(),
                divide_up(x.num_rows, kWarps) * kWarps * kWarp, x.num_values + x.num_rows * x.k, bad);
  return row;
}

template <int V, typename T>
__global__ void __launch_bounds__(kWarps* kWarp, kBlocksAtOnce)
    sparse_expert_linear_kernel(SparseExpertLinear<T> a, BadIndex* bad) {
  using A = Accumulator<T>;
  const SparseExperts<T>& x = a.experts;
  const std::int64_t i = own_row(a, bad);
  if (i >= x.num_rows) return;
  const Row<T> row(a, i, bad);
  for (std::int64_t d = lane_id() * V; d < x.out_dim; d += kWarp * V) {
    A total[V] = {};
    for (std::int64_t r = 0; r < x.k; ++r) {
      const std::int64_t e = row.expert(r);
      A sum[V] = {};
      if (e >= 0) row.template add<V>(r, e, d, sum);
      if (x.gate == nullptr) {
        store_sum<V>(a.out + (i * x.k + r) * x.out_dim + d, sum);
        continue;
      }
      const A gate = widened(x.gate[i * x.k + r]);
#pragma unroll
      for (int v = 0; v < V; ++v) total[v] += gate * sum[v];
    }
    if (x.gate != nullptr) store_sum<V>(a.out + i * x.out_dim + d, total);
  }
}

template <int V, typename T>
__global__ void __launch_bounds__(kWarps* kWarp, kBlocksAtOnce)
    sparse_expert_linear_grad_gate_kernel(SparseExpertLinear<T> a, BadIndex* bad) {
  using A = Accumulator<T>;
  const SparseExperts<T>& x = a.experts;
  const std::int64_t i = own_row(a, bad);
  if (i >= x.num_rows) return;
  const Row<T> row(a, i, bad);
  for (std::int64_t r = 0; r < x.k; ++r) {
    const std::int64_t e = row.expert(r);
    A dot = 0;
    for (std::int64_t d = lane_id() * V; e >= 0 && d < x.out_dim; d += kWarp * V) {
      A sum[V] = {};
      row.template add<V>(r, e, d, sum);
      const Pack<T, V> grad = load<V>(a.grad_y + i * x.out_dim + d);
#pragma unroll
      for (int v = 0; v < V; ++v) dot += sum[v] * widened(grad.value[v]);
    }
    dot = warp_sum(dot);
    if (lane_id() == 0) a.out[i * x.k + r] = narrowed<T>(dot);
  }
}

// The sum over the slots of expert e whose row has the input, in the outputs from d on.
template <int V, typename T, typename A>
__device__ void sum_input(const SparseExpertLinearGrad<T>& a, std::int64_t column, std::int64_t e, std::int64_t d,
                          BadIndex* bad, A (&sum)[V]) {
  const SparseExperts<T>& x = a.experts;
  if (column >= a.num_columns) return;
  const std::int64_t begin = clamped(a.offsets[column], 0, x.num_values);
  const std::int64_t end = clamped(a.offsets[column + 1], begin, x.num_values);
  const std::int64_t first_index = (a.order != nullptr ? 2 : 1) * x.num_values;  // behind the positions of the others
  for (std::int64_t p = begin; p < end; ++p) {
    const std::int64_t row = a.rows[p], entry = a.order != nullptr ? a.order[p] : p;
    if (!check_index(row, x.num_rows, p, bad)) continue;
    if (a.order != nullptr && !check_index(entry, x.num_values, x.num_values + p, bad)) continue;
    for (std::int64_t r = 0; r < x.k; ++r) {
      const std::int64_t slot = row * x.k + r;
      check_index(x.index[slot], x.num_experts, first_index + slot, bad);
      if (x.index[slot] != e) continue;
      const A gate = x.gate != nullptr ? widened(x.gate[slot]) : A{1};
      add_pack<V>(sum, gate * x.value_of(entry, r), a.grad_y + (x.gate != nullptr ? row : slot) * x.out_dim + d);
    }
  }
}

template <int V, typename T>
__global__ void __launch_bounds__(kWarps* kWarp, kBlocksAtOnce)
    sparse_expert_linear_grad_weight_kernel(SparseExpertLinearGrad<T> a, BadIndex* bad) {
  using A = Accumulator<T>;
  const SparseExperts<T>& x = a.experts;
  const std::int64_t input = static_cast<std::int64_t>(blockIdx.x) * kWarps + warp_id();
  const std::int64_t inputs = x.num_experts * x.in_dim;
  check_offsets(a.offsets, a.num_columns, x.num_values, input * kWarp + lane_id(),
                divide_up(inputs, kWarps) * kWarps * kWarp,
                (a.order != nullptr ? 2 : 1) * x.num_values + x.num_rows * x.k, bad);
  if (input >= inputs) return;
  const std::int64_t e = input / x.in_dim, column = input % x.in_dim;
  const A scale = x.scale != nullptr ? widened(x.scale[input]) : A{1};
  A dot = 0;
  for (std::int64_t d = lane_id() * V; d < x.out_dim; d += kWarp * V) {
    A sum[V] = {};
    sum_input<V>(a, column, e, d, bad, sum);
    const Pack<T, V> weight = a.grad_scale != nullptr ? load<V>(x.weight + input * x.out_dim + d) : Pack<T, V>{};
#pragma unroll
    for (int v = 0; v < V; ++v) {
      dot += sum[v] * widened(weight.value[v]);
      sum[v] *= scale;
    }
    store_sum<V>(a.grad_weight + input * x.out_dim + d, sum);
  }
  dot = warp_sum(dot);
  if (a.grad_scale != nullptr && lane_id() == 0) a.grad_scale[input] = narrowed<T>(dot);
}

// A kernel for whole packs where the rows allow them, else for single values.
template <typename T, typename Wide, typename Narrow, typename Work>
void run(const char* name, Wide wide, Narrow narrow, bool packs, std::int64_t warps, const Work& a, const Call& call) {
  const std::int64_t blocks = divide_up(warps, kWarps);
  launch(name, packs ? wide : narrow, blocks, kWarps * kWarp, 0, call.stream, a, call.bad_index);
}

}  // namespace

template <typename T>
void sparse_expert_linear(const SparseExpertLinear<T>& a, const Call& call) {
  constexpr int kWide = kPack<T>;
  const SparseExperts<T>& x = a.experts;
  if (x.num_rows == 0) return;
  run<T>("sparse_expert_linear", sparse_expert_linear_kernel<kWide, T>, sparse_expert_linear_kernel<1, T>,
         fits_packs<kWide>(x.out_dim, x.weight, x.bias, a.out), x.num_rows, a, call);
}

template <typename T>
void sparse_expert_linear_grad_gate(const SparseExpertLinear<T>& a, const Call& call) {
  constexpr int kWide = kPack<T>;
  const SparseExperts<T>& x = a.experts;
  if (x.num_rows == 0) return;
  run<T>("sparse_expert_linear_grad_gate", sparse_expert_linear_grad_gate_kernel<kWide, T>,
         sparse_expert_linear_grad_gate_kernel<1, T>, fits_packs<kWide>(x.out_dim, x.weight, x.bias, a.grad_y),
         x.num_rows, a, call);
}

template <typename T>
void sparse_expert_linear_grad_weight(const SparseExpertLinearGrad<T>& a, const Call& call) {
  constexpr int kWide = kPack<T>;
  const SparseExperts<T>& x = a.experts;
  if (x.num_experts * x.in_dim == 0) return;
  run<T>("sparse_expert_linear_grad_weight", sparse_expert_linear_grad_weight_kernel<kWide, T>,
         sparse_expert_linear_grad_weight_kernel<1, T>, fits_packs<kWide>(x.out_dim, x.weight, a.grad_y, a.grad_weight),
         x.num_experts * x.in_dim, a, call);
}

#define GMOE_INSTANTIATE(T)                                                                \
  template void sparse_expert_linear(const SparseExpertLinear<T>&, const Call&);           \
  template void sparse_expert_linear_grad_gate(const SparseExpertLinear<T>&, const Call&); \
  template void sparse_expert_linear_grad_weight(const SparseExpertLinearGrad<T>&, const Call&);
GMOE_INSTANTIATE(float)
GMOE_INSTANTIATE(double)
GMOE_INSTANTIATE(bfloat16)
#undef GMOE_INSTANTIATE

}  // namespace gmoe::core::cuda
