// Rows that came to a rank, into the layout of a dispatch. No op of its own: a part of ep_dispatch.
// Definition: python/moela/ep/layout.py.
#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "common/ep_rows.h"

namespace moela {
namespace {

constexpr const char* kOp = "place";

enum Layout : int64_t { kCompact, kExpert, kMasked };  // LAYOUTS of layout.py

// Ids and weights of wire rows.
struct Routing {
  const int32_t* ids(int64_t row) const {
    return reinterpret_cast<const int32_t*>(bytes + row * stride + ids_at);
  }
  const float* weights(int64_t row) const {
    return reinterpret_cast<const float*>(bytes + row * stride + weights_at);
  }
  // The number of an expert on this rank, or -1.
  int64_t local(int32_t id) const {
    return id >= first_expert && id < first_expert + E ? id - first_expert : -1;
  }
  const char* bytes;
  int64_t stride, ids_at, weights_at;
  int64_t topk, first_expert, E;
};

Tensor filled(const std::vector<int64_t>& shape, int32_t value) {
  Tensor t = empty_cpu(shape, ScalarType::Int);
  std::fill_n(static_cast<int32_t*>(t.mutable_data_ptr()), t.numel(), value);
  return t;
}

// Of each expert the number of its rows, one more entry, 0.
std::vector<int64_t> count(const ReceivedRows& received, const Routing& routing) {
  std::vector<int64_t> rows(routing.E + 1);
  received.for_each([&](int64_t, int64_t row) {
    for (int64_t k = 0; k < routing.topk; ++k)
      if (const int64_t e = routing.local(routing.ids(row)[k]); e >= 0) ++rows[e];
  });
  return rows;
}

// What a Placement of layout.py has beside its columns, and where these come from.
struct Small {
  std::vector<int32_t> source;  // of each place, all dimensions of rows as one: the row of wire, -1: none
  std::vector<int32_t> own;     // of each place: the row of this rank's tokens, -1: another's, or none
  Tensor ids, weights, experts, positions;
  int64_t needed, room;
  bool fits;
};

// own_rows: of the rows from source `rank`, or nullptr.
Small place_routing(const ReceivedRows& received, const Routing& routing, int64_t layout, int64_t capacity,
                    int64_t most, const int32_t* own_rows, int64_t rank) {
  const bool is_compact = layout == kCompact;
  const int64_t E = routing.E, topk = routing.topk;
  std::vector<int64_t> next = is_compact ? std::vector<int64_t>(E + 1) : count(received, routing);
  int64_t sum = 0, largest = 0;
  for (int64_t e = 0; e < E; ++e) sum += next[e], largest = std::max(largest, next[e]);
  const int64_t needed = is_compact ? received.num_rows : layout == kExpert ? sum : largest;
  const int64_t room = capacity < 0 ? needed : capacity;
  const bool fits = needed <= room;
  const int64_t num_places = !fits ? 0 : layout == kMasked ? E * room : room;

  // From counts to the place of each expert's next row.
  Tensor experts = empty_cpu({is_compact ? 0 : layout == kExpert ? E + 1 : E}, ScalarType::Int);
  auto* of_expert = static_cast<int32_t*>(experts.mutable_data_ptr());
  int64_t begin = 0;
  for (int64_t e = 0; e < E && !is_compact; ++e) {
    const int64_t count = next[e];
    of_expert[e] = static_cast<int32_t>(layout == kExpert ? begin : count);
    next[e] = layout == kExpert ? begin : e * room;
    begin += count;
  }
  if (layout == kExpert) of_expert[E] = static_cast<int32_t>(begin);

  const std::vector<int64_t> weights_shape = is_compact          ? std::vector{num_places, topk}
                                             : layout == kMasked ? std::vector{E, fits ? room : 0}
                                                                 : std::vector{num_places};
  Small s = {
      .source = std::vector<int32_t>(num_places, -1),
      .own = std::vector<int32_t>(num_places, -1),
      .ids = filled({is_compact ? num_places : 0, topk}, -1),
      .weights = empty_cpu(weights_shape, ScalarType::Float),
      .experts = experts,
      .positions = filled({most, is_compact ? 1 : topk}, -1),
      .needed = needed,
      .room = room,
      .fits = fits,
  };
  auto* out_weights = static_cast<float*>(s.weights.mutable_data_ptr());
  std::fill_n(out_weights, s.weights.numel(), 0.f);
  if (!fits) return s;

  auto* out_ids = static_cast<int32_t*>(s.ids.mutable_data_ptr());
  auto* places = static_cast<int32_t*>(s.positions.mutable_data_ptr());
  const int64_t first_own = received.starts[rank], end_own = first_own + received.counts[rank];
  const auto own = [&](int64_t row) {
    return own_rows != nullptr && row >= first_own && row < end_own ? own_rows[row - first_own] : -1;
  };
  received.for_each([&](int64_t n, int64_t row) {
    // Rows are kilobytes apart, and none is in a cache: to ask for one when it is needed takes 250 ns.
    constexpr int64_t kAhead = 8;
    __builtin_prefetch(routing.ids(row + kAhead));
    __builtin_prefetch(routing.weights(row + kAhead));
    if (is_compact) {
      s.source[n] = static_cast<int32_t>(row);
      s.own[n] = own(row);
      places[n] = static_cast<int32_t>(n);
    }
    for (int64_t k = 0; k < topk; ++k) {
      const int64_t e = routing.local(routing.ids(row)[k]);
      if (e < 0) continue;
      const int64_t place = is_compact ? n * topk + k : next[e]++;
      out_weights[place] = routing.weights(row)[k];
      if (is_compact) {
        out_ids[place] = static_cast<int32_t>(e);
      } else {
        s.source[place] = static_cast<int32_t>(row);
        s.own[place] = own(row);
        places[n * topk + k] = static_cast<int32_t>(place);
      }
    }
  });
  return s;
}

// Rows that this rank has sent to itself are taken from where they were: one copy less.
void copy_column(const Rows& wire, const Rows& own, const Small& s, char* out) {
  const auto num_places = static_cast<int64_t>(s.source.size());
  const bool is_streamed = num_places * wire.row_bytes >= kStreamBytes;
  const auto params = [&](const Rows& from, const std::vector<int32_t>& rows) {
    return cpu::GatherRowsParams{from.data, from.row_bytes, from.stride, rows.data(),
                                 out,       from.row_bytes, is_streamed};
  };
  const auto from_wire = params(wire, s.source), from_own = params(own, s.own);
  parallel(num_places, 0.1 * static_cast<double>(wire.row_bytes), [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const bool is_own = s.own[begin] >= 0;
      int64_t stop = begin + 1;
      while (stop < end && (s.own[stop] >= 0) == is_own) ++stop;
      cpu::kernels().gather_rows(is_own ? from_own : from_wire, begin, stop);
      begin = stop;
    }
  });
}

Tensor copy_of(const int32_t* values, int64_t n) {
  Tensor t = empty_cpu({n}, ScalarType::Int);
  std::copy_n(values, n, static_cast<int32_t*>(t.mutable_data_ptr()));
  return t;
}

using Placed = std::tuple<std::vector<Tensor>, Tensor, Tensor, Tensor, Tensor, Tensor, int64_t>;

// offsets, widths: of the columns in a wire row, in bytes, then those of ids and weights. like: the columns.
// into: where they go; empty: new tensors. own_rows: the rows of like that came from this rank, `rank`; if
// not given, they are in wire.
Placed place(const Tensor& wire, const Tensor& starts, const Tensor& counts,
             const std::vector<int64_t>& offsets, const std::vector<int64_t>& widths,
             const std::vector<Tensor>& like, const std::vector<Tensor>& into,
             const std::optional<Tensor>& own_rows, int64_t rank, int64_t topk, int64_t first_expert,
             int64_t E, int64_t layout, int64_t capacity, int64_t most) {
  check_bytes(kOp, "wire", wire);
  const ReceivedRows received(kOp, wire, starts, counts);
  const size_t num_columns = like.size();
  if (offsets.size() != num_columns + 2 || widths.size() != num_columns + 2)
    fail(kOp, "offsets", num_columns + 2, offsets.size());
  for (size_t i = 0; i < offsets.size(); ++i)
    if (offsets[i] < 0 || offsets[i] + widths[i] > wire.size(1))
      fail(kOp, "wire", "room for the columns", wire.size(1));
  if (widths[num_columns] != 4 * topk || widths[num_columns + 1] != 4 * topk)
    fail(kOp, "widths", 4 * topk, widths[num_columns]);
  if (received.num_rows > most) fail(kOp, "counts", "at most " + std::to_string(most), received.num_rows);
  if (rank < 0 || rank >= received.num_sources) fail(kOp, "rank", "a rank", rank);
  const int32_t* own = own_rows ? check_ints(kOp, "own_rows", *own_rows, received.counts[rank]) : nullptr;
  const auto* bytes = static_cast<const char*>(wire.const_data_ptr());
  const Routing routing = {
      bytes, wire.stride(0), offsets[num_columns], offsets[num_columns + 1], topk, first_expert, E};

  Small s = place_routing(received, routing, layout, capacity, most, own, rank);
  const auto num_places = static_cast<int64_t>(s.source.size());
  std::vector<Tensor> columns;
  for (size_t i = 0; i < num_columns && s.fits; ++i) {
    const int64_t width = like[i].size(1);
    if (into.empty())
      columns.push_back(empty_cpu(
          layout == kMasked ? std::vector{E, s.room, width} : std::vector{num_places, width}, like[i]));
    Tensor out = into.empty() ? columns[i] : into[i];
    if (out.numel() != num_places * width) fail(kOp, "into", num_places * width, out.numel());
    if (own != nullptr) check_below(kOp, own, received.counts[rank], like[i]);
    const int64_t element_bytes = width == 0 ? 0 : widths[i] / width;
    copy_column({bytes + offsets[i], widths[i], wire.stride(0)},
                {like[i].const_data_ptr(), widths[i], like[i].stride(0) * element_bytes}, s,
                static_cast<char*>(out.mutable_data_ptr()));
  }
  return {columns,     s.ids,   s.weights, s.experts, copy_of(received.counts, received.num_sources),
          s.positions, s.needed};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela_ep, CPU, m) { m.impl("place", TORCH_BOX(&place)); }

}  // namespace moela
