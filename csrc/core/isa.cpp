#include "core/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace gmoe::core {
namespace {

Isa best_isa() {
#if defined(__x86_64__) || defined(_M_X64)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return avx512 ? Isa::avx512 : avx2 ? Isa::avx2 : Isa::baseline;
#else
  return Isa::baseline;
#endif
}

Isa choose_isa() {
  const Isa best = best_isa();
  const char* wish = std::getenv("GMOE_EXT_CPU");
  if (wish == nullptr || *wish == '\0') return best;
  for (const Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512}) {
    if (std::string(wish) != isa_name(isa)) continue;
    if (isa > best) {
      throw std::runtime_error("GMOE_EXT_CPU=" + std::string(wish) + ": this processor supports at most '" +
                               isa_name(best) + "'; unset it or ask for less");
    }
    return isa;
  }
  throw std::runtime_error("GMOE_EXT_CPU=" + std::string(wish) + ": expected baseline, avx2 or avx512");
}

}  // namespace

Isa active_isa() {
  static const Isa isa = choose_isa();
  return isa;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512: return "avx512";
    case Isa::avx2: return "avx2";
    case Isa::baseline: break;
  }
  return "baseline";
}

}  // namespace gmoe::core
