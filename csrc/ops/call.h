// One call of an operator: how a wrapper reads its tensors and has its indices checked. Every <op>.cpp is compiled once
// for the CPU and, with GMOE_DEVICE_OPS, once for CUDA: `Call` is then a DeviceCall of the same interface.
#pragma once

#include "core/cpu/check_index.h"
#include "core/cuda/launch.h"
#include "ops/checks.h"

#ifdef GMOE_DEVICE_OPS
#include "ops/cuda/call.h"
#endif

namespace gmoe::ops {

// Checks the values of indices before a kernel follows them.
class CpuCall {
 public:
  CpuCall(const char* op, const Tensor& /*on*/) : op_(op) {}

  // The tensor, dense.
  Tensor read(const char* name, const Tensor& t) const {
    check_memory(op_, name, t);
    return dense(t);
  }
  OptionalTensor read(const char* name, const OptionalTensor& t) const {
    return t ? OptionalTensor(read(name, *t)) : std::nullopt;
  }
  Tensor read_int64(const char* name, const Tensor& index) const {
    check_memory(op_, name, index);
    return dense_int64(index);
  }
  OptionalTensor read_int64(const char* name, const OptionalTensor& index) const {
    return index ? OptionalTensor(read_int64(name, *index)) : std::nullopt;
  }

  // The kernel will follow a dense array of indices, valid in [0, bound).
  void follow(const char* name, const Tensor& index, std::int64_t bound) const {
    dispatch_index(op_, index.scalar_type(), [&](auto type) {
      using Index = typename decltype(type)::type;
      const Index* values = data<Index>(index);
      const std::int64_t bad = core::find_bad_index(values, index.numel(), bound);
      if (bad >= 0) throw_bad_index(name, bad, static_cast<std::int64_t>(values[bad]), bound);
    });
  }
  void follow(const char* name, const OptionalTensor& index, std::int64_t bound) const {
    if (index) follow(name, *index, bound);
  }
  // ... compressed rows, whose columns are valid in [0, num_columns).
  void follow_rows(const Tensor& offsets, const Tensor& columns, std::int64_t num_columns) const {
    const std::int64_t* values = data<std::int64_t>(offsets);
    const std::int64_t bad = core::find_bad_offset(values, offsets.size(0) - 1, columns.size(0));
    check(bad < 0, op_, ": expected 'offsets' to rise from 0 to ", columns.size(0), ", got ", bad < 0 ? 0 : values[bad],
          " at position ", bad);
    follow("columns", columns, num_columns);
  }
  // ... a plan.
  void follow_plan(const core::ExpertPlanView& plan) const {
    const core::PlanFault fault = core::find_plan_fault(plan);
    if (fault.kind == core::PlanFault::range) {
      throw_bad_index("order", fault.position, plan.order[fault.position], plan.num_slots());
    }
    check(fault.kind != core::PlanFault::offsets, op_, ": expected 'offsets' to ascend from 0 to the number of slots ",
          plan.num_slots(), ", not so at position ", fault.position, "; fix: make the plan with expert_plan");
    check(fault.kind != core::PlanFault::order, op_,
          ": expected 'order' to name every slot once, ascending within an expert, not so at position ", fault.position,
          "; fix: make the plan with expert_plan");
  }

  // Of a DeviceCall alone. Declared for the branches of wrappers that are left out on the CPU, and never defined.
  core::cuda::Call launch(std::int64_t workspace_bytes = 0) const;

 private:
  // gmoe_ext/errors.py parses the text into a GraphIndexError: change both together.
  [[noreturn]] void throw_bad_index(const char* name, std::int64_t position, std::int64_t value,
                                    std::int64_t bound) const {
    throw std::runtime_error(join(op_, ": index out of range: '", name, "' at position ", position, " is ", value,
                                  ", expected 0 <= index < ", bound));
  }

  const char* op_;
};

#ifdef GMOE_DEVICE_OPS
using Call = DeviceCall;
inline constexpr bool kOnDevice = true;
#else
using Call = CpuCall;
inline constexpr bool kOnDevice = false;
#endif

}  // namespace gmoe::ops

// Registers the operators of a file for the device it is compiled for. The emulated device of the tests takes the
// place of the CPU.
#if defined(GMOE_DEVICE_OPS) && !defined(GMOE_EMULATED_DEVICE)
#define GMOE_OPERATORS(m) STABLE_TORCH_LIBRARY_IMPL(gmoe, CUDA, m)
#else
#define GMOE_OPERATORS(m) STABLE_TORCH_LIBRARY_IMPL(gmoe, CPU, m)
#endif
