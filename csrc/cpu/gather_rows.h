// Interface of the copies of expert parallelism. Definition: python/moela/ep/rows.py.
#pragma once

#include <cstdint>

namespace moela::cpu {

struct GatherRowsParams {
  const void* source;  // rows of row_bytes, ld_source bytes apart
  int64_t row_bytes;
  int64_t ld_source;
  const int32_t* rows;  // the row of source, below 0: zeros
  void* out;            // rows of row_bytes, ld_out bytes apart
  int64_t ld_out;
  bool is_streamed;  // past the caches: what is written is not read before
};

// Writes rows [begin, end) of out.
using GatherRows = void (*)(const GatherRowsParams&, int64_t begin, int64_t end);

}  // namespace moela::cpu
