// One binary for every x86-64: each file under core/cpu is compiled once per instruction set into a namespace of its
// own (GMOE_ISA = baseline, avx2 or avx512), and the function of the active one is called. Other processors use
// baseline.
#pragma once

namespace gmoe::core {

enum class Isa { baseline, avx2, avx512 };

// The best set this processor and operating system support, or less when the environment variable GMOE_EXT_CPU
// (baseline | avx2 | avx512) asks for it; read once. An unsupported set throws std::runtime_error.
Isa active_isa();
const char* isa_name(Isa isa);

}  // namespace gmoe::core

#if defined(__x86_64__) || defined(_M_X64)
#define GMOE_DECLARE_PER_ISA(...) \
  namespace baseline {            \
  __VA_ARGS__;                    \
  }                               \
  namespace avx2 {                \
  __VA_ARGS__;                    \
  }                               \
  namespace avx512 {              \
  __VA_ARGS__;                    \
  }
#define GMOE_CALL_ACTIVE_ISA(call)                       \
  switch (::gmoe::core::active_isa()) {                  \
    case ::gmoe::core::Isa::avx512: return avx512::call; \
    case ::gmoe::core::Isa::avx2: return avx2::call;     \
    case ::gmoe::core::Isa::baseline: break;             \
  }                                                      \
  return baseline::call
#else
#define GMOE_DECLARE_PER_ISA(...) \
  namespace baseline {            \
  __VA_ARGS__;                    \
  }
#define GMOE_CALL_ACTIVE_ISA(call) return baseline::call
#endif
