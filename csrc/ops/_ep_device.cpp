// The kernels of an exchange on Hopper, for python/moela/ep/hopper.py: checks of what would write or read
// beyond the memory that is given, launches. What each does: tests/ep/device_definition.py.
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "common/cuda.h"
#include "common/tensor.h"
#include "cuda/ep_combine/ep_combine.h"
#include "cuda/ep_dispatch/ep_dispatch.h"

namespace moela {
namespace {

constexpr const char* kOp = "ep";
constexpr int64_t kMaxRowBytes = 112 * 1024;  // two fit into shared memory, with up to 110 ranks

void check_contiguous(const char* arg, const Tensor& t) {
  if (!t.is_contiguous()) fail(kOp, arg, "a contiguous tensor", "a strided one");
}

int32_t* ints(const char* arg, const Tensor& t, const std::vector<int64_t>& shape) {
  check_dtype(kOp, arg, t.scalar_type(), {ScalarType::Int});
  check_shape(kOp, arg, t, shape);
  check_contiguous(arg, t);
  return static_cast<int32_t*>(t.mutable_data_ptr());
}

uint64_t* words(const char* arg, const Tensor& t, int64_t count) {
  check_dtype(kOp, arg, t.scalar_type(), {ScalarType::Long});
  check_shape(kOp, arg, t, {count});
  check_contiguous(arg, t);
  return static_cast<uint64_t*>(t.mutable_data_ptr());
}

void check_at_most(const char* arg, int64_t got, int64_t most) {
  if (got < 0 || got > most) fail(kOp, arg, "at most " + std::to_string(most), got);
}

// DeviceExchange of python/moela/ep/device.py, argument by argument.
struct Given {
  const Tensor& bases;
  int64_t rank, max_tokens, max_row_bytes;
  const Tensor& epochs;
  int64_t kind, row_bytes, deadline_ns;
  const Tensor &done, &status;

  int64_t num_ranks() const { return bases.size(0); }
  int64_t most() const { return num_ranks() * max_tokens; }

  cuda::EpExchange exchange() const {
    check_at_most("rank", rank, num_ranks() - 1);
    check_at_most("max_row_bytes", max_row_bytes, kMaxRowBytes);
    check_at_most("row_bytes", row_bytes, max_row_bytes);
    if (row_bytes % 16 != 0 || max_row_bytes % 16 != 0 || row_bytes == 0)
      fail(kOp, "row_bytes", "a multiple of 16", row_bytes);
    return {.memory = {.bases = reinterpret_cast<uint8_t* const*>(words("bases", bases, num_ranks())),
                       .rank = static_cast<int>(rank),
                       .num_ranks = static_cast<int>(num_ranks()),
                       .max_tokens = static_cast<int>(max_tokens),
                       .max_row_bytes = max_row_bytes},
            .epochs = words("epochs", epochs, 2),
            .kind = static_cast<uint32_t>(kind),
            .row_bytes = static_cast<uint32_t>(row_bytes),
            .deadline = static_cast<uint64_t>(deadline_ns),
            .done = reinterpret_cast<uint32_t*>(ints("done", done, {2})),
            .status = words("status", status, 1)};
  }

  int32_t device() const { return bases.get_device_index(); }

