// By cudart rather than torch where torch's stable interface has nothing: both work in the device's primary context.
#include "ops/cuda/device.h"

#include <cuda_runtime_api.h>

namespace gmoe::ops {
namespace {

void check_cuda(cudaError_t error, const char* what) {
  check(error == cudaSuccess, "CUDA: ", what, ": ", cudaGetErrorString(error));
}

// Allocations while some stream records a graph are an error unless this thread says that it knows better.
class AllocateDuringCapture {
 public:
  AllocateDuringCapture() { check_cuda(cudaThreadExchangeStreamCaptureMode(&mode_), "capture mode"); }
  ~AllocateDuringCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

}  // namespace

bool on_device(const Tensor& t) { return t.is_cuda(); }
std::string device_name(std::int32_t device) { return join("cuda:", device); }

DeviceScope::DeviceScope(std::int32_t device) : guard_(nullptr) {
  DeviceGuardHandle guard = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_create_device_guard(device, &guard));
  guard_ = guard;
}
DeviceScope::~DeviceScope() { aoti_torch_delete_device_guard(static_cast<DeviceGuardHandle>(guard_)); }

core::cuda::Stream current_stream(std::int32_t device) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return stream;
}

void wait_for(core::cuda::Stream stream) {
  check_cuda(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), "waiting for a stream");
}

void copy_to_host(void* to, const void* from, std::size_t bytes, core::cuda::Stream stream) {
  check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, static_cast<cudaStream_t>(stream)), "copy");
}

SharedWords allocate_shared_words(std::size_t count) {
  const AllocateDuringCapture allowed;
  void *on_host = nullptr, *on_device = nullptr;
  check_cuda(cudaHostAlloc(&on_host, count * sizeof(core::cuda::BadIndex), cudaHostAllocMapped | cudaHostAllocPortable),
             "page-locked memory");
  check_cuda(cudaHostGetDevicePointer(&on_device, on_host, 0), "page-locked memory on the device");
  return {static_cast<core::cuda::BadIndex*>(on_host), static_cast<core::cuda::BadIndex*>(on_device)};
}

}  // namespace gmoe::ops
