// Torch side of the CPU indexer_logits_paged: check, launch.
#include "cpu/indexer_logits_paged.h"

#include "common/indexer_logits.h"

namespace moela {
namespace {

constexpr const char* kOp = "indexer_logits_paged";

void check(const Tensor& q, const Tensor& cache, const Tensor& weights, const Tensor& block_table,
           const Tensor& seqlens, int64_t max_seqlen) {
  check_indexer_queries(kOp, q, weights, 4);
  check_indexer_cache(kOp, cache, q.size(3), "q");
  if (max_seqlen < 0) fail(kOp, "max_seqlen", "a number of at least 0", max_seqlen);
  check_block_table(kOp, block_table, "q");
  check_same(kOp, "block_table", "B", block_table.size(0), q.size(0), "q");
  check_seqlens(kOp, seqlens, q.size(0), cache, block_table, max_seqlen);
}

void launch(const Tensor& q, const Tensor& cache, const Tensor& weights, const Tensor& block_table,
            const Tensor& seqlens, int64_t max_seqlen, Tensor& logits) {
  const int64_t B = q.size(0), s_q = q.size(1);
  const cpu::IndexerShape shape = {.H = q.size(2), .D = q.size(3), .stride_qh = q.stride(2)};
  std::vector<cpu::IndexerQuery> queries(B * s_q);
  std::vector<IndexerRequest> requests(B);
  for (int64_t b = 0; b < B; ++b) {
    requests[b] = {.request = b, .queries = queries.data() + b * s_q, .num_queries = s_q};
    for (int64_t j = 0; j < s_q; ++j)
      queries[b * s_q + j] = {
          .q = static_cast<const uint8_t*>(q.const_data_ptr()) + b * q.stride(0) + j * q.stride(1),
          .weights = static_cast<const float*>(weights.const_data_ptr()) + b * weights.stride(0) +
                     j * weights.stride(1),
          .begin = 0,
          .end = int32s(seqlens)[b] - (s_q - 1 - j),
          .logits = static_cast<float*>(logits.mutable_data_ptr()) + (b * s_q + j) * max_seqlen,
          .packed = nullptr,
      };
  }
  clear_unseen(queries, max_seqlen);
  const cpu::IndexerPages pages = {
      .cache = indexer_cache_of(cache, cache.const_data_ptr()),
      .block_table = int32s(block_table),
      .stride_tb = block_table.stride(0),
  };
  score_requests(shape, requests,
                 [&](int64_t request, cpu::IndexerTile& tile) { pages.find(request, tile); });
}

Tensor indexer_logits_paged(const Tensor& q, const Tensor& cache, const Tensor& weights,
                            const Tensor& block_table, const Tensor& seqlens, int64_t max_seqlen) {
  check(q, cache, weights, block_table, seqlens, max_seqlen);
  Tensor logits = empty_cpu({q.size(0), q.size(1), max_seqlen}, ScalarType::Float);
  launch(q, cache, weights, block_table, seqlens, max_seqlen, logits);
  return logits;
}

void indexer_logits_paged_out(const Tensor& q, const Tensor& cache, const Tensor& weights,
                              const Tensor& block_table, const Tensor& seqlens, int64_t max_seqlen,
                              Tensor logits) {
  check(q, cache, weights, block_table, seqlens, max_seqlen);
  check_out("indexer_logits_paged_out", "logits", logits, ScalarType::Float,
            {q.size(0), q.size(1), max_seqlen});
  launch(q, cache, weights, block_table, seqlens, max_seqlen, logits);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela, CPU, m) {
  m.impl("indexer_logits_paged", TORCH_BOX(&indexer_logits_paged));
  m.impl("indexer_logits_paged_out", TORCH_BOX(&indexer_logits_paged_out));
}

}  // namespace moela
