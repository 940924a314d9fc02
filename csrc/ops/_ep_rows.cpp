// The rows of expert parallelism on the CPU: what ep_dispatch and ep_combine are made of, no ops of their
// own. Definitions: python/moela/ep/rows.py, python/moela/ep/layout.py.
#include <algorithm>
#include <tuple>
#include <vector>

#include "common/tensor.h"
#include "cpu/isa.h"

namespace moela {
namespace {

enum Layout : int64_t { kCompact, kExpert, kMasked };  // LAYOUTS of layout.py

void check_bytes(const char* op, const char* arg, const Tensor& t) {
  check_dim(op, arg, t, 2);
  check_dtype(op, arg, t.scalar_type(), {ScalarType::Byte});
  check_last_dim_contiguous(op, arg, t);
}

const int32_t* check_ints(const char* op, const char* arg, const Tensor& t, int64_t size) {
  check_dtype(op, arg, t.scalar_type(), {ScalarType::Int});
  check_shape(op, arg, t, {size});
  check_last_dim_contiguous(op, arg, t);
  return static_cast<const int32_t*>(t.const_data_ptr());
}

void check_below(const char* op, const int32_t* rows, int64_t num_rows, const Tensor& source) {
  const int64_t num_sources = source.size(0);
  const int32_t* largest = std::max_element(rows, rows + num_rows);
  if (num_rows > 0 && *largest >= num_sources)
    fail(op, "rows", "less than " + std::to_string(num_sources), *largest);
}

// From this size on a copy goes past the caches (docs/FACTS.md).
constexpr int64_t kStreamBytes = 8 << 20;

// num_rows rows of a copy that is of total_rows in all; rows below 0 give zeros.
void gather(const Tensor& source, const int32_t* rows, int64_t num_rows, char* out, int64_t ld_out,
            int64_t total_rows) {
  const cpu::GatherRowsParams p = {
      .source = source.const_data_ptr(),
      .row_bytes = source.size(1),
      .ld_source = source.stride(0),
      .rows = rows,
      .out = out,
      .ld_out = ld_out,
      .is_streamed = total_rows * source.size(1) >= kStreamBytes,
  };
  parallel(num_rows, 0.1 * static_cast<double>(p.row_bytes),
           [&](int64_t begin, int64_t end) { cpu::kernels().gather_rows(p, begin, end); });
}

void gather_rows(const Tensor& source, const Tensor& rows, Tensor out) {
  const char* op = "gather_rows";
  check_bytes(op, "source", source);
  check_bytes(op, "out", out);
  const int64_t num_rows = out.size(0);
  const int32_t* from = check_ints(op, "rows", rows, num_rows);
  check_same(op, "out", "width", out.size(1), source.size(1), "source");
  check_below(op, from, num_rows, source);
  gather(source, from, num_rows, static_cast<char*>(out.mutable_data_ptr()), out.stride(0), num_rows);
}

void pack(const std::vector<Tensor>& columns, const Tensor& rows, const std::vector<int64_t>& offsets,
          const std::vector<int64_t>& counts, const std::vector<int64_t>& starts, Tensor wire) {
  const char* op = "pack";
  check_bytes(op, "wire", wire);
  if (columns.size() != offsets.size()) fail(op, "offsets", columns.size(), offsets.size());
  if (counts.size() != starts.size()) fail(op, "starts", counts.size(), starts.size());
  int64_t total = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    if (counts[i] < 0 || starts[i] < 0 || starts[i] + counts[i] > wire.size(0))
      fail(op, "counts", "rows of wire", counts[i]);
    total += counts[i];
  }
  if (total > rows.size(0)) fail(op, "counts", "at most " + std::to_string(rows.size(0)), total);
  const int32_t* from = check_ints(op, "rows", rows, rows.size(0));
  auto* to = static_cast<char*>(wire.mutable_data_ptr());
  for (size_t c = 0; c < columns.size(); ++c) {
    check_bytes(op, "columns", columns[c]);
    check_below(op, from, total, columns[c]);
    if (offsets[c] + columns[c].size(1) > wire.size(1))
      fail(op, "wire", "room for the columns", wire.size(1));
    int64_t row = 0;
    for (size_t i = 0; i < counts.size(); ++i) {
      gather(columns[c], from + row, counts[i], to + starts[i] * wire.stride(0) + offsets[c], wire.stride(0),
             total);
      row += counts[i];
    }
  }
}

// The rows that came from each source: those of source s are rows starts[s] .. starts[s] + counts[s] of wire.
struct Received {
  Received(const char* op, const Tensor& wire, const Tensor& starts_, const Tensor& counts_)
      : num_sources(starts_.size(0)),
        starts(check_ints(op, "starts", starts_, num_sources)),
        counts(check_ints(op, "counts", counts_, num_sources)) {
    for (int64_t s = 0; s < num_sources; ++s) {
      if (starts[s] < 0 || counts[s] < 0 || int64_t{starts[s]} + counts[s] > wire.size(0))
        fail(op, "counts", "rows of wire", counts[s]);
      num_rows += counts[s];
    }
  }
  // f(n, row of wire), n counts from 0.
  template <class F>
  void for_each(const F& f) const {
    int64_t n = 0;
    for (int64_t s = 0; s < num_sources; ++s)
      for (int64_t i = 0; i < counts[s]; ++i) f(n++, starts[s] + i);
  }
  int64_t num_sources;
  const int32_t* starts;
  const int32_t* counts;
  int64_t num_rows = 0;
};

Tensor filled(const std::vector<int64_t>& shape, int32_t value) {
  Tensor t = empty_cpu(shape, ScalarType::Int);
  std::fill_n(static_cast<int32_t*>(t.mutable_data_ptr()), t.numel(), value);
  return t;
}

using Placed = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, int64_t>;

// -> source, ids, weights, experts, positions, needed. See Placement in layout.py.
Placed place(const Tensor& wire, const Tensor& starts, const Tensor& counts, int64_t ids_at,
             int64_t weights_at, int64_t topk, int64_t first_expert, int64_t E, int64_t layout,
             int64_t capacity, int64_t most) {
  const char* op = "place";
  check_bytes(op, "wire", wire);
  const Received received(op, wire, starts, counts);
  if (std::max(ids_at, weights_at) + 4 * topk > wire.size(1))
    fail(op, "wire", "room for ids and weights", wire.size(1));
  if (received.num_rows > most) fail(op, "counts", "at most " + std::to_string(most), received.num_rows);
  const auto* bytes = static_cast<const char*>(wire.const_data_ptr());
  const auto ids_of = [&](int64_t row) {
    return reinterpret_cast<const int32_t*>(bytes + row * wire.stride(0) + ids_at);
  };
  const auto weights_of = [&](int64_t row) {
    return reinterpret_cast<const float*>(bytes + row * wire.stride(0) + weights_at);
  };
  // The number of an expert on this rank, or -1.
  const auto local = [&](int32_t id) {
    return id >= first_expert && id < first_expert + E ? id - first_expert : -1;
  };

  std::vector<int64_t> next(E + 1);  // rows of each expert, then the place of its next one
  if (layout != kCompact)
    received.for_each([&](int64_t, int64_t row) {
      for (int64_t k = 0; k < topk; ++k)
        if (const int64_t e = local(ids_of(row)[k]); e >= 0) ++next[e];
    });
  int64_t sum = 0, largest = 0;
  for (int64_t e = 0; e < E; ++e) sum += next[e], largest = std::max(largest, next[e]);
  const int64_t needed = layout == kCompact ? received.num_rows : layout == kExpert ? sum : largest;
  const int64_t room = capacity < 0 ? needed : capacity;
  const bool fits = needed <= room;
  const int64_t num_places = !fits ? 0 : layout == kMasked ? E * room : room;

  Tensor experts = empty_cpu({layout == kCompact ? 0 : layout == kExpert ? E + 1 : E}, ScalarType::Int);
  auto* of_expert = static_cast<int32_t*>(experts.mutable_data_ptr());
  int64_t begin = 0;
  for (int64_t e = 0; e < E && layout != kCompact; ++e) {
    const int64_t count = next[e];
    of_expert[e] = static_cast<int32_t>(layout == kExpert ? begin : count);
    next[e] = layout == kExpert ? begin : e * room;
    begin += count;
  }
  if (layout == kExpert) of_expert[E] = static_cast<int32_t>(begin);

  const bool is_compact = layout == kCompact;
  Tensor source = filled({num_places}, -1);
  Tensor ids = filled({is_compact ? num_places : 0, topk}, -1);
  const std::vector<int64_t> weights_shape = is_compact          ? std::vector{num_places, topk}
                                             : layout == kMasked ? std::vector{E, fits ? room : 0}
                                                                 : std::vector{num_places};
  Tensor weights = empty_cpu(weights_shape, ScalarType::Float);
  auto* out_weights = static_cast<float*>(weights.mutable_data_ptr());
  std::fill_n(out_weights, weights.numel(), 0.f);
  Tensor positions = filled({most, is_compact ? 1 : topk}, -1);
  if (!fits) return {source, ids, weights, experts, positions, needed};

  auto* from = static_cast<int32_t*>(source.mutable_data_ptr());
  auto* out_ids = static_cast<int32_t*>(ids.mutable_data_ptr());
  auto* places = static_cast<int32_t*>(positions.mutable_data_ptr());
  received.for_each([&](int64_t n, int64_t row) {
    // Rows are kilobytes apart, and none is in a cache: to ask for one when it is needed takes 250 ns.
    constexpr int64_t kAhead = 8;
    __builtin_prefetch(ids_of(row + kAhead));
    __builtin_prefetch(weights_of(row + kAhead));
    if (is_compact) {
      from[n] = static_cast<int32_t>(row);
      places[n] = static_cast<int32_t>(n);
    }
    for (int64_t k = 0; k < topk; ++k) {
      const int64_t e = local(ids_of(row)[k]);
      if (e < 0) continue;
      const int64_t place = is_compact ? n * topk + k : next[e]++;
      out_weights[place] = weights_of(row)[k];
      if (is_compact) {
        out_ids[place] = static_cast<int32_t>(e);
      } else {
        from[place] = static_cast<int32_t>(row);
        places[n * topk + k] = static_cast<int32_t>(place);
      }
    }
  });
  return {source, ids, weights, experts, positions, needed};
}

// slots [T, topk], the rows that were sent, in order -> where in wire they came back to, each once.
Tensor returned_rows(const Tensor& slots, const Tensor& wire, const Tensor& starts, const Tensor& counts) {
  const char* op = "returned_rows";
  check_dim(op, "slots", slots, 2);
  check_dtype(op, "slots", slots.scalar_type(), {ScalarType::Int});
  check_last_dim_contiguous(op, "slots", slots);
  const Received received(op, wire, starts, counts);
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

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela_ep, CPU, m) {
  m.impl("gather_rows", TORCH_BOX(&gather_rows));
  m.impl("pack", TORCH_BOX(&pack));
  m.impl("place", TORCH_BOX(&place));
  m.impl("returned_rows", TORCH_BOX(&returned_rows));
}

}  // namespace moela
