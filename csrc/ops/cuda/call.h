// One call of an operator on a device; the interface is CpuCall's (ops/call.h), and launch() beside it.
#pragma once

#include <array>
#include <vector>

#include "core/cuda/launch.h"
#include "ops/checks.h"
#include "ops/cuda/device.h"
#include "ops/cuda/index_faults.h"

namespace gmoe::ops {

// Makes the device of `on` current, and raises what earlier calls there have noted. Lives until the wrapper returns:
// results and workspaces come from torch's allocator in the order of its current stream, which launches are on too.
// Kernels note bad indices, and a later call raises for them.
class DeviceCall {
 public:
  DeviceCall(const char* op, const Tensor& on) : op_(op), on_(on), device_(index_of(op, on)), scope_(device_) {
    raise_index_faults(device_);
  }

  // Dense, on the device of the call.
  Tensor read(const char* name, const Tensor& t) const {
    check_device(name, t);
    check_memory(op_, name, t);
    return dense(t);
  }
  OptionalTensor read(const char* name, const OptionalTensor& t) const {
    return t ? OptionalTensor(read(name, *t)) : std::nullopt;
  }
  Tensor read_int64(const char* name, const Tensor& t) const {
    check_device(name, t);
    check_memory(op_, name, t);
    return dense_int64(t);
  }
  OptionalTensor read_int64(const char* name, const OptionalTensor& t) const {
    return t ? OptionalTensor(read_int64(name, *t)) : std::nullopt;
  }

  // The kernel will follow these indices, in the order of the positions that it notes.
  void follow(const char* name, const Tensor& index, std::int64_t bound) { note(name, index.numel(), bound); }
  void follow(const char* name, const OptionalTensor& index, std::int64_t bound) {
    note(name, index ? index->numel() : 0, bound);
  }
  void follow_rows(const Tensor& offsets, const Tensor& columns, std::int64_t num_columns) {
    // Kernels stay within the rows that exist, so without rows no edge would be checked.
    check(offsets.size(0) > 1 || columns.size(0) == 0, op_, ": expected 'offsets' to rise from 0 to ", columns.size(0),
          ", got no rows");
    follow("columns", columns, num_columns);
    beyond_ = "'offsets' to rise from 0 to the number of 'columns'";
  }
  void follow_plan(const core::ExpertPlanView& /*plan*/) {
    beyond_ = "'order' to name every slot once, ascending within an expert; fix: make the plan with expert_plan";
  }

  // For one launcher: a workspace that lives as long as this, where to note bad indices, and torch's stream.
  core::cuda::Call launch(std::int64_t workspace_bytes = 0) {
    core::cuda::BadIndex* word =
        follows_none() ? nullptr : index_fault_word(device_, op_, indices_.data(), num_indices_, beyond_);
    return {.workspace = workspace(workspace_bytes), .bad_index = word, .stream = current_stream(device_)};
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
  bool follows_none() const { return num_indices_ == 0 && beyond_ == nullptr; }
  void note(const char* name, std::int64_t size, std::int64_t bound) {
    check(num_indices_ < indices_.size(), op_, ": too many arrays of indices");
    indices_[num_indices_++] = {.name = name, .size = size, .bound = bound};
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
  std::array<IndexArgument, kMaxIndexArguments> indices_{};
  std::size_t num_indices_ = 0;
  const char* beyond_ = nullptr;
  std::vector<Tensor> workspaces_;
};

}  // namespace gmoe::ops