  // Where ranks share a device all blocks that wait have to run at once; between devices a few would do.
  int num_blocks() const {
    return std::max(1, num_multiprocessors(kOp, device()) / static_cast<int>(num_ranks()));
  }
};

// columns: [rows, w] uint8 each. Returns how many there are.
int fill_columns(cuda::EpColumn* to, const std::vector<Tensor>& columns, const std::vector<int64_t>& offsets,
                 int64_t rows, int64_t row_bytes) {
  check_at_most("columns", static_cast<int64_t>(columns.size()), cuda::kEpMaxColumns);
  check_same(kOp, "offsets", "size", static_cast<int64_t>(offsets.size()),
             static_cast<int64_t>(columns.size()), "columns");
  for (size_t i = 0; i < columns.size(); ++i) {
    const Tensor& column = columns[i];
    check_dtype(kOp, "columns", column.scalar_type(), {ScalarType::Byte});
    check_dim(kOp, "columns", column, 2);
    check_same(kOp, "columns", "rows", column.size(0), rows, "the others");
    check_last_dim_contiguous(kOp, "columns", column);
    check_at_most("offsets", offsets[i], row_bytes - column.size(1));
    to[i] = {.data = static_cast<uint8_t*>(column.mutable_data_ptr()),
             .stride = column.stride(0),
             .bytes = static_cast<uint32_t>(column.size(1)),
             .offset = static_cast<uint32_t>(offsets[i])};
  }
  return static_cast<int>(columns.size());
}

void check_inside(const char* arg, int64_t offset, int64_t topk, int64_t row_bytes) {
  if (offset % 16 != 0) fail(kOp, arg, "a multiple of 16", offset);
  check_at_most(arg, offset, row_bytes - 4 * topk);
}

cuda::QuantInput element_type(const Tensor& t) {
  check_dtype(kOp, "y", t.scalar_type(), {ScalarType::BFloat16, ScalarType::Half, ScalarType::Float});
  switch (t.scalar_type()) {
    case ScalarType::Float: return cuda::QuantInput::kFloat32;
    case ScalarType::BFloat16: return cuda::QuantInput::kBFloat16;
    default: return cuda::QuantInput::kFloat16;
  }
}

cuda::EpLayout layout_of(int64_t layout) {  // LAYOUTS of python/moela/ep/layout.py
  check_at_most("layout", layout, 2);
  return static_cast<cuda::EpLayout>(layout);
}

void send(const Tensor& bases, int64_t rank, int64_t max_tokens, int64_t max_row_bytes, const Tensor& epochs,
          int64_t kind, int64_t row_bytes, int64_t deadline_ns, const Tensor& done, const Tensor& status,
          const std::vector<Tensor>& columns, const std::vector<int64_t>& offsets, const Tensor& slots,
          const Tensor& counts, bool is_abort) {
  const Given given{bases, rank,      max_tokens,  max_row_bytes, epochs,
                    kind,  row_bytes, deadline_ns, done,          status};
  check_dim(kOp, "slots", slots, 2);
  const int64_t T = slots.size(0);
  check_at_most("slots", T, max_tokens);
  cuda::EpSendParams p = {.exchange = given.exchange(),
                          .columns = {},
                          .num_columns = 0,
                          .slots = ints("slots", slots, {T, slots.size(1)}),
                          .counts = ints("counts", counts, {given.num_ranks()}),
                          .T = static_cast<int>(T),
                          .topk = static_cast<int>(slots.size(1)),
                          .is_abort = is_abort};
  p.num_columns = fill_columns(p.columns, columns, offsets, T, row_bytes);
  const torch::stable::accelerator::DeviceGuard guard(given.device());
  check_launch(kOp, cuda::launch_ep_send(p, given.num_blocks(), current_stream(given.device())));
}

void place(const Tensor& bases, int64_t rank, int64_t max_tokens, int64_t max_row_bytes, const Tensor& epochs,
           int64_t kind, int64_t row_bytes, int64_t deadline_ns, const Tensor& done, const Tensor& status,
           int64_t layout, int64_t ids_offset, int64_t topk, int64_t first_expert, int64_t num_local_experts,
           int64_t capacity, const Tensor& positions, const Tensor& experts) {
  const Given given{bases, rank,      max_tokens,  max_row_bytes, epochs,
                    kind,  row_bytes, deadline_ns, done,          status};
  const cuda::EpLayout of = layout_of(layout);
  check_inside("ids_offset", ids_offset, topk, row_bytes);
  const int64_t num_words = num_local_experts + (of == cuda::EpLayout::kExpert ? 1 : 0);
  const cuda::EpPlaceParams p = {.exchange = given.exchange(),
                                 .layout = of,
                                 .ids_offset = static_cast<uint32_t>(ids_offset),
                                 .topk = static_cast<int>(topk),
                                 .first_expert = static_cast<int>(first_expert),
                                 .num_local_experts = static_cast<int>(num_local_experts),
                                 .capacity = static_cast<int>(capacity),
                                 .positions = ints("positions", positions, {given.most(), topk}),
                                 .experts = ints("experts", experts, {num_words})};
  const torch::stable::accelerator::DeviceGuard guard(given.device());
  check_launch(kOp, cuda::launch_ep_place(p, given.num_blocks(), current_stream(given.device())));
}

void receive(const Tensor& bases, int64_t rank, int64_t max_tokens, int64_t max_row_bytes,
             const Tensor& epochs, int64_t kind, int64_t row_bytes, int64_t deadline_ns, const Tensor& done,
             const Tensor& status, int64_t layout, const std::vector<Tensor>& outs,
             const std::vector<int64_t>& offsets, int64_t ids_offset, int64_t weights_offset, int64_t topk,
             int64_t first_expert, int64_t num_local_experts, const std::optional<Tensor>& positions,
             const std::optional<Tensor>& experts, const std::optional<Tensor>& topk_ids,
             const std::optional<Tensor>& topk_weights, const Tensor& recv_counts, int64_t capacity) {
  const Given given{bases, rank,      max_tokens,  max_row_bytes, epochs,
                    kind,  row_bytes, deadline_ns, done,          status};
  const cuda::EpLayout of = layout_of(layout);
  const bool is_compact = of == cuda::EpLayout::kCompact;
  check_inside("ids_offset", ids_offset, topk, row_bytes);
  check_inside("weights_offset", weights_offset, topk, row_bytes);
  check_at_most("capacity", capacity, INT32_MAX);
  const int64_t places = of == cuda::EpLayout::kMasked ? num_local_experts * capacity : capacity;
  const int64_t num_words = num_local_experts + (of == cuda::EpLayout::kExpert ? 1 : 0);
  cuda::EpReceiveParams p = {.exchange = given.exchange(),
                             .layout = of,
                             .columns = {},
                             .num_columns = 0,
                             .ids_offset = static_cast<uint32_t>(ids_offset),
                             .weights_offset = static_cast<uint32_t>(weights_offset),
                             .topk = static_cast<int>(topk),
                             .first_expert = static_cast<int>(first_expert),
                             .num_local_experts = static_cast<int>(num_local_experts),
                             .positions = nullptr,
                             .experts = nullptr,
                             .topk_ids = nullptr,
                             .topk_weights = nullptr,
                             .recv_counts = ints("recv_counts", recv_counts, {given.num_ranks()}),
                             .capacity = static_cast<int>(capacity)};
  if (!is_compact) {
    p.positions = ints("positions", positions.value(), {given.most(), topk});
    p.experts = ints("experts", experts.value(), {num_words});
  } else if (topk > 0) {
    p.topk_ids = ints("topk_ids", topk_ids.value(), {capacity, topk});
  }
  if (topk > 0) {
    const Tensor& weights = topk_weights.value();
    check_dtype(kOp, "topk_weights", weights.scalar_type(), {ScalarType::Float});
    check_same(kOp, "topk_weights", "size", weights.numel(), places * (is_compact ? topk : 1), "the places");
    check_contiguous("topk_weights", weights);
    p.topk_weights = static_cast<float*>(weights.mutable_data_ptr());
  }
  p.num_columns = fill_columns(p.columns, outs, offsets, places, row_bytes);
  const torch::stable::accelerator::DeviceGuard guard(given.device());
  check_launch(kOp, cuda::launch_ep_receive(p, given.num_blocks(), current_stream(given.device())));
}

void combine_send(const Tensor& bases, int64_t rank, int64_t max_tokens, int64_t max_row_bytes,
                  const Tensor& epochs, int64_t kind, int64_t row_bytes, int64_t deadline_ns,
                  const Tensor& done, const Tensor& status, const Tensor& y,
                  const std::optional<Tensor>& topk_weights, const Tensor& positions,
                  const Tensor& recv_counts) {
  const Given given{bases, rank,      max_tokens,  max_row_bytes, epochs,
                    kind,  row_bytes, deadline_ns, done,          status};
  check_dim(kOp, "y", y, 2);
  check_last_dim_contiguous(kOp, "y", y);
  check_at_most("y", y.size(1) * static_cast<int64_t>(y.element_size()), row_bytes);
  check_dim(kOp, "positions", positions, 2);
  cuda::EpCombineSendParams p = {.exchange = given.exchange(),
                                 .y = y.const_data_ptr(),
                                 .dtype = element_type(y),
                                 .ldy = y.stride(0),
                                 .places = y.size(0),
                                 .H = static_cast<int>(y.size(1)),
                                 .topk_weights = nullptr,
                                 .positions = ints("positions", positions, {given.most(), positions.size(1)}),
                                 .recv_counts = ints("recv_counts", recv_counts, {given.num_ranks()}),
                                 .topk = static_cast<int>(positions.size(1))};
  if (topk_weights) {
    check_dtype(kOp, "topk_weights", topk_weights->scalar_type(), {ScalarType::Float});
    check_shape(kOp, "topk_weights", *topk_weights, {y.size(0)});
    check_contiguous("topk_weights", *topk_weights);
    p.topk_weights = static_cast<const float*>(topk_weights->const_data_ptr());
  }
  const torch::stable::accelerator::DeviceGuard guard(given.device());
  check_launch(kOp, cuda::launch_ep_combine_send(p, given.num_blocks(), current_stream(given.device())));
}

void combine_receive(const Tensor& bases, int64_t rank, int64_t max_tokens, int64_t max_row_bytes,
                     const Tensor& epochs, int64_t kind, int64_t row_bytes, int64_t deadline_ns,
                     const Tensor& done, const Tensor& status, const Tensor& out, const Tensor& slots,
                     const Tensor& send_counts) {
  const Given given{bases, rank,      max_tokens,  max_row_bytes, epochs,
                    kind,  row_bytes, deadline_ns, done,          status};
  check_dim(kOp, "out", out, 2);
  check_contiguous("out", out);
  check_at_most("out", out.size(1) * static_cast<int64_t>(out.element_size()), row_bytes);
  check_dim(kOp, "slots", slots, 2);
  const cuda::EpCombineReceiveParams p = {
      .exchange = given.exchange(),
      .out = out.mutable_data_ptr(),
      .dtype = element_type(out),
      .H = static_cast<int>(out.size(1)),
      .slots = ints("slots", slots, {out.size(0), slots.size(1)}),
      .send_counts = ints("send_counts", send_counts, {given.num_ranks()}),
      .T = static_cast<int>(out.size(0)),
      .topk = static_cast<int>(slots.size(1))};
  const torch::stable::accelerator::DeviceGuard guard(given.device());
  check_launch(kOp, cuda::launch_ep_combine_receive(p, given.num_blocks(), current_stream(given.device())));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela_ep, CUDA, m) {
  m.impl("device_send", TORCH_BOX(&send));
  m.impl("device_place", TORCH_BOX(&place));
  m.impl("device_receive", TORCH_BOX(&receive));
  m.impl("device_combine_send", TORCH_BOX(&combine_send));
  m.impl("device_combine_receive", TORCH_BOX(&combine_receive));
}

}  // namespace moela
