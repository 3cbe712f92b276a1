// expert_linear as a routed product (routed_product.cuh), and its gradients for x and the gate as another.
#include "core/cuda/expert_linear.h"

#include "core/cuda/expert_linear_by_source.h"
#include "core/cuda/routed_product.cuh"
#include "core/cuda/workspace.h"

namespace gmoe::core::cuda {
namespace {

// Where tiles begin in the plan.
struct PlanCut {
  ExpertPlanView plan;
  std::int64_t slots_per_tile, num_tiles;
  std::int64_t* cut;
};

constexpr int kCutThreads = 128;
constexpr int kGateThreads = 256;

// A thread per expert and tile. Of a damaged plan, positions stay within it; product kernels note what is missing.
__global__ void cut_kernel(PlanCut c) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kCutThreads + threadIdx.x;
  if (i >= c.plan.num_experts * (c.num_tiles + 1)) return;
  const std::int64_t e = i / (c.num_tiles + 1), tile = i % (c.num_tiles + 1), n = num_slots(c.plan);
  std::int64_t begin = c.plan.offsets[e], end = c.plan.offsets[e + 1];
  begin = begin < 0 ? 0 : begin < n ? begin : n;
  end = end < begin ? begin : end < n ? end : n;
  if (tile == c.num_tiles) begin = end;
  while (tile > 0 && begin < end) {
    const std::int64_t middle = begin + (end - begin) / 2;
    if (c.plan.order[middle] < tile * c.slots_per_tile) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  c.cut[i] = begin;
}

enum class Weight { as_is, transposed };

template <typename T, typename Out>
RoutedProduct<T, Out> forward_product(const ExpertLinear<T>& a, Out* y) {
  RoutedProduct<T, Out> p{};
  p.in = a.x;
  p.source = a.source;
  p.num_in_rows = a.num_sources;
  p.slots_per_in = a.plan.k;
  p.weight = {nullptr, a.plan.num_experts, a.in_dim, a.out_dim};
  p.bias = a.bias;
  p.gate = a.gate;
  p.plan = a.plan;
  p.slots_per_out = a.gate != nullptr ? static_cast<int>(a.plan.k) : 1;
  p.out = y;
  return p;
}

// Arrays that a product needs beside its arguments.
struct ProductMemory {
  void* panels;
  std::int64_t* cut;
};

template <typename T, typename Out>
ProductMemory take_memory(RoutedProduct<T, Out>& p, Workspace& workspace) {
  p.num_column_blocks = static_cast<int>(divide_up(p.weight.columns, kTileColumns));
  p.rows_per_tile = rows_per_tile(p.slots_per_out);
  p.num_tiles = divide_up(num_slots(p.plan), p.slots_per_tile());
  return {workspace.take<T>(p.weight.size()), workspace.take<std::int64_t>(p.plan.num_experts * (p.num_tiles + 1))};
}

template <typename T, typename Out>
std::size_t product_bytes(const RoutedProduct<T, Out>& p) {
  using A = Accumulator<T>;
  return shared_bytes<T, A, A>(kStages * kBatch * kStageDepth<T>, p.rows_per_tile * kTileColumns,
                               p.dot != nullptr ? kBatch * kTileColumns / kPanel : 0) +
         TileSlots<A>::bytes(p.plan.num_experts, p.slots_per_tile());
}

template <typename T, typename Out>
void run_product(const char* name, RoutedProduct<T, Out> p, const T* weight, Weight layout, Workspace& workspace,
                 const Call& call) {
  const ProductMemory memory = take_memory(p, workspace);
  if (workspace.counts_only() || num_slots(p.plan) * p.weight.columns == 0) return;
  T* panels = static_cast<T*>(memory.panels);
  p.weight.panels = panels;
  p.cut = memory.cut;
  p.copies = fits_packs<kPack<T>>(p.weight.depth, p.in);
  p.packs = p.out != nullptr && fits_packs<kPack<Out>>(p.weight.columns, p.out);
  launch("expert_linear/pack",
         layout == Weight::transposed ? pack_weight_kernel<true, T> : pack_weight_kernel<false, T>,
         divide_up(p.weight.size() / kPack<T>, kPackThreads), kPackThreads, 0, call.stream, p.weight, weight, panels);
  launch("expert_linear/cut", cut_kernel, divide_up(p.plan.num_experts * (p.num_tiles + 1), kCutThreads), kCutThreads,
         0, call.stream, PlanCut{p.plan, p.slots_per_tile(), p.num_tiles, memory.cut});
  launch(name, p.dot != nullptr ? routed_product_kernel<true, T, Out> : routed_product_kernel<false, T, Out>,
         p.num_tiles * p.num_column_blocks, kProductThreads, product_bytes(p), call.stream, p, call.bad_index);
}

// ---- gradients for x and the gate

template <typename T>
struct GateGradient {
  ExpertPlanView plan;
  const Accumulator<T>* dot;  // [num_slots, num_dots]: x_s . (W_e^T dy_i) by block of columns
  std::int64_t num_dots;
  const T* bias;    // [num_experts, out_dim] or null
  const T* grad_y;  // [num_rows, out_dim]
  std::int64_t out_dim;
  T* grad_gate;  // [num_slots]
};

// dgate_s = dot_s + b_e . dy_i. A warp per slot, in the plan's order, which has its expert.
template <typename T>
__global__ void gate_gradient_kernel(GateGradient<T> g, BadIndex* bad) {
  using A = Accumulator<T>;
  const std::int64_t i = (static_cast<std::int64_t>(blockIdx.x) * kGateThreads + threadIdx.x) / kWarp;
  if (i >= num_slots(g.plan)) return;
  const std::int64_t slot = g.plan.order[i];
  if (slot < 0 || slot >= num_slots(g.plan)) return note_bad_plan(g.plan, bad);
  const T* grad_y = g.grad_y + slot / g.plan.k * g.out_dim;
  A sum = 0;
  for (std::int64_t d = lane_id(); d < g.num_dots; d += kWarp) sum += g.dot[slot * g.num_dots + d];
  if (g.bias != nullptr) {
    const std::int64_t e = expert_at(g.plan.num_experts, i, [&](std::int64_t at) { return g.plan.offsets[at]; });
    const T* bias = g.bias + e * g.out_dim;
    for (std::int64_t f = lane_id(); f < g.out_dim; f += kWarp) sum += widened(bias[f]) * widened(grad_y[f]);
  }
  sum = warp_sum(sum);
  if (lane_id() == 0) g.grad_gate[slot] = narrowed<T>(sum);
}

// W_e^T dy_i, times the gate for grad_x, and its dot products with x_s for the gate's gradient.
template <typename T, typename Out>
RoutedProduct<T, Out> gradient_product(const ExpertLinear<T>& a, const T* grad_y, Out* out, bool apart,
                                       bool with_dots) {
  RoutedProduct<T, Out> p{};
  p.in = grad_y;
  p.slots_per_in = a.gate != nullptr || with_dots ? a.plan.k : 1;
  p.weight = {nullptr, a.plan.num_experts, a.out_dim, a.in_dim};
  p.gate = a.gate;
  p.plan = a.plan;
  p.slots_per_out = apart ? 1 : static_cast<int>(a.plan.k);
  p.out = out;
  return p;
}

// Launches nothing where the workspace has no memory; `grad_gate` then only says whether it is asked for.
template <typename T, typename Out>
void run_gradient(const ExpertLinear<T>& a, const T* grad_y, Out* out, bool apart, bool with_dots, T* grad_gate,
                  Workspace& workspace, const Call& call) {
  RoutedProduct<T, Out> p = gradient_product(a, grad_y, out, apart, with_dots);
  GateGradient<T> g{a.plan, nullptr, divide_up(a.in_dim, kTileColumns), a.bias, grad_y, a.out_dim, grad_gate};
  if (with_dots) {
    p.against = a.x;
    p.against_source = a.source;
    p.num_against_rows = a.num_sources;
    g.dot = p.dot = workspace.take<Accumulator<T>>(num_slots(a.plan) * g.num_dots);
  }
  run_product("expert_linear_grad_x_gate", p, a.weight, Weight::transposed, workspace, call);
  if (!with_dots || workspace.counts_only()) return;
  launch("expert_linear/gate_gradient", gate_gradient_kernel<T>, divide_up(num_slots(a.plan), kGateThreads / kWarp),
         kGateThreads, 0, call.stream, g, call.bad_index);
}

template <typename T>
void grad_x_gate(const ExpertLinear<T>& a, const T* grad_y, bool with_x, T* grad_x, bool with_gate, T* grad_gate,
                 Workspace& workspace, const Call& call) {
  using A = Accumulator<T>;
  if (!with_x || a.source == nullptr) {
    return run_gradient(a, grad_y, grad_x, false, with_gate, grad_gate, workspace, call);
  }
  A* rows = workspace.take<A>(num_slots(a.plan) * a.in_dim);
  run_gradient(a, grad_y, rows, true, with_gate, grad_gate, workspace, call);
  sum_by_source<T>({rows, a.source, num_slots(a.plan), a.num_sources, a.in_dim, grad_x}, workspace, call);
}

void check_sizes(const ExpertPlanView& plan) {
  check_experts("expert_linear", plan.num_experts);
  if (plan.k <= kMaxChoices) return;
  throw std::invalid_argument("gmoe::expert_linear: expected k of at most " + std::to_string(kMaxChoices) +
                              " on CUDA, got " + std::to_string(plan.k));
}

}  // namespace

template <typename T>
std::int64_t expert_linear_workspace(const ExpertLinear<T>& a) {
  Workspace workspace(nullptr);
  auto p = forward_product<T, T>(a, nullptr);
  take_memory(p, workspace);
  return workspace.bytes();
}

template <typename T>
void expert_linear(const ExpertLinear<T>& a, T* y, const Call& call) {
  check_sizes(a.plan);
  if (num_slots(a.plan) * a.out_dim == 0) return;
  Workspace workspace(call.workspace);
  run_product("expert_linear", forward_product(a, y), a.weight, Weight::as_is, workspace, call);
}

template <typename T>
std::int64_t expert_linear_grad_x_gate_workspace(const ExpertLinear<T>& a, bool grad_x, bool grad_gate) {
  Workspace workspace(nullptr);
  grad_x_gate<T>(a, nullptr, grad_x, nullptr, grad_gate, nullptr, workspace, {});
  return workspace.bytes();
}

template <typename T>
void expert_linear_grad_x_gate(const ExpertLinear<T>& a, const T* grad_y, T* grad_x, T* grad_gate, const Call& call) {
  check_sizes(a.plan);
  if (num_slots(a.plan) == 0) {
    if (grad_x != nullptr && a.num_sources * a.in_dim > 0) {
      fill_zero(grad_x, static_cast<std::size_t>(a.num_sources * a.in_dim) * sizeof(T), call.stream);
    }
    return;
  }
  Workspace workspace(call.workspace);
  grad_x_gate(a, grad_y, grad_x != nullptr, grad_x, grad_gate != nullptr, grad_gate, workspace, call);
}

template std::int64_t expert_linear_workspace(const ExpertLinear<float>&);
template void expert_linear(const ExpertLinear<float>&, float*, const Call&);
template std::int64_t expert_linear_grad_x_gate_workspace(const ExpertLinear<float>&, bool, bool);
template void expert_linear_grad_x_gate(const ExpertLinear<float>&, const float*, float*, float*, const Call&);
template std::int64_t expert_linear_workspace(const ExpertLinear<double>&);
template void expert_linear(const ExpertLinear<double>&, double*, const Call&);
template std::int64_t expert_linear_grad_x_gate_workspace(const ExpertLinear<double>&, bool, bool);
template void expert_linear_grad_x_gate(const ExpertLinear<double>&, const double*, double*, double*, const Call&);
template std::int64_t expert_linear_workspace(const ExpertLinear<bfloat16>&);
template void expert_linear(const ExpertLinear<bfloat16>&, bfloat16*, const Call&);
template std::int64_t expert_linear_grad_x_gate_workspace(const ExpertLinear<bfloat16>&, bool, bool);
template void expert_linear_grad_x_gate(const ExpertLinear<bfloat16>&, const bfloat16*, bfloat16*, bfloat16*,
                                        const Call&);

}  // namespace gmoe::core::cuda
