// The emulator itself: it runs correct kernels correctly in every order, and says what is wrong with the others.
#include "tests/emulator/executor.h"

#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "core/cuda/primitives.cuh"
#include "tests/check.h"
#include "tests/emulator/mutation.h"

namespace gmoe::test {
namespace {

namespace cuda = core::cuda;

constexpr int kThreads = 64;

// Message of the error that f throws, or an empty one.
std::string error_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const emulator::LaunchError& error) {
    return error.what();
  }
  return "";
}

void expect_error(const std::string& got, const std::vector<std::string>& parts) {
  for (const std::string& part : parts) {
    if (got.find(part) == std::string::npos) fail(__FILE__, __LINE__, join("'", got, "' lacks '", part, "'"));
  }
}

// Everything that orders threads: sums tiles that come by asynchronous copies, two at a time, through shared memory.
constexpr int kTiles = 5;
constexpr int kPerCopy = 4;

__global__ void staged_sum(const int* x, long long* sum) {
  constexpr int kTile = kThreads * kPerCopy;
  cuda::DynamicShared shared;
  int* tile = shared.take<int>(2 * kTile);
  long long* part = shared.take<long long>(kThreads);
  const int t = static_cast<int>(threadIdx.x);
  const int* from = x + static_cast<std::int64_t>(blockIdx.x) * kTiles * kTile;
  const auto fetch = [&](int i) {
    if (i < kTiles) cuda::copy_async16(tile + i % 2 * kTile + t * kPerCopy, from + i * kTile + t * kPerCopy);
    cuda::copy_async_commit();
  };
  fetch(0);
  long long own = 0;
  for (int i = 0; i < kTiles; ++i) {
    fetch(i + 1);
    cuda::copy_async_wait<1>();
    __syncthreads();
    // What other threads have fetched, from both neighbouring warps.
    for (int j = 0; j < kPerCopy; ++j) own += (j + 1) * tile[i % 2 * kTile + j * kThreads + (kThreads - 1 - t)];
    __syncthreads();
  }
  part[t] = own;
  __syncwarp();
  const int lane = cuda::lane_id();
  for (int half = cuda::kWarp / 2; half > 0; half /= 2) {
    if (lane < half) part[t] += part[t + half];
    __syncwarp();
  }
  __syncthreads();
  if (t == 0) sum[blockIdx.x] = part[0] + part[cuda::kWarp];
}

void check_staged_sum() {
  constexpr int kBlocks = 3, kTile = kThreads * kPerCopy;
  std::vector<int> x(kBlocks * kTiles * kTile);
  std::iota(x.begin(), x.end(), 1);
  std::vector<long long> sum(kBlocks, -1), want(kBlocks, 0);
  for (std::size_t i = 0; i < x.size(); ++i) {
    want[i / (kTiles * kTile)] += static_cast<long long>(i % kTile / kThreads + 1) * x[i];
  }
  // The copies are of 16 bytes: from memory that is as aligned as the device's.
  const std::size_t bytes = cuda::shared_bytes<int, long long>(2 * kTile, kThreads);
  cuda::launch("staged_sum", staged_sum, kBlocks, kThreads, bytes, nullptr, x.data(), sum.data());
  CHECK_EQUAL(sum, want);
}

GMOE_PARALLEL_TEST(executor_runs_a_kernel_in_any_order) { check_staged_sum(); }

GMOE_TEST(executor_shows_every_barrier_and_wait_that_is_left_out) {
  const std::vector<Mutant> mutants = leave_out_each_place(check_staged_sum);
  CHECK(mutants.size() == 6);
  for (const Mutant& mutant : mutants) {
    set_case("without ", mutant.place);
    CHECK(mutant.noticed);
  }
}

__global__ void leaves_before_barrier() {
  if (threadIdx.x == 40) return;
  __syncthreads();
}
__global__ void two_barriers() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void diverged_shuffle(int* out) {
  if (cuda::lane_id() < 16) *out = __shfl_xor_sync(cuda::kAllLanes, 1, 1);
}
__global__ void barrier_in_half_a_warp() {
  if (cuda::lane_id() < 16) {
    __syncwarp();
  } else {
    __syncthreads();
  }
}
__global__ void lane_outside_its_mask() { __syncwarp(0xffff); }
__global__ void reads_outside_mask(int* out) {
  if (cuda::lane_id() < 16) *out = __shfl_sync(0xffffu, 1, 20);
}

