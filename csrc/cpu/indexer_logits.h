// Interface of the CPU indexer_logits and indexer_logits_paged. Definition:
// python/moela/reference/indexer_logits.py.
#pragma once

#include <cstdint>

namespace moela::cpu {

constexpr int64_t kIndexerKeys = 96;   // of a tile: whole register tiles of every instruction set
constexpr int64_t kIndexerHeads = 16;  // heads are padded to a multiple

struct IndexerShape {
  int64_t H;
  int64_t D;
  int64_t stride_qh;  // bytes from head to head of a query

  int64_t padded_heads() const { return (H + kIndexerHeads - 1) / kIndexerHeads * kIndexerHeads; }
};

struct IndexerQuery {
  const uint8_t* q;      // codes [H, D]
  const float* weights;  // [H]
  int64_t begin;         // the keys that it sees
  int64_t end;
  float* logits;  // of key 0 on
  float* packed;  // the above as the kernel multiplies it: indexer_packed_floats
};

// Keys [first, first + count) as they lie in memory.
struct IndexerTile {
  int64_t first;
  int64_t count;                       // at most kIndexerKeys
  const uint8_t* codes[kIndexerKeys];  // [D] each
  const uint8_t* sf[kIndexerKeys];     // a float32 at any address
};

// A column for each head, or half as many words of two and some more; and the weights.
inline int64_t indexer_packed_floats(const IndexerShape& s) { return s.padded_heads() * (s.D + 17); }

// What score() uses while it runs: decoded keys, 16 sums of each, scale factors, logits, products.
inline int64_t indexer_scratch_floats(const IndexerShape& s) {
  return kIndexerKeys * (s.D + 128 + 16 + 2) + 32 * s.padded_heads();
}

struct IndexerLogitsKernels {
  void (*pack)(const IndexerShape&, const IndexerQuery&);
  // Writes the logits of those keys of the tile that a query sees.
  void (*score)(const IndexerShape&, const IndexerTile&, const IndexerQuery* queries, int64_t num_queries,
                float* scratch);
};

}  // namespace moela::cpu
