// Runs the tests of the CUDA kernels on a GPU: all of them, or those whose name contains the first argument. The tests
// are those of the emulator, unchanged: their vectors lie in managed memory, which host and device both reach, and
// launches wait for their kernels (GMOE_WAIT_FOR_LAUNCHES). Each runs twice and must give the same bits.
#include <cuda_runtime_api.h>

#include <array>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <string>

#include "tests/check.h"

namespace {

// What operator new gives once it is open: blocks of a power of two bytes, used again when they are freed, out of one
// piece of managed memory. To ask the driver for each vector would take longer than the tests.
class ManagedMemory {
 public:
  cudaError_t open() {
    void* memory = nullptr;
    const cudaError_t error = cudaMallocManaged(&memory, kBytes);
    begin_ = next_ = static_cast<char*>(memory);
    return error;
  }
  void* take(std::size_t bytes) {
    if (begin_ == nullptr) return std::malloc(bytes == 0 ? 1 : bytes);
    const auto size_class = static_cast<std::size_t>(std::bit_width(bytes + kHeader));
    char* block = free_[size_class];
    if (block != nullptr) {
      free_[size_class] = *reinterpret_cast<char**>(block + kHeader);
    } else {
      if (bytes > kBytes || (std::size_t{1} << size_class) > kBytes - static_cast<std::size_t>(next_ - begin_))
        return nullptr;
      block = next_;
      next_ += std::size_t{1} << size_class;
    }
    *reinterpret_cast<std::size_t*>(block) = size_class;
    return block + kHeader;
  }
  void give_back(void* at) {
    char* block = static_cast<char*>(at) - kHeader;
    if (begin_ == nullptr || block < begin_ || block >= begin_ + kBytes) return std::free(at);
    const std::size_t size_class = *reinterpret_cast<std::size_t*>(block);
    *static_cast<char**>(at) = free_[size_class];
    free_[size_class] = block;
  }

 private:
  static constexpr std::size_t kBytes = std::size_t{1} << 30;
  static constexpr std::size_t kHeader =
      64;  // keeps vectors aligned as kernels ask; a block is at least twice as large
  char* begin_ = nullptr;
  char* next_ = nullptr;
  std::array<char*, 64> free_{};
};
ManagedMemory g_memory;

}  // namespace

void* operator new(std::size_t bytes) {
  if (void* at = g_memory.take(bytes)) return at;
  throw std::bad_alloc();
}
void operator delete(void* at) noexcept {
  if (at != nullptr) g_memory.give_back(at);
}
void operator delete(void* at, std::size_t) noexcept { operator delete(at); }

namespace gmoe::test {
namespace {

void run_test(const Test& test) {
  std::uint64_t bits = 0;
  for (const char* turn : {"first", "second"}) {
    state().bits = 0;
    state().test = join(test.name, ", ", turn, " run");
    set_case("start");
    try {
      test.run();
    } catch (const std::exception& error) {
      fail(__FILE__, __LINE__, join("unexpected: ", error.what()));
    }
    set_case("end");
    CHECK(*turn == 'f' || state().bits == bits);
    bits = state().bits;
  }
}

int run_all(const std::string& wanted) { return run_matching(tests(), wanted, run_test); }

}  // namespace
}  // namespace gmoe::test

int main(int argc, char** argv) {
  constexpr int kSkipped = 77;
  int devices = 0;
  cudaDeviceProp device{};
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::fprintf(stderr, "no GPU here: %s\n", cudaGetErrorString(cudaGetLastError()));
    return kSkipped;
  }
  if (cudaGetDeviceProperties(&device, 0) != cudaSuccess || g_memory.open() != cudaSuccess) {
    std::fprintf(stderr, "CUDA: %s\n", cudaGetErrorString(cudaGetLastError()));
    return 1;
  }
  std::printf("%s, compute capability %d.%d\n", device.name, device.major, device.minor);
  return gmoe::test::run_all(argc > 1 ? argv[1] : "");
}
