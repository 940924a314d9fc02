// Torch side of the CPU indexer_logits: check, launch.
#include "common/indexer_logits.h"

namespace moela {
namespace {

constexpr const char* kOp = "indexer_logits";

struct Ranges {
  Ranges(const Tensor& q, const Tensor& k, const Tensor& start, const Tensor& end)
      : ks(kOp, "ks", start, {q.size(0)}, "q"), ke(kOp, "ke", end, {q.size(0)}, "q") {
    check_ranges(kOp, ks, ke, k.size(0));
  }
  RowValues ks, ke;
};

void check(const Tensor& q, const Tensor& k, const Tensor& sf_k, const Tensor& weights) {
  check_indexer_queries(kOp, q, weights, 3);
  check_dim(kOp, "k", k, 2);
  check_dtype(kOp, "k", k.scalar_type(), {ScalarType::Float8_e4m3fn});
  check_same(kOp, "k", "D", k.size(1), q.size(2), "q");
  check_last_dim_contiguous(kOp, "k", k);
  check_cpu(kOp, "k", k, "q");
  check_dtype(kOp, "sf_k", sf_k.scalar_type(), {ScalarType::Float});
  check_shape(kOp, "sf_k", sf_k, {k.size(0)});
  check_cpu(kOp, "sf_k", sf_k, "q");
}

void launch(const Tensor& q, const Tensor& k, const Tensor& sf_k, const Tensor& weights, const Ranges& ranges,
            Tensor& logits) {
  const int64_t T = q.size(0), S = k.size(0);
  const cpu::IndexerShape shape = {.H = q.size(1), .D = q.size(2), .stride_qh = q.stride(1)};
  std::vector<cpu::IndexerQuery> queries(T);
  for (int64_t t = 0; t < T; ++t)
    queries[t] = {
        .q = static_cast<const uint8_t*>(q.const_data_ptr()) + t * q.stride(0),
        .weights = static_cast<const float*>(weights.const_data_ptr()) + t * weights.stride(0),
        .begin = ranges.ks.data()[t],
        .end = ranges.ke.data()[t],
        .logits = static_cast<float*>(logits.mutable_data_ptr()) + t * logits.stride(0),
        .packed = nullptr,
    };
  clear_unseen(queries, S);
  const auto* codes = static_cast<const uint8_t*>(k.const_data_ptr());
  const auto* sf = static_cast<const uint8_t*>(sf_k.const_data_ptr());
  const int64_t ld = k.stride(0), sf_bytes = sf_k.stride(0) * static_cast<int64_t>(sizeof(float));
  score_requests(shape, {{.request = 0, .queries = queries.data(), .num_queries = T}},
                 [&](int64_t, cpu::IndexerTile& tile) {
                   for (int64_t i = 0; i < tile.count; ++i) {
                     tile.codes[i] = codes + (tile.first + i) * ld;
                     tile.sf[i] = sf + (tile.first + i) * sf_bytes;
                   }
                 });
}

Tensor indexer_logits(const Tensor& q, const Tensor& k, const Tensor& sf_k, const Tensor& weights,
                      const Tensor& ks, const Tensor& ke) {
  check(q, k, sf_k, weights);
  const Ranges ranges(q, k, ks, ke);
  Tensor logits = empty_cpu({q.size(0), k.size(0)}, ScalarType::Float);
  launch(q, k, sf_k, weights, ranges, logits);
  return logits;
}

void indexer_logits_out(const Tensor& q, const Tensor& k, const Tensor& sf_k, const Tensor& weights,
                        const Tensor& ks, const Tensor& ke, Tensor logits) {
  check(q, k, sf_k, weights);
  const Ranges ranges(q, k, ks, ke);
  check_dtype("indexer_logits_out", "logits", logits.scalar_type(), {ScalarType::Float});
  check_rows_out("indexer_logits_out", "logits", logits, {q.size(0), k.size(0)});
  launch(q, k, sf_k, weights, ranges, logits);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela, CPU, m) {
  m.impl("indexer_logits", TORCH_BOX(&indexer_logits));
  m.impl("indexer_logits_out", TORCH_BOX(&indexer_logits_out));
}

}  // namespace moela
