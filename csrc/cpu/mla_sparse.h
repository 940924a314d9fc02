// What of attention on the CPU is mla_sparse's: a query's keys are the slots that it names.
// Definition: python/moela/reference/mla_sparse.py.
#pragma once

#include "cpu/mla_attend.h"

namespace moela::cpu {

// Of `count` entries those that name a slot, in order, to `slots`: what names nothing takes no part, so bits
// do not depend on where it stands.
inline MlaKeys keys_of_slots(const int32_t* entries, int64_t count, int32_t* slots) {
  MlaKeys keys = {.count = 0, .pages = nullptr, .slots = slots};
  for (int64_t e = 0; e < count; ++e)
    if (entries[e] >= 0) slots[keys.count++] = entries[e];
  return keys;
}

}  // namespace moela::cpu
