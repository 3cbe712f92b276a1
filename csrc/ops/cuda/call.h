// One call of an operator on a device: what every wrapper under csrc/ops/cuda does beside its own arguments.
#pragma once

#include <initializer_list>
#include <vector>

#include "core/cuda/launch.h"
#include "ops/compat.h"
#include "ops/cuda/device.h"
#include "ops/cuda/index_faults.h"

namespace gmoe::ops {

// Makes the device of `on` current, and raises what earlier calls there have noted. Lives until the wrapper returns:
// results and workspaces come from torch's allocator in the order of its current stream, which launches are on too.
class DeviceCall {
 public:
  DeviceCall(const char* op, const Tensor& on) : op_(op), on_(on), device_(index_of(op, on)), scope_(device_) {
    raise_index_faults(device_);
  }

  // Dense, on the device of the call.
  Tensor read(const char* name, const Tensor& t) const {
    check_device(name, t);
    return dense(t);
  }
  OptionalTensor read(const char* name, const OptionalTensor& t) const {
    return t ? OptionalTensor(read(name, *t)) : std::nullopt;
  }
  Tensor read_int64(const char* name, const Tensor& t) const {
    check_device(name, t);
    return dense_int64(t);
  }

  // For one launcher: a workspace that lives as long as this, and torch's stream.
  core::cuda::Call launch(std::int64_t workspace_bytes = 0) {
    return {workspace(workspace_bytes), nullptr, current_stream(device_)};
  }
  // For a launcher that follows indices: what they are, in the order of their positions, and what it expects beside.
  core::cuda::Call launch(std::int64_t workspace_bytes, std::initializer_list<IndexArgument> indices,
                          const char* beyond = nullptr) {
    core::cuda::BadIndex* word = index_fault_word(device_, op_, indices, beyond);
    return {workspace(workspace_bytes), word, current_stream(device_)};
  }

  // The value at `from` once all launches so far are over; raises what they have noted.
  template <typename T>
  T wait_and_read(const T* from) const {
    T value{};
    const core::cuda::Stream stream = current_stream(device_);
    copy_to_host(&value, from, sizeof value, stream);
    wait_for(stream);
    raise_index_faults(device_);
    return value;
  }

 private:
  static std::int32_t index_of(const char* op, const Tensor& on) {
    check(on_device(on), op, ": expected all tensors on one CUDA device, one is elsewhere");
    return on.get_device();
  }
  void check_device(const char* name, const Tensor& t) const {
    if (on_device(t) && t.get_device() == device_) return;
    check(false, op_, ": expected '", name, "' on ", device_name(device_), ", got ",
          on_device(t) ? device_name(t.get_device()) : "a tensor that is elsewhere");
  }
  void* workspace(std::int64_t bytes) {
    if (bytes == 0) return nullptr;
    workspaces_.push_back(new_like(on_, {bytes}, ScalarType::Byte));
    return workspaces_.back().mutable_data_ptr();
  }

  const char* op_;
  Tensor on_;
  std::int32_t device_;
  DeviceScope scope_;
  std::vector<Tensor> workspaces_;
};

}  // namespace gmoe::ops
