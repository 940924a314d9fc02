// The rows of expert parallelism on the CPU: what ep_dispatch and ep_combine are made of, no ops of their
// own. Definitions: python/moela/ep/rows.py.
#include <algorithm>
#include <vector>

#include "common/ep_rows.h"

namespace moela {
namespace {

void gather_rows(const Tensor& source, const Tensor& rows, Tensor out) {
  const char* op = "gather_rows";
  check_bytes(op, "source", source);
  check_bytes(op, "out", out);
  const int64_t num_rows = out.size(0);
  const int32_t* from = check_ints(op, "rows", rows, num_rows);
  check_same(op, "out", "width", out.size(1), source.size(1), "source");
  check_below(op, from, num_rows, source);
  gather({source.const_data_ptr(), source.size(1), source.stride(0)}, from, num_rows, out.mutable_data_ptr(),
         out.stride(0), num_rows);
}

// The sum of counts, and one more than the largest of the first so many rows of positions.
std::tuple<int64_t, int64_t> num_places(const Tensor& counts, const Tensor& positions) {
  const char* op = "num_places";
  check_dim(op, "positions", positions, 2);
  check_dtype(op, "positions", positions.scalar_type(), {ScalarType::Int});
  if (!positions.is_contiguous()) fail(op, "positions", "a contiguous tensor", "a strided one");
  const int32_t* n = check_ints(op, "counts", counts, counts.size(0));
  int64_t num_rows = 0;
  for (int64_t s = 0; s < counts.size(0); ++s) num_rows += n[s];
  if (num_rows < 0 || num_rows > positions.size(0))
    fail(op, "counts", "at most " + std::to_string(positions.size(0)) + " in all", num_rows);
  const auto* places = static_cast<const int32_t*>(positions.const_data_ptr());
  int32_t largest = -1;
  for (int64_t i = 0; i < num_rows * positions.size(1); ++i) largest = std::max(largest, places[i]);
  return {num_rows, int64_t{largest} + 1};
}

// slots [T, topk], the rows that were sent, in order -> where in wire they came back to, each once.
Tensor returned_rows(const Tensor& slots, const Tensor& wire, const Tensor& starts, const Tensor& counts) {
  const char* op = "returned_rows";
  check_dim(op, "slots", slots, 2);
  check_dtype(op, "slots", slots.scalar_type(), {ScalarType::Int});
  check_last_dim_contiguous(op, "slots", slots);
  const ReceivedRows received(op, wire, starts, counts);
  std::vector<int32_t> row_of_slot(received.num_rows);
  received.for_each([&](int64_t n, int64_t row) { row_of_slot[n] = static_cast<int32_t>(row); });
  const int64_t T = slots.size(0), topk = slots.size(1);
  Tensor out = empty_cpu({T, topk}, ScalarType::Int);
  for (int64_t t = 0; t < T; ++t) {
    const auto* mine = static_cast<const int32_t*>(slots.const_data_ptr()) + t * slots.stride(0);
    auto* rows = static_cast<int32_t*>(out.mutable_data_ptr()) + t * topk;
    std::copy_n(mine, topk, rows);
    std::sort(rows, rows + topk);
    if (topk > 0 && rows[topk - 1] >= received.num_rows)
      fail(op, "slots", "less than " + std::to_string(received.num_rows), rows[topk - 1]);
    for (int64_t k = topk - 1; k >= 0; --k) {
      const bool is_again = k > 0 && rows[k] == rows[k - 1];
      rows[k] = is_again || rows[k] < 0 ? -1 : row_of_slot[rows[k]];
    }
  }
  return out;
}

// --- pack: rows of columns, to where their receivers read them --------------------------------------------

// The words of rows.py: these, then a count for each group, a start for each group, and the columns.
struct PackWords {
  int64_t wire;  // an address
  int64_t wire_rows, row_bytes;
  int64_t rows;  // an address
  int64_t num_rows, num_columns, num_groups;
  int64_t own_group, own_column;  // this group needs no column before that one
};
struct PackColumn {
  int64_t data;  // an address
  int64_t num_rows, width, stride, offset;
};

// -> what was expected, or nullptr.
const char* pack(const int64_t* words) {
  const auto& p = *reinterpret_cast<const PackWords*>(words);
  const int64_t* counts = words + sizeof(PackWords) / sizeof(int64_t);
  const int64_t* starts = counts + p.num_groups;
  const auto* columns = reinterpret_cast<const PackColumn*>(starts + p.num_groups);
  const auto* rows = reinterpret_cast<const int32_t*>(p.rows);
  int64_t total = 0;
  for (int64_t g = 0; g < p.num_groups; ++g) {
    if (counts[g] < 0 || starts[g] < 0 || starts[g] + counts[g] > p.wire_rows)
      return "counts to be rows of wire";
    total += counts[g];
  }
  if (total > p.num_rows) return "a row for each that is counted";
  const int32_t largest = total == 0 ? -1 : *std::max_element(rows, rows + total);
  for (int64_t c = 0; c < p.num_columns; ++c) {
    const PackColumn& column = columns[c];
    if (largest >= column.num_rows) return "rows that the columns have";
    if (column.offset + column.width > p.row_bytes) return "wire to have room for the columns";
    int64_t row = 0;
    for (int64_t g = 0; g < p.num_groups; row += counts[g++]) {
      if (g == p.own_group && c < p.own_column) continue;
      gather({reinterpret_cast<const void*>(column.data), column.width, column.stride}, rows + row, counts[g],
             reinterpret_cast<char*>(p.wire) + starts[g] * p.row_bytes + column.offset, p.row_bytes, total);
    }
  }
  return nullptr;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela_ep, CPU, m) {
  m.impl("gather_rows", TORCH_BOX(&gather_rows));
  m.impl("num_places", TORCH_BOX(&num_places));
  m.impl("returned_rows", TORCH_BOX(&returned_rows));
}

}  // namespace moela

extern "C" __attribute__((visibility("default"))) const char* moela_ep_pack(const int64_t* words) {
  return moela::pack(words);
}
