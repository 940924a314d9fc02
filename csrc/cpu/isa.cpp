// Chooses the instruction set. Compiled for the baseline of the platform.
#include "cpu/isa.h"

#if defined(MOELA_ISA_amx_bf16)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <array>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace moela::cpu {
namespace {

struct Isa {
  const char* name;
  const Kernels* kernels;  // nullptr: not compiled into this library
  bool usable;             // this machine has the instructions, and the system saves the registers
  bool verified;           // the test-suite has run on a machine with these instructions (docs/FACTS.md)
};

#if defined(MOELA_ISA_avx2)
constexpr const Kernels* kAvx2IfBuilt = &kAvx2;
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#else
constexpr const Kernels* kAvx2IfBuilt = nullptr;
bool has_avx2() { return false; }
#endif
#if defined(MOELA_ISA_avx512)
constexpr const Kernels* kAvx512IfBuilt = &kAvx512;
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#else
constexpr const Kernels* kAvx512IfBuilt = nullptr;
bool has_avx512() { return false; }
#endif
#if defined(MOELA_ISA_avx512_bf16)
constexpr const Kernels* kAvx512Bf16IfBuilt = &kAvx512Bf16;
bool has_avx512_bf16() {
  return has_avx512() && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512bf16");
}
#else
constexpr const Kernels* kAvx512Bf16IfBuilt = nullptr;
bool has_avx512_bf16() { return false; }
#endif
#if defined(MOELA_ISA_amx_bf16)
// Those of avx512, but for the products that are worth whole tiles: vdpbf16ps has half the rate of float32
// multiply-adds where there is AMX (docs/adr/0011).
const Kernels* amx_bf16() {
  static const Kernels kernels = [] {
    Kernels k = kAvx512;
    k.isa = "amx_bf16";
    k.gemm = kAmxGemm;
    k.fused_experts = kAmxFusedExperts;
    k.indexer_logits = kAmxIndexerLogits;
    k.mla_attend = kAmxMlaAttend;
    k.mla_prefill = kAmxMlaPrefill;
    k.mla_prefill_backward = kAmxMlaPrefillBackward;
    k.probe = kAmxProbe;
    return k;
  }();
  return &kernels;
}
// A process asks the system for the registers before it uses them.
bool has_amx_bf16() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return has_avx512_bf16() && __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#else
const Kernels* amx_bf16() { return nullptr; }
bool has_amx_bf16() { return false; }
#endif
#if defined(MOELA_ISA_neon)
constexpr const Kernels* kNeonIfBuilt = &kNeon;
#else
constexpr const Kernels* kNeonIfBuilt = nullptr;
#endif

// The preferred first.
const std::array<Isa, 6>& isas() {
  static const std::array<Isa, 6> table = {{
      {"amx_bf16", amx_bf16(), has_amx_bf16(), true},
      {"avx512_bf16", kAvx512Bf16IfBuilt, has_avx512_bf16(), true},
      {"avx512", kAvx512IfBuilt, has_avx512(), true},
      {"avx2", kAvx2IfBuilt, has_avx2(), true},
      {"neon", kNeonIfBuilt, kNeonIfBuilt != nullptr, false},
      {"scalar", &kScalar, true, true},
  }};
  return table;
}

const Kernels& choose() {
  const char* forced = std::getenv("MOELA_CPU_ISA");
  const std::string wanted = forced ? forced : "";
  std::string usable;
  for (const Isa& isa : isas()) {
    if (!isa.kernels || !isa.usable) continue;
    if (wanted.empty() || wanted == isa.name) return *isa.kernels;
    usable += (usable.empty() ? "" : ", ") + std::string(isa.name);
  }
  throw std::invalid_argument("MOELA_CPU_ISA: expected one that this machine runs (" + usable + "), got '" +
                              wanted + "'");
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

// For `moela info` and the bench, through ctypes: one line "<name> <state> <note>" per instruction set.
extern "C" __attribute__((visibility("default"))) const char* moela_cpu_isas() {
  static std::string text;
  const Kernels* chosen = nullptr;
  try {
    chosen = &kernels();
  } catch (
      const std::invalid_argument&) {  // reported by the first op; here every line says what would be valid
  }
  text.clear();
  for (const Isa& isa : isas()) {
    const char* state = !isa.kernels ? "not-compiled" : !isa.usable ? "unusable" : "usable";
    if (isa.kernels && isa.kernels == chosen) state = "picked";
    text += std::string(isa.name) + " " + state + " " + (isa.verified ? "verified" : "unverified") + "\n";
  }
  return text.c_str();
}

extern "C" __attribute__((visibility("default"))) uint64_t moela_probe_read(const void* p, uint64_t bytes) {
  return kernels().probe.read(p, bytes);
}

extern "C" __attribute__((visibility("default"))) double moela_probe_fma(uint64_t iterations) {
  return kernels().probe.fma(iterations);
}

extern "C" __attribute__((visibility("default"))) uint64_t moela_probe_fma_flops() {
  return kernels().probe.fma_flops;
}

}  // namespace moela::cpu
