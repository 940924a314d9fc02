// Exchange among the 32 lanes of a warp, all of which take part.
#pragma once

#include "cuda/hopper/types.h"

namespace moela::cuda::sm90 {

// PTX ISA "elect.sync". True in one lane.
MOELA_DEVICE bool elect_one() {
  uint32_t is_elected;
  asm volatile(
      "{\n.reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, p;\n}"
      : "=r"(is_elected));
  return is_elected != 0;
}

// PTX ISA "shfl.sync". T has 4 bytes.
template <class T>
MOELA_DEVICE T shfl(T value, int source_lane) {
  uint32_t result;
  asm volatile("shfl.sync.idx.b32 %0, %1, %2, 0x1f, 0xffffffff;"
               : "=r"(result)
               : "r"(bits_as<uint32_t>(value)), "r"(source_lane));
  return bits_as<T>(result);
}

// PTX ISA "shfl.sync". From the lane whose number differs in the bits of `mask`.
template <class T>
MOELA_DEVICE T shfl_xor(T value, int mask) {
  uint32_t result;
  asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 0x1f, 0xffffffff;"
               : "=r"(result)
               : "r"(bits_as<uint32_t>(value)), "r"(mask));
  return bits_as<T>(result);
}

// PTX ISA "redux.sync". The largest of the warp's values, in every lane.
MOELA_DEVICE uint32_t redux_max(uint32_t x) {
  uint32_t max;
  asm volatile("redux.sync.max.u32 %0, %1, 0xffffffff;" : "=r"(max) : "r"(x));
  return max;
}

// PTX ISA "redux.sync".
MOELA_DEVICE uint32_t redux_add(uint32_t x) {
  uint32_t sum;
  asm volatile("redux.sync.add.u32 %0, %1, 0xffffffff;" : "=r"(sum) : "r"(x));
  return sum;
}

// PTX ISA "vote.sync". Bit i: the predicate of lane i.
MOELA_DEVICE uint32_t vote_ballot(bool predicate) {
  uint32_t lanes;
  asm volatile(
      "{\n.reg .pred p;\n"
      "setp.ne.u32 p, %1, 0;\n"
      "vote.sync.ballot.b32 %0, p, 0xffffffff;\n}"
      : "=r"(lanes)
      : "r"(static_cast<uint32_t>(predicate)));
  return lanes;
}

}  // namespace moela::cuda::sm90
