// core/cpu/expert_linear.h on the device; arguments are pointers to device memory.
//
// A bad source is left out and noted as its position; a plan that does not have every slot once is noted as the number
// of slots, and what it lacks is left out (the gradients of weight and bias note no slot that is missing or there
// twice).
//
// With tf32, products of floats are made by matrix instructions, from factors rounded to 10 bits of fraction; other
// types take no notice.
#pragma once

#include "core/cpu/expert_linear.h"
#include "core/cuda/launch.h"

namespace gmoe::core::cuda {

inline constexpr std::int64_t kMaxChoices = 1024;  // experts per row

// Bytes of workspace: of sizes alone, and of which pointers are null.
template <typename T>
std::int64_t expert_linear_workspace(const ExpertLinear<T>& a);

template <typename T>
void expert_linear(const ExpertLinear<T>& a, T* y, bool tf32, const Call& call);

template <typename T>
std::int64_t expert_linear_grad_x_gate_workspace(const ExpertLinear<T>& a, bool grad_x, bool grad_gate);

template <typename T>
void expert_linear_grad_x_gate(const ExpertLinear<T>& a, const T* grad_y, T* grad_x, T* grad_gate, bool tf32,
                               const Call& call);

template <typename T>
std::int64_t expert_linear_grad_weight_workspace(const ExpertLinear<T>& a);

template <typename T>
void expert_linear_grad_weight(const ExpertLinear<T>& a, const T* grad_y, T* grad_weight, bool tf32, const Call& call);

template <typename T>
std::int64_t expert_linear_grad_bias_workspace(const ExpertLinear<T>& a);

template <typename T>
void expert_linear_grad_bias(const ExpertLinear<T>& a, const T* grad_y, T* grad_bias, const Call& call);

}  // namespace gmoe::core::cuda
