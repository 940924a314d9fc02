// What both kinds of the indexer's logits share: checks of queries, and the walk over queries and keys.
#pragma once

#include <algorithm>
#include <cmath>

#include "common/indexer.h"
#include "cpu/indexer_logits.h"
#include "cpu/isa.h"

namespace moela {

inline void check_indexer_queries(const char* op, const Tensor& q, const Tensor& weights, int64_t dim) {
  check_dim(op, "q", q, dim);
  check_dtype(op, "q", q.scalar_type(), {ScalarType::Float8_e4m3fn});
  check_last_dim_contiguous(op, "q", q);
  check_dtype(op, "weights", weights.scalar_type(), {ScalarType::Float});
  std::vector<int64_t> shape = sizes_of(q);
  shape.pop_back();
  check_shape(op, "weights", weights, shape);
  check_last_dim_contiguous(op, "weights", weights);
  check_cpu(op, "weights", weights, "q");
}

// Queries that see keys of one request: `num_queries` from `queries` on.
struct IndexerRequest {
  int64_t request;
  cpu::IndexerQuery* queries;
  int64_t num_queries;
};

// Writes -Inf where a query does not see a key.
inline void clear_unseen(const std::vector<cpu::IndexerQuery>& queries, int64_t num_keys) {
  parallel(static_cast<int64_t>(queries.size()), 0.1 * static_cast<double>(num_keys),
           [&](int64_t first, int64_t last) {
             for (int64_t i = first; i < last; ++i) {
               const cpu::IndexerQuery& q = queries[i];
               const int64_t begin = std::min(q.begin, num_keys), end = std::max(q.end, begin);
               std::fill(q.logits, q.logits + begin, -INFINITY);
               std::fill(q.logits + end, q.logits + num_keys, -INFINITY);
             }
           });
}

// `find(request, tile)` sets the addresses of the keys of a tile. Queries are taken in waves, whose packed
// rows stay in the caches, and a task is a tile of keys for some of them: its keys are decoded once.
template <class Find>
void score_requests(const cpu::IndexerShape& shape, const std::vector<IndexerRequest>& requests,
                    const Find& find) {
  constexpr int64_t kWaveFloats = int64_t{2} << 20;
  constexpr int64_t kQueriesOfTask = 16;
  struct Task {
    int64_t request;
    const cpu::IndexerQuery* queries;
    int64_t num_queries, first_key, num_keys;
  };
  const int64_t packed_floats = cpu::indexer_packed_floats(shape);
  const int64_t most = std::max<int64_t>(kWaveFloats / std::max<int64_t>(packed_floats, 1), 1);
  const auto& kernels = cpu::kernels().indexer_logits;
  const double cost_of_key = 0.02 * static_cast<double>(shape.padded_heads() * shape.D) + 10;
  Scratch<float> packed(0);
  int64_t capacity = 0;
  std::vector<cpu::IndexerQuery*> wave;
  std::vector<Task> tasks;
  const auto run = [&] {
    const auto count = static_cast<int64_t>(wave.size());
    if (capacity < count) {
      packed = Scratch<float>(count * packed_floats);
      capacity = count;
    }
    for (int64_t i = 0; i < count; ++i) wave[i]->packed = packed.get() + i * packed_floats;
    parallel(count, static_cast<double>(packed_floats), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) kernels.pack(shape, *wave[i]);
    });
    parallel(static_cast<int64_t>(tasks.size()), cost_of_key * cpu::kIndexerKeys,
             [&](int64_t begin, int64_t end) {
               const Scratch<float> scratch(cpu::indexer_scratch_floats(shape));
               for (int64_t i = begin; i < end; ++i) {
                 const Task& task = tasks[i];
                 cpu::IndexerTile tile;
                 tile.first = task.first_key;
                 tile.count = task.num_keys;
                 find(task.request, tile);
                 kernels.score(shape, tile, task.queries, task.num_queries, scratch.get());
               }
             });
    wave.clear();
    tasks.clear();
  };
  for (const IndexerRequest& r : requests)
    for (int64_t q = 0; q < r.num_queries; q += kQueriesOfTask) {
      const int64_t count = std::min(kQueriesOfTask, r.num_queries - q);
      if (static_cast<int64_t>(wave.size()) + count > most) run();
      int64_t begin = INT64_MAX, end = 0;
      for (int64_t i = q; i < q + count; ++i) {
        const cpu::IndexerQuery& query = r.queries[i];
        wave.push_back(&r.queries[i]);
        if (query.begin >= query.end) continue;
        begin = std::min(begin, query.begin);
        end = std::max(end, query.end);
      }
      for (int64_t key = begin; key < end; key += cpu::kIndexerKeys)
        tasks.push_back({r.request, r.queries + q, count, key, std::min(cpu::kIndexerKeys, end - key)});
    }
  run();
}

}  // namespace moela