GMOE_PARALLEL_TEST(executor_names_threads_that_miss_each_other) {
  const auto error = [](auto kernel, auto... arguments) {
    return error_of([&] { cuda::launch("sample", kernel, 2, kThreads, 0, nullptr, arguments...); });
  };
  int out = 0;
  expect_error(error(leaves_before_barrier),
               {"kernel sample", "emulator_test.cpp:", "block ", "thread 40", "the kernel"});
  expect_error(error(two_barriers), {"a barrier is met while thread", "waits at the barrier emulator_test.cpp:"});
  expect_error(error(diverged_shuffle, &out), {"emulator_test.cpp:", "left the kernel"});
  expect_error(error(barrier_in_half_a_warp), {"warp operation", "emulator_test.cpp:"});
  expect_error(error(lane_outside_its_mask), {"whose mask leaves it out", "thread "});
  expect_error(error(reads_outside_mask, &out), {"reads a lane outside its mask"});
  // The executor goes on after an error.
  check_staged_sum();
}

// c = a b of small whole numbers, which bfloat16 holds, by the manual's fragments.
__global__ void matrix_product(const core::bfloat16* a, const core::bfloat16* b, float* c) {
  const int g = cuda::lane_id() / 4, t = cuda::lane_id() % 4 * 2;
  const auto pair = [](core::bfloat16 low, core::bfloat16 high) {
    return unsigned{low.bits} | unsigned{high.bits} << 16;
  };
  const auto of_a = [&](int row, int column) { return pair(a[row * 16 + column], a[row * 16 + column + 1]); };
  const auto of_b = [&](int row, int column) { return pair(b[row * 8 + column], b[(row + 1) * 8 + column]); };
  float own[4] = {1, 1, 1, 1};
  cuda::multiply_m16n8k16(own[0], own[1], own[2], own[3], of_a(g, t), of_a(g + 8, t), of_a(g, t + 8),
                          of_a(g + 8, t + 8), of_b(t, g), of_b(t + 8, g));
  for (int i = 0; i < 4; ++i) c[(g + i / 2 * 8) * 8 + t + i % 2] = own[i];
}

GMOE_PARALLEL_TEST(executor_multiplies_matrices_by_warps) {
  std::vector<core::bfloat16> a, b;
  for (int i = 0; i < 16 * 16; ++i) a.push_back(core::to_bfloat16(static_cast<float>(i % 17 - 8)));
  for (int i = 0; i < 16 * 8; ++i) b.push_back(core::to_bfloat16(static_cast<float>(i % 13 - 6)));
  std::vector<float> c(16 * 8), want(16 * 8, 1);
  for (int i = 0; i < 16 * 16 * 8; ++i) {
    const int row = i / 128, k = i / 8 % 16, column = i % 8;
    want[row * 8 + column] += core::to_float(a[row * 16 + k]) * core::to_float(b[k * 8 + column]);
  }
  cuda::launch("matrix_product", matrix_product, 1, 32, 0, nullptr, a.data(), b.data(), c.data());
  CHECK_EQUAL(c, want);
}

__global__ void tf32_product(const float* a, const float* b, float* c) {
  const int g = cuda::lane_id() / 4, t = cuda::lane_id() % 4;
  const auto of_a = [&](int row, int column) { return cuda::rounded_to_tf32(a[row * 8 + column]); };
  const auto of_b = [&](int row, int column) { return cuda::rounded_to_tf32(b[row * 8 + column]); };
  float own[4] = {1, 1, 1, 1};
  cuda::multiply_m16n8k8(own[0], own[1], own[2], own[3], of_a(g, t), of_a(g + 8, t), of_a(g, t + 4), of_a(g + 8, t + 4),
                         of_b(t, g), of_b(t + 4, g));
  for (int i = 0; i < 4; ++i) c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = own[i];
}

