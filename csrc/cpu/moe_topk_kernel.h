// moe_topk on the CPU. Bound: the arithmetic of the scores.
//
// Values are compared as integers in the order of the floats, so that nothing depends on how a compiler
// compares NaN; those are found before.
#pragma once

#include "cpu/moe_score.h"
#include "cpu/moe_topk.h"
#include "cpu/simd.h"

namespace {

// Experts whose largest key is kept, so that the next best expert is found among E / 32 of them and then
// among 32, not among E.
constexpr int64_t kTopkBlock = 32;
constexpr int32_t kNever = INT32_MIN;  // below the key of -Inf: never chosen

// Larger floats have larger keys. -0 has that of 0.
inline int32_t key_of(float x) {
  const auto bits = static_cast<int32_t>(bits_of(x + 0.f));
  return bits ^ (bits >> 31 & 0x7FFFFFFF);
}

inline float value_of(int32_t key) { return float_of(static_cast<uint32_t>(key ^ (key >> 31 & 0x7FFFFFFF))); }

inline int32_t most_of(const int32_t* key, int64_t n) {
  int32_t most = kNever;
  for (int64_t i = 0; i < n; ++i) most = key[i] > most ? key[i] : most;
  return most;
}

inline bool has_nan(const float* x, int64_t n) {
  int32_t found = 0;
  for (int64_t i = 0; i < n; ++i) found |= x[i] != x[i];
  return found != 0;
}

inline int64_t first_of(const int32_t* key, int32_t value) {
  int64_t i = 0;
  while (key[i] != value) ++i;
  return i;
}

inline float group_value(int32_t* key, int64_t n, moela::cpu::GroupScore kind) {
  const int32_t best = most_of(key, n);
  if (kind == moela::cpu::GroupScore::kMax || n == 1) return value_of(best);
  const int64_t i = first_of(key, best);
  key[i] = kNever;
  const int32_t second = most_of(key, n);
  key[i] = best;
  return value_of(best) + value_of(second);
}

// Sets the keys of experts in groups that do not stay to kNever. Groups are judged by `judged`, which may be
// `key`; `group_key` is room for num_groups. False where a group's value is NaN.
inline bool keep_groups(const moela::cpu::MoeTopkParams& p, int32_t* judged, int32_t* key,
                        int32_t* group_key) {
  const int64_t size = p.E / p.num_groups;
  for (int64_t g = 0; g < p.num_groups; ++g) {
    const float v = group_value(judged + g * size, size, p.group_score);
    if (v != v) return false;
    group_key[g] = key_of(v);
  }
  for (int64_t i = 0; i < p.topk_groups; ++i)
    group_key[first_of(group_key, most_of(group_key, p.num_groups))] = kNever;
  for (int64_t g = 0; g < p.num_groups; ++g)
    if (group_key[g] != kNever)
      for (int64_t i = g * size; i < (g + 1) * size; ++i) key[i] = kNever;
  return true;
}

inline void choose(int32_t* key, int32_t* block_key, int64_t E, int64_t topk, int32_t* ids) {
  const int64_t num_blocks = (E + kTopkBlock - 1) / kTopkBlock;
  const auto size = [E](int64_t block) {
    return E - block * kTopkBlock < kTopkBlock ? E - block * kTopkBlock : kTopkBlock;
  };
  for (int64_t b = 0; b < num_blocks; ++b) block_key[b] = most_of(key + b * kTopkBlock, size(b));
  for (int64_t slot = 0; slot < topk; ++slot) {
    const int32_t best = most_of(block_key, num_blocks);
    const int64_t b = first_of(block_key, best);
    int32_t* in_block = key + b * kTopkBlock;
    const int64_t i = first_of(in_block, best);
    ids[slot] = static_cast<int32_t>(b * kTopkBlock + i);
    in_block[i] = kNever;
    block_key[b] = most_of(in_block, size(b));
  }
}

inline void weigh(const moela::cpu::MoeTopkParams& p, const float* score, const int32_t* ids,
                  float* weights) {
  float total = 0.f;
  for (int64_t slot = 0; slot < p.topk; ++slot) total += score[ids[slot]];
  const float divisor = total + 1e-20f;
  for (int64_t slot = 0; slot < p.topk; ++slot) {
    const float weight = score[ids[slot]];
    weights[slot] = (p.renormalize ? weight / divisor : weight) * p.scaling;
  }
}

// False where a score, a choice or a group's value is NaN.
inline bool route(const moela::cpu::MoeTopkParams& p, float* scratch, int64_t row, float* weights,
                  int32_t* ids) {
  float *x = scratch, *score = x + p.E, *biased = score + p.E;
  auto* key = reinterpret_cast<int32_t*>(biased + p.E);
  load_floats(p.logits, p.dtype, row * p.ld, p.E, x);
  if (has_nan(x, p.E)) return false;
  for (int64_t i = 0; i < p.E; ++i) key[i] = key_of(x[i]);
  const float most = value_of(most_of(key, p.E));
  if (p.scoring == moela::cpu::Scoring::kSoftmax && absolute(most) == __builtin_inff()) return false;
  scores_of(x, p.E, p.scoring, most, score);
  if (p.bias != nullptr) {
    for (int64_t i = 0; i < p.E; ++i) biased[i] = score[i] + p.bias[i];
    if (has_nan(biased, p.E)) return false;
    for (int64_t i = 0; i < p.E; ++i) key[i] = key_of(biased[i]);
  }
  // x and biased have been used: room for other keys.
  auto *room = reinterpret_cast<int32_t*>(x), *judged = key;
  if (p.topk_groups < p.num_groups) {
    if (p.bias == nullptr && p.group_score == moela::cpu::GroupScore::kTop2Sum) {
      judged = reinterpret_cast<int32_t*>(biased);
      for (int64_t i = 0; i < p.E; ++i) judged[i] = key_of(score[i]);
    }
    if (!keep_groups(p, judged, key, room)) return false;
  }
  choose(key, room, p.E, p.topk, ids);
  weigh(p, score, ids, weights);
  return true;
}

void moe_topk(const moela::cpu::MoeTopkParams& p, float* scratch, int64_t begin, int64_t end) {
  [[maybe_unused]] const ExactSubnormals guard;
  for (int64_t row = begin; row < end; ++row) {
    float* weights = p.weights + row * p.topk;
    int32_t* ids = p.ids + row * p.topk;
    if (route(p, scratch, row, weights, ids)) continue;
    for (int64_t slot = 0; slot < p.topk; ++slot) {
      weights[slot] = __builtin_nanf("");
      ids[slot] = static_cast<int32_t>(slot);
    }
  }
}

}  // namespace
