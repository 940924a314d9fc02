// Which slot of a cache each token is written to.
#pragma once

#include <cstdint>

namespace moela::cpu {

struct Slots {
  const void* data;  // int32 or int64
  bool are_64;

  // -1: none.
  int64_t of(int64_t token) const {
    return are_64 ? static_cast<const int64_t*>(data)[token] : static_cast<const int32_t*>(data)[token];
  }
};

}  // namespace moela::cpu
