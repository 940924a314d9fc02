// indexer_topk on the CPU: an exact choice, so every instruction set gives the same. Bound: the memory rate.
//
// The topk-th largest of the maxima of some groups of logits is a lower bound for the topk-th largest logit:
// topk groups have one that is not below. With several groups for each logit that is wanted few logits pass
// that bound, one reading finds the bound, a second one collects what passes, and the exact choice is among
// these. Keys are integers in the order of the floats.
#pragma once

#include "cpu/convert.h"
#include "cpu/indexer_topk.h"
#include "cpu/simd.h"

namespace {

constexpr int64_t kGroupsPerChoice = 2;  // of logits: of random ones a third more pass than are chosen
constexpr int64_t kLargestGroup = 32;
constexpr float kLowest = -0x1.fffffep127f;  // above -Inf only

// Larger floats have larger keys. -0 has that of 0; NaN is above all.
inline uint32_t rank_of(float x) {
  const uint32_t bits = bits_of(x + 0.f), sign = bits >> 31;
  return (bits & 0x7FFFFFFF) > 0x7F800000 ? 0xFFFFFFFF : bits ^ ((0 - sign) | 0x80000000);
}
inline float float_of_rank(uint32_t rank) { return float_of(rank >> 31 != 0 ? rank ^ 0x80000000 : ~rank); }

struct KthLargest {
  uint32_t rank;
  int64_t num_above;  // how many are larger
};

// Of n ranks, which are used up; 1 <= k <= n. By their digits: those that share the digit of the k-th stay.
inline KthLargest kth_largest(uint32_t* ranks, int64_t n, int64_t k) {
  KthLargest found = {.rank = 0, .num_above = 0};
  constexpr uint32_t kDigits = 1 << 11;
  constexpr int kShifts[] = {21, 10, 0};
  for (const int shift : kShifts) {
    uint32_t counts[kDigits] = {};
    const auto digit_of = [shift](uint32_t rank) { return rank >> shift & (shift == 0 ? 0x3FF : 0x7FF); };
    for (int64_t i = 0; i < n; ++i) ++counts[digit_of(ranks[i])];
    uint32_t digit = kDigits - 1;
    while (found.num_above + counts[digit] < k) found.num_above += counts[digit--];
    found.rank |= digit << shift;
    int64_t kept = 0;
    for (int64_t i = 0; i < n; ++i) {
      const uint32_t rank = ranks[i];
      ranks[kept] = rank;
      kept += digit_of(rank) == digit;
    }
    n = kept;
  }
  return found;
}

// A number that at least topk logits are not below; of those that are above -Inf, if there are fewer.
inline float lower_bound(const float* x, int64_t n, int64_t topk, uint32_t* ranks) {
  int64_t vectors = n / (kGroupsPerChoice * topk);  // of a group, which is a lane of them
  vectors = vectors < kLargestGroup ? vectors : kLargestGroup;
  if (vectors < 2) return kLowest;
  int64_t count = 0;
  for (const float* end = x + n; end - x >= vectors * kLanes; count += kLanes) {
    F most = set1(-__builtin_inff());
    for (int64_t v = 0; v < vectors; ++v, x += kLanes) most = larger(load(x), most);  // leaves NaN out
    float maxima[kLanes];
    store(maxima, most);
    for (int l = 0; l < kLanes; ++l) ranks[count + l] = rank_of(maxima[l]);
  }
  if (count < topk) return kLowest;  // where topk is about kLanes: groups are whole vectors
  const float bound = float_of_rank(kth_largest(ranks, count, topk).rank);
  return bound < kLowest ? kLowest : bound;
}

// The places of those of n logits that are not below `least`, ascending.
inline int64_t collect(const float* x, int64_t n, float least, int32_t* places) {
  int64_t count = 0, i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (uint32_t lanes = not_below(load(x + i), set1(least)); lanes != 0; lanes &= lanes - 1)
      places[count++] = static_cast<int32_t>(i + __builtin_ctz(lanes));
  for (; i < n; ++i) {
    places[count] = static_cast<int32_t>(i);
    count += !(x[i] < least);
  }
  return count;
}

// The places of the topk largest of n logits, ascending; how many there are.
inline int64_t choose_largest(const float* x, int64_t n, int64_t topk, int32_t* places, uint32_t* ranks) {
  const float least = n > topk ? lower_bound(x, n, topk, ranks) : kLowest;
  const int64_t count = collect(x, n, least, places);
  if (count <= topk) return count;
  for (int64_t i = 0; i < count; ++i) ranks[i] = rank_of(x[places[i]]);
  const KthLargest last = kth_largest(ranks, count, topk);
  int64_t equal = topk - last.num_above, chosen = 0;  // the first ones of equal rank
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t rank = rank_of(x[places[i]]);
    const bool is_equal = rank == last.rank && equal > 0;
    equal -= is_equal;
    places[chosen] = places[i];
    chosen += is_equal || rank > last.rank;
  }
  return chosen;
}

void indexer_topk(const moela::cpu::IndexerTopkParams& p, int64_t begin, int64_t end, uint32_t* scratch) {
  [[maybe_unused]] const ExactSubnormals guard;
  auto* places = reinterpret_cast<int32_t*>(scratch);
  uint32_t* ranks = scratch + p.S;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t request = p.request_ids != nullptr ? p.request_ids[row] : row / p.rows_of_request;
    const int64_t first = p.ks != nullptr ? p.ks[row] : 0, last = p.ke != nullptr ? p.ke[row] : p.S;
    int64_t count = 0;
    if (last > first && (p.block_table == nullptr || request >= 0))
      count = choose_largest(p.logits + row * p.ld + first, last - first, p.topk, places, ranks);
    int32_t* to = p.indices + row * p.topk;
    if (p.block_table == nullptr) {
      for (int64_t i = 0; i < count; ++i) to[i] = static_cast<int32_t>(first) + places[i];
    } else {
      const int32_t* pages = p.block_table + request * p.stride_tb;
      for (int64_t i = 0; i < count; ++i)
        to[i] = static_cast<int32_t>(pages[places[i] / p.page_size] * p.page_size + places[i] % p.page_size);
    }
    for (int64_t i = count; i < p.topk; ++i) to[i] = -1;
  }
}

}  // namespace