GMOE_PARALLEL_TEST(executor_multiplies_matrices_of_tf32_by_warps) {
  std::vector<float> a, b;
  for (int i = 0; i < 16 * 8; ++i) a.push_back(static_cast<float>(i % 17 - 8));
  for (int i = 0; i < 8 * 8; ++i) b.push_back(static_cast<float>(i % 13 - 6));
  std::vector<float> c(16 * 8), want(16 * 8, 1);
  for (int i = 0; i < 16 * 8 * 8; ++i) {
    const int row = i / 64, k = i / 8 % 8, column = i % 8;
    want[row * 8 + column] += a[row * 8 + k] * b[k * 8 + column];
  }
  cuda::launch("tf32_product", tf32_product, 1, 32, 0, nullptr, a.data(), b.data(), c.data());
  CHECK_EQUAL(c, want);
}

__global__ void nothing() {}

GMOE_TEST(executor_refuses_launches_that_no_device_takes) {
  const auto error = [](std::int64_t blocks, int threads, std::size_t shared) {
    return error_of([&] { cuda::launch("nothing", nothing, blocks, threads, shared, nullptr); });
  };
  CHECK(error(1, 1024, 0).empty());
  expect_error(error(0, 32, 0), {"launch of nothing", "0 blocks"});
  expect_error(error(std::int64_t{1} << 31, 32, 0), {"2147483648 blocks"});
  expect_error(error(1, 48, 0), {"48 threads", "multiple of 32"});
  expect_error(error(1, 1056, 0), {"1056 threads"});
  expect_error(error(1, 32, 1 << 20), {"bytes of shared memory"});
}

__global__ void copies(int* out, const char* from, bool wait) {
  GMOE_SHARED_ARRAY(char, target, 32 * 16);
  cuda::copy_async16(target + threadIdx.x * 16, from);
  cuda::copy_async_commit();
  if (wait) cuda::copy_async_wait<0>();
  if (threadIdx.x == 0) *out = target[0];
}
__global__ void copies_to_global(char* to, const char* from) { cuda::copy_async16(to, from); }
__global__ void too_much_shared() {
  GMOE_SHARED_ARRAY(char, large, 49 << 10);
  large[0] = 0;
}
__global__ void takes_too_much() {
  cuda::DynamicShared shared;
  shared.take<int>(65);
}

GMOE_TEST(executor_refuses_wrong_copies_and_too_much_memory) {
  alignas(16) char bytes[32] = {};
  int out = 0;
  const auto error = [](auto kernel, std::size_t shared, auto... arguments) {
    return error_of([&] { cuda::launch("sample", kernel, 1, 32, shared, nullptr, arguments...); });
  };
  const char* from = bytes;
  char* to = bytes + 16;
  CHECK(error(copies, 0, &out, from, true).empty());
  expect_error(error(copies, 0, &out, from + 4, true), {"16 bytes is not aligned", "emulator_test.cpp:"});
  expect_error(error(copies, 0, &out, from, false), {"without waiting for its asynchronous copies"});
  expect_error(error(copies_to_global, 0, to, from), {"elsewhere than to shared memory"});
  expect_error(error(too_much_shared, 0), {"more shared memory than a block may have"});
  expect_error(error(takes_too_much, 0), {"no dynamic shared memory"});
  expect_error(error(takes_too_much, 256), {"outgrow the dynamic shared memory"});
}

// A value that no thread wrote, as NaN.
__global__ void reads_unwritten(float* out) {
  GMOE_SHARED_ARRAY(float, value, 4);
  if (threadIdx.x == 0) out[blockIdx.x] = value[blockIdx.x];
}

GMOE_TEST(executor_fills_shared_memory_with_nan) {
  std::vector<float> out(3, 0.0f);
  cuda::launch("reads_unwritten", reads_unwritten, 3, 32, 0, nullptr, out.data());
  for (const float value : out) CHECK(std::isnan(value));
}

__global__ void collectives(unsigned* ballot, unsigned* match, int* shuffled, int* counted) {
  const int lane = cuda::lane_id();
  const unsigned odd = __ballot_sync(cuda::kAllLanes, lane % 2 == 1);
  const unsigned same = __match_any_sync(cuda::kAllLanes, static_cast<unsigned long long>(lane / 8));
  const int below = __shfl_up_sync(cuda::kAllLanes, lane, 1);
  int value[cuda::kWarp];
  for (int i = 0; i < cuda::kWarp; ++i) value[i] = lane * (i + 1);
  const int transposed = cuda::warp_sum_32(value);
  ballot[lane] = odd;
  match[lane] = same;
  shuffled[lane] = below;
  counted[lane] = transposed + cuda::warp_sum(1);
}

