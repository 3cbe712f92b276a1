// ExpertLinearCase of expert_linear and what loops over every slot make of them.
#pragma once

#include <string>

#include "core/expert_linear.h"
#include "tests/check.h"
#include "tests/inputs.h"

namespace gmoe::test {

enum class Load { even, some_empty, one_has_all };

struct ExpertLinearSizes {
  std::int64_t rows, k, experts, in, out;
  Load load = Load::even;
  std::int64_t kept_of_10 = 10;  // how many in ten values of x and grad_y are not zero
};

template <typename T>
struct ExpertLinearCase {
  ExpertLinearCase(Random& random, const ExpertLinearSizes& s, bool with_bias, bool with_gate, bool with_source)
      : sizes(s),
        num_sources(with_source ? s.rows / 2 + 1 : s.rows),
        slots(s.rows * s.k),
        x(random.values<T>(num_sources * s.in)),
        weight(random.values<T>(s.experts * s.out * s.in)),
        bias(random.values<T>(with_bias ? s.experts * s.out : 0)),
        gate(random.values<T>(with_gate ? slots : 0)),
        grad_y(random.values<T>((with_gate ? s.rows : slots) * s.out)),
        source(random.indices<std::int64_t>(with_source ? slots : 0, num_sources)),
        index(random.indices<std::int64_t>(slots, s.experts)),
        offsets(unwritten_index(s.experts + 1)),
        order(unwritten_index(slots)) {
    for (std::int64_t& e : index) {
      if (s.load == Load::some_empty && e % 2 == 1) e -= 1;
      if (s.load == Load::one_has_all) e = s.experts - 1;
    }
    for (std::vector<T>* rows : {&x, &grad_y}) {
      for (T& value : *rows) {
        if (s.kept_of_10 < 10 && random.below(10) >= s.kept_of_10) value = core::narrow<T>(0);
      }
    }
    std::int64_t at = offsets[0] = 0;
    for (std::int64_t e = 0; e < s.experts; ++e) {
      for (std::int64_t slot = 0; slot < slots; ++slot) {
        if (index[slot] == e) order[at++] = slot;
      }
      offsets[e + 1] = at;
    }
    call = {x.data(),
            weight.data(),
            with_bias ? bias.data() : nullptr,
            with_gate ? gate.data() : nullptr,
            {offsets.data(), order.data(), s.experts, s.rows, s.k},
            with_source ? source.data() : nullptr,
            num_sources,
            s.in,
            s.out};
  }
  ExpertLinearCase(const ExpertLinearCase&) = delete;

  ExpertLinearSizes sizes;
  std::int64_t num_sources, slots;
  std::vector<T> x, weight, bias, gate, grad_y;
  std::vector<std::int64_t> source, index, offsets, order;
  core::ExpertLinear<T> call;
};

template <typename T>
std::string describe(const ExpertLinearCase<T>& a) {
  const ExpertLinearSizes& s = a.sizes;
  return join(sizeof(T), " bytes, ", s.rows, " rows, k ", s.k, ", ", s.experts, " experts, ", s.in, " to ", s.out,
              a.call.bias != nullptr ? ", bias" : "", a.call.gate != nullptr ? ", gate" : "",
              a.call.source != nullptr ? ", source" : "");
}

// Everything at once, slot by slot, in double precision.
struct ExpertLinearResults {
  std::vector<double> y, grad_x, grad_gate, grad_weight, grad_bias;
};

template <typename T>
ExpertLinearResults naive(const ExpertLinearCase<T>& a) {
  const ExpertLinearSizes& s = a.sizes;
  const bool gated = a.call.gate != nullptr;
  ExpertLinearResults n{zeros((gated ? s.rows : a.slots) * s.out), zeros(a.num_sources * s.in),
                        zeros(gated ? a.slots : 0), zeros(s.experts * s.out * s.in), zeros(s.experts * s.out)};
  for (std::int64_t slot = 0; slot < a.slots; ++slot) {
    const std::int64_t e = a.index[slot], row = gated ? slot / s.k : slot;
    const std::int64_t source = a.call.source != nullptr ? a.source[slot] : slot / s.k;
    const double gate = gated ? wide(a.gate[slot]) : 1;
    for (std::int64_t f = 0; f < s.out; ++f) {
      const T* w = a.weight.data() + (e * s.out + f) * s.in;
      const T* x = a.x.data() + source * s.in;
      const double grad = wide(a.grad_y[row * s.out + f]);
      double z = a.call.bias != nullptr ? wide(a.bias[e * s.out + f]) : 0;
      for (std::int64_t d = 0; d < s.in; ++d) {
        z += wide(w[d]) * wide(x[d]);
        n.grad_x[source * s.in + d] += gate * grad * wide(w[d]);
        n.grad_weight[(e * s.out + f) * s.in + d] += gate * grad * wide(x[d]);
      }
      n.y[row * s.out + f] += gate * z;
      n.grad_bias[e * s.out + f] += gate * grad;
      if (gated) n.grad_gate[slot] += grad * z;
    }
  }
  return n;
}

}  // namespace gmoe::test
