// Torch side of the CPU indexer_topk: check, launch.
#include <algorithm>
#include <optional>
#include <string>

#include "common/indexer.h"
#include "cpu/isa.h"

namespace moela {
namespace {

constexpr const char* kOp = "indexer_topk";

// The optional arguments, as the op takes them.
struct Options {
  std::optional<Tensor> ks, ke, block_table;
  std::optional<int64_t> page_size;
  std::optional<Tensor> request_ids;
};

std::vector<int64_t> rows_shape(const Tensor& logits) {
  std::vector<int64_t> shape = sizes_of(logits);
  shape.pop_back();
  return shape;
}

// Values of rows in order, checked.
struct Rows {
  RowValues ks, ke, requests;
};

void check_capacity(const Rows& rows, const Tensor& block_table, int64_t page_size, int64_t S) {
  const int32_t *ks = rows.ks.data(), *ke = rows.ke.data();
  int64_t longest = ks == nullptr && ke == nullptr ? S : 0;
  for (int64_t row = 0; row < std::max(rows.ks.count(), rows.ke.count()); ++row)
    longest = std::max<int64_t>(longest, (ke != nullptr ? ke[row] : S) - (ks != nullptr ? ks[row] : 0));
  // Divided, as the product of a huge page_size would not fit.
  const int64_t pages = block_table.size(1);
  if (longest > 0 && (longest - 1) / page_size >= pages)
    fail(kOp, "block_table", "pages for " + std::to_string(longest) + " tokens a request",
         "pages for " + std::to_string(pages * page_size));
}

Rows check(const Tensor& logits, int64_t topk, const Options& o) {
  check_min_dim(kOp, "logits", logits, 2);
  check_dtype(kOp, "logits", logits.scalar_type(), {ScalarType::Float});
  check_last_dim_contiguous(kOp, "logits", logits);
  if (topk <= 0) fail(kOp, "topk", "a positive number", topk);
  const std::vector<int64_t> shape = rows_shape(logits);
  const int64_t S = logits.size(logits.dim() - 1);
  Rows rows = {
      .ks = {kOp, "ks", o.ks, shape, "logits"}, .ke = {kOp, "ke", o.ke, shape, "logits"}, .requests = {}};
  check_ranges(kOp, rows.ks, rows.ke, S);
  if (!o.block_table) {
    const char* without = "None because block_table is None";
    if (o.page_size) fail(kOp, "page_size", without, *o.page_size);
    if (o.request_ids) fail(kOp, "request_ids", without, "a tensor");
    return rows;
  }
  check_block_table(kOp, *o.block_table, "logits");
  const std::string wanted = "a positive number because there is a block_table";
  if (!o.page_size) fail(kOp, "page_size", wanted, "None");
  if (*o.page_size <= 0) fail(kOp, "page_size", wanted, *o.page_size);
  const int64_t B = o.block_table->size(0);
  if (!o.request_ids) check_same(kOp, "block_table", "B", B, logits.size(0), "logits");
  rows.requests = {kOp, "request_ids", o.request_ids, shape, "logits"};
  for (int64_t row = 0; row < rows.requests.count(); ++row)
    if (rows.requests.data()[row] < -1 || rows.requests.data()[row] >= B)
      fail(kOp, "request_ids", "requests within [-1, " + std::to_string(B - 1) + "]",
           at_row(rows.requests.data()[row], row));
  check_capacity(rows, *o.block_table, *o.page_size, S);
  return rows;
}

void launch(const Tensor& logits, int64_t topk, const Rows& rows, const Options& o, Tensor& indices) {
  const FlatRows flat(logits, 1);
  const int64_t S = logits.size(logits.dim() - 1);
  const cpu::IndexerTopkParams p = {
      .logits = static_cast<const float*>(flat.tensor.const_data_ptr()),
      .ld = flat.stride,
      .S = S,
      .topk = topk,
      .ks = rows.ks.data(),
      .ke = rows.ke.data(),
      .block_table = o.block_table ? int32s(*o.block_table) : nullptr,
      .stride_tb = o.block_table ? o.block_table->stride(0) : 0,
      .page_size = o.page_size.value_or(1),
      .request_ids = rows.requests.data(),
      .rows_of_request = logits.size(0) > 0 ? flat.count / logits.size(0) : 1,
      .indices = static_cast<int32_t*>(indices.mutable_data_ptr()),
  };
  parallel(flat.count, 0.3 * static_cast<double>(S) + 5. * static_cast<double>(topk),
           [&](int64_t begin, int64_t end) {
             const Scratch<uint32_t> scratch(cpu::indexer_topk_scratch(S));
             cpu::kernels().indexer_topk(p, begin, end, scratch.get());
           });
}

std::vector<int64_t> out_shape(const Tensor& logits, int64_t topk) {
  std::vector<int64_t> shape = rows_shape(logits);
  shape.push_back(topk);
  return shape;
}

Tensor indexer_topk(const Tensor& logits, int64_t topk, std::optional<Tensor> ks, std::optional<Tensor> ke,
                    std::optional<Tensor> block_table, std::optional<int64_t> page_size,
                    std::optional<Tensor> request_ids) {
  const Options options = {ks, ke, block_table, page_size, request_ids};
  const Rows rows = check(logits, topk, options);
  Tensor indices = empty_cpu(out_shape(logits, topk), ScalarType::Int);
  launch(logits, topk, rows, options, indices);
  return indices;
}

void indexer_topk_out(const Tensor& logits, int64_t topk, std::optional<Tensor> ks, std::optional<Tensor> ke,
                      std::optional<Tensor> block_table, std::optional<int64_t> page_size,
                      std::optional<Tensor> request_ids, Tensor indices) {
  const Options options = {ks, ke, block_table, page_size, request_ids};
  const Rows rows = check(logits, topk, options);
  check_out("indexer_topk_out", "indices", indices, ScalarType::Int, out_shape(logits, topk));
  launch(logits, topk, rows, options, indices);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela, CPU, m) {
  m.impl("indexer_topk", TORCH_BOX(&indexer_topk));
  m.impl("indexer_topk_out", TORCH_BOX(&indexer_topk_out));
}

}  // namespace moela