GMOE_PARALLEL_TEST(warp_operations_give_what_cuda_gives) {
  std::vector<unsigned> ballot(32), match(32), want_ballot(32, 0xaaaaaaaau), want_match;
  std::vector<int> shuffled(32), counted(32), want_shuffled, want_counted;
  cuda::launch("collectives", collectives, 1, 32, 0, nullptr, ballot.data(), match.data(), shuffled.data(),
               counted.data());
  for (int lane = 0; lane < 32; ++lane) {
    want_match.push_back(0xffu << (lane / 8 * 8));
    want_shuffled.push_back(lane == 0 ? 0 : lane - 1);
    want_counted.push_back(31 * 16 * (lane + 1) + 32);
  }
  CHECK_EQUAL(ballot, want_ballot);
  CHECK_EQUAL(match, want_match);
  CHECK_EQUAL(shuffled, want_shuffled);
  CHECK_EQUAL(counted, want_counted);
}

#if defined(__SANITIZE_ADDRESS__)
__global__ void writes_past_shared(int at) {
  GMOE_SHARED_ARRAY(float, value, 4);
  if (threadIdx.x == 7) value[at] = 0;
}
__global__ void writes_past_taken(int at) {
  cuda::DynamicShared shared;
  float* value = shared.take<float>(5);
  shared.take<float>(5);
  if (threadIdx.x == 7) value[at] = 0;
}

GMOE_TEST(address_sanitizer_sees_the_ends_of_shared_arrays) {
  const auto dies = [](auto kernel, int at) {
    return in_child([&] { cuda::launch("writes", kernel, 1, 32, 64, nullptr, at); }) != 0;
  };
  CHECK(!dies(writes_past_shared, 3));
  CHECK(dies(writes_past_shared, 4));
  CHECK(dies(writes_past_shared, -1));
  CHECK(!dies(writes_past_taken, 4));
  CHECK(dies(writes_past_taken, 5));
}
#endif

#if defined(GMOE_THREAD_SANITIZER)
__global__ void counts_in_shared(int* out, bool atomic) {
  GMOE_SHARED_ARRAY(int, count, 1);
  if (threadIdx.x == 0) count[0] = 0;
  __syncthreads();
  if (atomic) {
    atomicAdd(count, 1);
  } else {
    ++count[0];
  }
  __syncthreads();
  if (threadIdx.x == 0) *out = count[0];
}
// Lanes meet at the shuffle, but it makes nothing visible.
__global__ void exchanges_behind_a_shuffle(int* out, bool wait) {
  GMOE_SHARED_ARRAY(int, value, kThreads);
  value[threadIdx.x] = __shfl_xor_sync(cuda::kAllLanes, 1, 1);
  if (wait) __syncwarp();
  out[threadIdx.x] = __shfl_xor_sync(cuda::kAllLanes, 1, 1) + value[threadIdx.x ^ 1];
}
__global__ void writes_in_every_block(int* out, int stride) { out[blockIdx.x * stride] = 1; }

GMOE_TEST(thread_sanitizer_sees_races_of_threads_lanes_and_blocks) {
  std::vector<int> out(kThreads);
  const auto dies = [&](auto kernel, std::int64_t blocks, auto argument) {
    return in_child([&] { cuda::launch("races", kernel, blocks, kThreads, 0, nullptr, out.data(), argument); }) != 0;
  };
  CHECK(!dies(counts_in_shared, 1, true));
  CHECK(dies(counts_in_shared, 1, false));
  CHECK(!dies(exchanges_behind_a_shuffle, 1, true));
  CHECK(dies(exchanges_behind_a_shuffle, 1, false));
  CHECK(!dies(counts_in_shared, 1, true));
  CHECK(dies(writes_in_every_block, 2, 0));
}
#endif

}  // namespace
}  // namespace gmoe::test
