// sparse_expert_linear and its gradients against loops over every slot and entry in double precision.
#include "core/sparse_expert_linear.h"

#include "tests/device.h"
#include "tests/inputs.h"

namespace gmoe::test {
namespace {

struct Sizes {
  std::int64_t rows, in, values, hub, experts, out, k;
  std::int64_t more = 0;  // inputs that no row has
};
// Outputs in one tile and more, in packs and alone; a block of more rows than one; an input of most entries.
constexpr Sizes kSizes[] = {{0, 3, 0, 0, 2, 4, 1},    {1, 1, 1, 0, 1, 1, 1},      {5, 7, 23, 0, 3, 13, 2},
                            {3, 2, 0, 0, 2, 3, 2, 1}, {9, 40, 90, 30, 4, 136, 3}, {30, 5, 200, 0, 17, 8, 2, 3}};
constexpr Sizes kLarge = {20000, 50, 60000, 0, 3, 40, 1};

// The entries of every column, in the order of the rows.
struct ByColumn {
  std::vector<std::int64_t> offsets{0}, order;
  std::vector<std::int32_t> rows;

  ByColumn(const CompressedRows<std::int32_t>& of, std::int64_t num_columns) {
    for (std::int64_t column = 0; column < num_columns; ++column) {
      for (std::int64_t row = 0; row < of.num_rows(); ++row) {
        for (std::int64_t e = of.offsets[row]; e < of.offsets[row + 1]; ++e) {
          if (of.columns[e] != static_cast<std::int32_t>(column)) continue;
          rows.push_back(static_cast<std::int32_t>(row));
          order.push_back(e);
        }
      }
      offsets.push_back(static_cast<std::int64_t>(order.size()));
    }
  }
};

template <typename T>
struct Case {
  using A = core::Accumulator<T>;
  Sizes s;
  bool per_slot, gated, plain;  // plain: no values, scale or bias
  CompressedRows<std::int32_t> rows;
  std::vector<A> value;
  std::vector<T> weight, scale, bias, gate, grad_y;
  std::vector<std::int64_t> index;

  Case(Random& random, const Sizes& s, bool per_slot, bool gated, bool plain)
      : s(s),
        per_slot(per_slot),
        gated(gated),
        plain(plain),
        rows(s.rows > 0 ? random_rows<std::int32_t>(random, s.rows, s.in, s.values, s.hub)
                        : CompressedRows<std::int32_t>{{0}, {}}),
        value(random.values<A>(rows.num_edges() * (per_slot ? s.k : 1))),
        weight(random.values<T>(s.experts * in_dim() * s.out)),
        scale(random.values<T>(s.experts * in_dim())),
        bias(random.values<T>(s.experts * s.out)),
        gate(random.values<T>(s.rows * s.k)),
        grad_y(random.values<T>(s.rows * (gated ? 1 : s.k) * s.out)),
        index(random.indices<std::int64_t>(s.rows * s.k, s.experts)) {}

