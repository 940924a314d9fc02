// The arithmetic of wgmma.
#include "emu/mma.h"

#include <cstring>

#include "emu/convert.h"

namespace moela::emu {
namespace {

float value_of(MmaType type, const uint8_t* at) {
  if (type == MmaType::kE4m3) return float_of_e4m3(*at);
  uint16_t bits;
  std::memcpy(&bits, at, 2);
  return type == MmaType::kBFloat16 ? float_of_bf16(bits) : float_of_f16(bits);
}

// Loads a rows x k operand as element(mn, k).
template <class Store>
void load_operand(const Operation& op, uint64_t descriptor, int rows, bool is_mn_major, Store store) {
  const MmaType type = op.operands.type;
  each_chunk(descriptor, rows, type, is_mn_major,
             [&](int mn, int k, int along_mn, int along_k, uint32_t address) {
               const uint8_t* chunk = &op.block->smem[address - kSmemWindow];
               for (int i = 0; i < along_mn * along_k; ++i)
                 store(along_mn == 1 ? mn : mn + i, along_mn == 1 ? k + i : k,
                       value_of(type, chunk + i * element_size(type)));
             });
}

// Hopper's fp8 tensor cores are reported to keep about 13 fraction bits of a sum. Dropping the rest after
// each instruction is a model of that, to be fitted on hardware (tests/conform, accumulator_probe).
float truncated(float x, int fraction_bits) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  bits &= ~0u << (23 - fraction_bits);
  std::memcpy(&x, &bits, 4);
  return x;
}

}  // namespace

void compute(Operation& op) {
  if (op.is_computed) return;
  op.is_computed = true;
  if (op.previous) compute(*op.previous);
  const int n = op.operands.n, k = k_of(op.operands.type);
  std::vector<float> a(static_cast<size_t>(kM * k)), b(static_cast<size_t>(k * n));
  if (op.operands.a_registers != nullptr) {
    a = op.a_fragment;
  } else {
    load_operand(op, op.operands.a_descriptor, kM, op.operands.transpose_a,
                 [&](int m, int kk, float x) { a[static_cast<size_t>(m * k + kk)] = x; });
  }
  load_operand(op, op.operands.b_descriptor, n, op.operands.transpose_b,
               [&](int col, int kk, float x) { b[static_cast<size_t>(kk * n + col)] = x; });
  if (op.previous) {
    op.d = op.previous->d;
  } else if (!op.starts_from_registers) {
    op.d.assign(static_cast<size_t>(kM * n), 0.f);
  }
  for (int m = 0; m < kM; ++m) {
    float* d = &op.d[static_cast<size_t>(m * n)];
    for (int kk = 0; kk < k; ++kk) {
      const float x = a[static_cast<size_t>(m * k + kk)];
      const float* row = &b[static_cast<size_t>(kk * n)];
      for (int col = 0; col < n; ++col) d[col] += x * row[col];
    }
  }
  if (op.operands.type == MmaType::kE4m3)
    for (float& x : op.d) x = truncated(x, EMU_MUTANT(10, world->options.fp8_fraction_bits, 9));
  op.previous.reset();
  ++world->report.wgmmas;
}

void take_a_fragment(Operation& op, int t, const uint32_t* registers) {
  const int size = element_size(op.operands.type), per_register = 4 / size, k = k_of(op.operands.type);
  for (int v = 0; v < 4 * per_register; ++v) {
    const uint32_t bits = registers[v / per_register] >> (v % per_register * size * 8);
    uint8_t bytes[4];
    std::memcpy(bytes, &bits, 4);
    const RowColumn at = a_register_element(t, v, per_register);
    op.a_fragment[static_cast<size_t>(at.row * k + at.column)] = value_of(op.operands.type, bytes);
  }
}

}  // namespace moela::emu
