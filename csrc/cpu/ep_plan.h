// ep_plan on the CPU: a counting sort of (rank, token). Definition: python/moela/reference/ep_plan.py.
#pragma once

#include <algorithm>
#include <cstdint>

namespace moela::cpu {

template <class Id>
struct EpPlanParams {
  const Id* topk_ids;  // [T, topk], ld_ids apart
  int64_t T, topk, ld_ids;
  int64_t num_experts, num_ranks;
  int32_t* send_rows;  // [num_rows]
  int64_t num_rows;    // T * min(topk, num_ranks)
  int32_t* counts;     // [num_ranks]
  int32_t* slots;      // [T, topk]
  int32_t* next;       // [num_ranks], scratch: the place of a rank's next row
  int32_t* last;       // [num_ranks], scratch: the last token that went to a rank
};

// Two passes over the ids: how many rows each rank gets, then where they are. Bound: a division per id.
template <class Id>
void ep_plan(const EpPlanParams<Id>& p) {
  const int64_t size = p.num_experts / p.num_ranks, rest = p.num_experts % p.num_ranks;
  const int64_t end = rest * (size + 1);  // the experts before it are on ranks that have one more
  const auto owner = [&](int64_t id) {
    return id < end ? id / (size + 1) : rest + (id - end) / std::max<int64_t>(size, 1);
  };
  const auto is_here = [&](int64_t id) { return id >= 0 && id < p.num_experts; };
  std::fill_n(p.counts, p.num_ranks, 0);
  std::fill_n(p.last, p.num_ranks, -1);
  for (int64_t t = 0; t < p.T; ++t)
    for (int64_t k = 0; k < p.topk; ++k)
      if (const int64_t id = p.topk_ids[t * p.ld_ids + k]; is_here(id)) {
        const int64_t rank = owner(id);
        p.counts[rank] += p.last[rank] != t;
        p.last[rank] = static_cast<int32_t>(t);
      }
  int32_t row = 0;
  for (int64_t rank = 0; rank < p.num_ranks; ++rank) {
    p.next[rank] = row;
    row += p.counts[rank];
  }
  std::fill_n(p.last, p.num_ranks, -1);
  for (int64_t t = 0; t < p.T; ++t)
    for (int64_t k = 0; k < p.topk; ++k) {
      const int64_t id = p.topk_ids[t * p.ld_ids + k];
      int32_t& slot = p.slots[t * p.topk + k];
      slot = -1;
      if (!is_here(id)) continue;
      const int64_t rank = owner(id);
      if (p.last[rank] != t) p.send_rows[p.next[rank]++] = static_cast<int32_t>(t);
      p.last[rank] = static_cast<int32_t>(t);
      slot = p.next[rank] - 1;
    }
  std::fill(p.send_rows + row, p.send_rows + p.num_rows, -1);
}

}  // namespace moela::cpu