  std::int64_t in_dim() const { return s.in + s.more; }
  core::SparseExperts<T> experts() const {
    return {.value = plain ? nullptr : value.data(),
            .value_per_slot = per_slot,
            .weight = weight.data(),
            .scale = plain ? nullptr : scale.data(),
            .bias = plain ? nullptr : bias.data(),
            .index = index.data(),
            .gate = gated ? gate.data() : nullptr,
            .num_rows = s.rows,
            .num_values = rows.num_edges(),
            .num_experts = s.experts,
            .in_dim = in_dim(),
            .out_dim = s.out,
            .k = s.k};
  }
  core::SparseExpertLinear<T> call(T* out) const {
    return {experts(), rows.offsets.data(), rows.columns.data(), grad_y.data(), out};
  }
  double gate_of(std::int64_t slot) const { return gated ? wide(gate[slot]) : 1; }
  // f(slot, expert, place of the expert's scale, value) for every entry of every slot.
  template <typename F>
  void for_each_entry(const F& f) const {
    for (std::int64_t slot = 0; slot < s.rows * s.k; ++slot) {
      const std::int64_t e = index[slot];
      if (e < 0 || e >= s.experts) continue;
      for (std::int64_t j = rows.offsets[slot / s.k]; j < rows.offsets[slot / s.k + 1]; ++j) {
        const auto column = static_cast<std::int64_t>(rows.columns[j]);
        if (column < 0 || column >= in_dim()) continue;
        f(slot, e * in_dim() + column, plain ? 1.0 : value[per_slot ? j * s.k + slot % s.k : j]);
      }
    }
  }
  double scale_of(std::int64_t input) const { return plain ? 1 : wide(scale[input]); }
  // What every slot computes, [rows, k, out].
  std::vector<double> results() const {
    std::vector<double> z = zeros(s.rows * s.k * s.out);
    for (std::int64_t i = 0; i < s.rows * s.k * s.out && !plain; ++i) {
      const std::int64_t e = index[i / s.out];
      if (e >= 0 && e < s.experts) z[i] = wide(bias[e * s.out + i % s.out]);
    }
    for_each_entry([&](std::int64_t slot, std::int64_t input, double v) {
      for (std::int64_t d = 0; d < s.out; ++d) {
        z[slot * s.out + d] += v * scale_of(input) * wide(weight[input * s.out + d]);
      }
    });
    return z;
  }
};

template <typename T>
void run(const core::SparseExpertLinear<T>& a, Device& device) {
  if constexpr (kOnDevice) {
    core::cuda::sparse_expert_linear(a, device.call());
  } else {
    core::sparse_expert_linear(a);
  }
}
template <typename T>
void run_grad_gate(const core::SparseExpertLinear<T>& a, Device& device) {
  if constexpr (kOnDevice) {
    core::cuda::sparse_expert_linear_grad_gate(a, device.call());
  } else {
    core::sparse_expert_linear_grad_gate(a);
  }
}
template <typename T>
void run(const core::SparseExpertLinearGrad<T>& a, Device& device) {
  if constexpr (kOnDevice) {
    core::cuda::sparse_expert_linear_grad_weight(a, device.call());
  } else {
    core::sparse_expert_linear_grad_weight(a);
  }
}

// f(case) for every size, type and choice of arguments.
template <typename F>
void for_each_case(const F& f) {
  Random random(1);
  for_each_floating([&](auto type) {
    using T = typename decltype(type)::type;
    for (const Sizes& s : kSizes) {
      for (const int choice : {0, 1, 2}) {
        set_case(sizeof(T), " bytes, ", s.rows, " rows, ", s.in, " + ", s.more, " inputs, ", s.values, " values, ",
                 s.out, " outputs, k ", s.k, ", choice ", choice);
        f(Case<T>(random, s, choice == 1, choice != 2, choice == 2));
      }
    }
  });
  if constexpr (!kOnDevice) f(Case<float>(random, kLarge, false, true, false));
}

GMOE_PARALLEL_TEST(sparse_expert_linear) {
  for_each_case([]<typename T>(const Case<T>& c) {
    const std::int64_t per_row = c.gated ? 1 : c.s.k;
    std::vector<T> y = unwritten<T>(c.s.rows * per_row * c.s.out);
    Device device;
    run(c.call(y.data()), device);
    CHECK(device.bad_index() == -1);
    const std::vector<double> z = c.results();
    std::vector<double> want = zeros(c.s.rows * per_row * c.s.out);
    for (std::int64_t i = 0; i < c.s.rows * c.s.k * c.s.out; ++i) {
      const std::int64_t slot = i / c.s.out;
      want[(c.gated ? slot / c.s.k : slot) * c.s.out + i % c.s.out] += c.gate_of(slot) * z[i];
    }
    CHECK_CLOSE(y, want);
  });
}

GMOE_PARALLEL_TEST(sparse_expert_linear_grad_gate) {
  for_each_case([]<typename T>(const Case<T>& c) {
    if (!c.gated) return;
    std::vector<T> grad = unwritten<T>(c.s.rows * c.s.k);
    Device device;
    run_grad_gate(c.call(grad.data()), device);
    const std::vector<double> z = c.results();
    std::vector<double> want = zeros(c.s.rows * c.s.k);
    for (std::int64_t i = 0; i < c.s.rows * c.s.k * c.s.out; ++i) {
      want[i / c.s.out] += z[i] * wide(c.grad_y[i / c.s.out / c.s.k * c.s.out + i % c.s.out]);
    }
    CHECK_CLOSE(grad, want);
  });
}

GMOE_PARALLEL_TEST(sparse_expert_linear_grad_weight) {
  for_each_case([]<typename T>(const Case<T>& c) {
    const ByColumn columns(c.rows, c.s.in);
    const std::int64_t inputs = c.s.experts * c.in_dim();
    std::vector<T> grad_weight = unwritten<T>(inputs * c.s.out), grad_scale = unwritten<T>(c.plain ? 0 : inputs);
    // Values that the slots of a row share come in the order of the columns.
    core::SparseExperts<T> experts = c.experts();
    std::vector<core::Accumulator<T>> sorted;
    for (const std::int64_t entry : columns.order) sorted.push_back(c.plain ? 1 : c.value[entry]);
    if (!c.per_slot && !c.plain) experts.value = sorted.data();
    Device device;
    run(core::SparseExpertLinearGrad<T>{experts, columns.offsets.data(), columns.rows.data(),
                                        c.per_slot ? columns.order.data() : nullptr, c.s.in, c.grad_y.data(),
                                        grad_weight.data(), c.plain ? nullptr : grad_scale.data()},
        device);
    CHECK(device.bad_index() == -1);
    std::vector<double> want = zeros(inputs * c.s.out), want_scale = zeros(c.plain ? 0 : inputs);
    c.for_each_entry([&](std::int64_t slot, std::int64_t input, double v) {
      const std::int64_t row = c.gated ? slot / c.s.k : slot;
      for (std::int64_t d = 0; d < c.s.out; ++d) {
        const double grad = c.gate_of(slot) * v * wide(c.grad_y[row * c.s.out + d]);
        want[input * c.s.out + d] += c.scale_of(input) * grad;
        if (!c.plain) want_scale[input] += grad * wide(c.weight[input * c.s.out + d]);
      }
    });
    CHECK_CLOSE(grad_weight, want);
    CHECK_CLOSE(grad_scale, want_scale);
  });
}

GMOE_SMALL_TEST(sparse_expert_linear_leaves_bad_indices_out_on_a_device) {
  if constexpr (kOnDevice) {
    Random random(2);
    Case<float> c(random, {9, 11, 40, 0, 3, 8, 2}, false, true, false);
    const std::int64_t values = c.rows.num_edges();
    std::vector<float> y = unwritten<float>(9 * 8);
    for (const bool bad_column : {false, true}) {
      c.index[5] = 3;
      if (bad_column) c.rows.columns[7] = -1;
      Device device;
      run(c.call(y.data()), device);
      CHECK(device.bad_index() == (bad_column ? 7 : values + 5));
      const std::vector<double> z = c.results();
      std::vector<double> want = zeros(9 * 8);
      for (std::int64_t i = 0; i < 9 * 2 * 8; ++i) want[i / 16 * 8 + i % 8] += c.gate_of(i / 8) * z[i];
      CHECK_CLOSE(y, want);
    }
  }
}

}  // namespace
}  // namespace gmoe::test
