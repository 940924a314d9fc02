// Interface of the CPU indexer_topk. Definition: python/moela/reference/indexer_topk.py.
#pragma once

#include <cstdint>

namespace moela::cpu {

struct IndexerTopkParams {
  const float* logits;  // [M, S], rows ld elements apart
  int64_t ld;
  int64_t S;
  int64_t topk;
  const int32_t* ks;           // [M], or nullptr: 0
  const int32_t* ke;           // [M], or nullptr: S
  const int32_t* block_table;  // [B, ...], rows stride_tb apart, or nullptr: columns, not slots
  int64_t stride_tb;
  int64_t page_size;
  const int32_t* request_ids;  // [M], or nullptr: m / rows_of_request
  int64_t rows_of_request;
  int32_t* indices;  // [M, topk]
};

// Columns that may have been chosen, and what they are judged by.
inline int64_t indexer_topk_scratch(int64_t S) { return 2 * S; }

// Writes rows [begin, end) of indices.
using IndexerTopk = void (*)(const IndexerTopkParams&, int64_t begin, int64_t end, uint32_t* scratch);

}  // namespace moela::cpu
