// What the cases of bits.cpp share: their inputs, the same on every machine, and how results are printed.
#pragma once

#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "cpu/isa.h"

namespace {

using moela::cpu::Dtype;
using moela::cpu::Kernels;

// xorshift64*: the same numbers on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2654435761u + 88172645463325252u) {}
  uint64_t next() {
    state_ ^= state_ >> 12, state_ ^= state_ << 25, state_ ^= state_ >> 27;
    return state_ * 2685821657736338717u;
  }

 private:
  uint64_t state_;
};

uint64_t hash_of(const void* data, size_t size) {  // FNV-1a
  uint64_t hash = 1469598103934665603u;
  for (size_t i = 0; i < size; ++i) hash = (hash ^ static_cast<const uint8_t*>(data)[i]) * 1099511628211u;
  return hash;
}

template <class T>
void print(const Kernels& kernels, const std::string& name, const std::vector<T>& values) {
  std::printf("%s %s %016" PRIx64 "\n", kernels.isa, name.c_str(),
              hash_of(values.data(), values.size() * sizeof(T)));
}

int element_size(Dtype dtype) { return dtype == Dtype::kFloat32 ? 4 : dtype == Dtype::kE4m3 ? 1 : 2; }

// `count` elements: any code of e4m3; of the others any sign, any fraction and exponents around that of 1.
std::vector<uint8_t> elements(Dtype dtype, int64_t count, uint64_t seed) {
  Random random(seed);
  std::vector<uint8_t> bytes(count * element_size(dtype));
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t r = random.next();
    const auto exponent = static_cast<uint32_t>(r >> 40) % 12;
    if (dtype == Dtype::kFloat32) {
      const uint32_t u = (static_cast<uint32_t>(r) & 0x807FFFFF) | (120 + exponent) << 23;
      std::memcpy(&bytes[4 * i], &u, 4);
    } else if (dtype == Dtype::kE4m3) {
      bytes[i] = static_cast<uint8_t>(r);
    } else {
      const bool is_half = dtype == Dtype::kFloat16;
      const uint32_t fraction = static_cast<uint32_t>(r) & (is_half ? 0x83FF : 0x807F);
      const auto u =
          static_cast<uint16_t>(fraction | (is_half ? 8 + exponent : 120 + exponent) << (is_half ? 10 : 7));
      std::memcpy(&bytes[2 * i], &u, 2);
    }
  }
  return bytes;
}

std::vector<float> floats(int64_t count, uint64_t seed) {
  const std::vector<uint8_t> bytes = elements(Dtype::kFloat32, count, seed);
  std::vector<float> values(count);
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

const auto run_here = [](int64_t count, double, const auto& f) {
  if (count > 0) f(0, count);
};

const auto allocate = [](int64_t count) { return std::make_unique<float[]>(count); };

void canonical_nan(std::vector<float>& values) {  // which NaN it is may differ between machines
  for (float& x : values)
    if (x != x) x = __builtin_nanf("");
}

}  // namespace
