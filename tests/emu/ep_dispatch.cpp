// The CUDA ep_dispatch on the host, several ranks in one process: ep_dispatch <schedule> <folder>
// The file `case` of the folder says what the ranks do (see read_case and test_ep_dispatch.py); epoch e of
// rank r reads r.e.slots, r.e.counts, r.e.in0, ... and writes r.e.out0, ..., r.e.weights, r.e.recv_counts,
// r.e.ids or r.e.experts and r.e.positions, and r.status. Prints "right" or the report.
#include <iostream>
#include <string>

#include "cuda/ep_dispatch/ep_dispatch_sm90.cuh"
#include "ep.h"

using namespace moela;

namespace {

struct Column {
  uint32_t bytes;
  int64_t stride;
  uint32_t offset;
};

struct Case {
  int num_ranks, topk, max_tokens, capacity, num_blocks;
  cuda::EpLayout layout;
  uint64_t deadline;
  uint32_t row_bytes, ids_offset, weights_offset;
  std::vector<Column> columns;  // x, the extras, ids, weights
  std::vector<int> experts;     // [num_ranks + 1]: the first of each rank
  // What each rank does: s, r: send, receive the next epoch; a: give it up; d: send rows of another kind.
  std::vector<std::string> streams;
};

Case read_case(const std::string& path) {
  Words words(path);
  const auto number = [&] { return static_cast<int>(words.number()); };
  Case c = {};
  c.num_ranks = number();
  c.topk = number();
  c.max_tokens = number();
  c.capacity = number();
  c.num_blocks = number();
  c.layout = static_cast<cuda::EpLayout>(number());
  c.deadline = static_cast<uint64_t>(number());
  c.row_bytes = static_cast<uint32_t>(number());
  c.columns.resize(static_cast<size_t>(number()));
  for (Column& column : c.columns) {
    column.bytes = static_cast<uint32_t>(number());
    column.stride = number();
    column.offset = static_cast<uint32_t>(number());
  }
  c.ids_offset = c.columns[c.columns.size() - 2].offset;
  c.weights_offset = c.columns.back().offset;
  for (int r = 0; r <= c.num_ranks; ++r) c.experts.push_back(number());
  for (int r = 0; r < c.num_ranks; ++r) c.streams.push_back(words.text());
  return c;
}

struct Received {
  std::string name;
  cuda::EpPlaceParams places;  // experts, positions: null for compact
  cuda::EpReceiveParams p;
  size_t experts, pairs;
};

std::string name_of(const std::string& folder, int rank, uint64_t epoch) {
  return folder + std::to_string(rank) + "." + std::to_string(epoch) + ".";
}

cuda::EpSendParams send_params(const Case& c, const cuda::EpExchange& x, const std::string& name,
                               bool aborts) {
  cuda::EpSendParams p = {.exchange = x,
                          .columns = {},
                          .num_columns = static_cast<int>(c.columns.size()),
                          .slots = loaded<int32_t>(name + "slots"),
                          .counts = loaded<int32_t>(name + "counts"),
                          .T = static_cast<int>(file_bytes(name + "slots") / (4 * c.topk)),
                          .topk = c.topk,
                          .is_abort = aborts};
  for (size_t i = 0; i < c.columns.size(); ++i)
    p.columns[i] = {.data = loaded<uint8_t>(name + "in" + std::to_string(i)),
                    .stride = c.columns[i].stride,
                    .bytes = c.columns[i].bytes,
                    .offset = c.columns[i].offset};
  if (aborts) {
    p.T = 0;
    const std::vector<int32_t> none(static_cast<size_t>(c.num_ranks), 0);
    auto* counts = static_cast<int32_t*>(emu::allocate(none.size() * 4));
    emu::copy_to(counts, none.data(), none.size() * 4);
    p.counts = counts;
  }
  return p;
}

int32_t* words(size_t count) { return static_cast<int32_t*>(emu::allocate(count * 4)); }

Received receive_params(const Case& c, const cuda::EpExchange& x, const std::string& name) {
  const auto r = static_cast<size_t>(x.memory.rank);
  const bool is_compact = c.layout == cuda::EpLayout::kCompact;
  Received all = {.name = name,
                  .places = {.exchange = x,
                             .layout = c.layout,
                             .ids_offset = c.ids_offset,
                             .topk = c.topk,
                             .first_expert = c.experts[r],
                             .num_local_experts = c.experts[r + 1] - c.experts[r],
                             .capacity = c.capacity,
                             .positions = nullptr,
                             .experts = nullptr},
                  .p = {.exchange = x,
                        .layout = c.layout,
                        .columns = {},
                        .num_columns = static_cast<int>(c.columns.size()) - 2,
                        .ids_offset = c.ids_offset,
                        .weights_offset = c.weights_offset,
                        .topk = c.topk,
                        .first_expert = all.places.first_expert,
                        .num_local_experts = all.places.num_local_experts,
                        .positions = nullptr,
                        .experts = nullptr,
                        .topk_ids = nullptr,
                        .topk_weights = nullptr,
                        .recv_counts = words(static_cast<size_t>(c.num_ranks)),
                        .capacity = c.capacity},
                  .experts = 0,
                  .pairs = static_cast<size_t>(c.num_ranks * c.max_tokens * c.topk)};
  cuda::EpReceiveParams& p = all.p;
  const auto places = static_cast<size_t>(cuda::sm90::ep_num_places(p));
  const size_t width = is_compact ? static_cast<size_t>(c.topk) : 1;
  p.topk_weights = reinterpret_cast<float*>(words(places * width));
  if (is_compact) {
    p.topk_ids = words(places * width);
  } else {
    all.experts = static_cast<size_t>(p.num_local_experts) + (c.layout == cuda::EpLayout::kExpert);
    p.experts = all.places.experts = words(all.experts);
    p.positions = all.places.positions = words(all.pairs);
  }
  for (int i = 0; i < p.num_columns; ++i) {
    const Column& column = c.columns[static_cast<size_t>(i)];
    p.columns[i] = {.data = static_cast<uint8_t*>(emu::allocate(places * column.bytes)),
                    .stride = column.bytes,
                    .bytes = column.bytes,
                    .offset = column.offset};
  }
  return all;
}

void save_all(const Case& c, const Received& received) {
  const cuda::EpReceiveParams& p = received.p;
  const auto places = static_cast<size_t>(cuda::sm90::ep_num_places(p));
  const size_t width = p.topk_ids == nullptr ? 1 : static_cast<size_t>(c.topk);
  for (int i = 0; i < p.num_columns; ++i)
    save(received.name + "out" + std::to_string(i), p.columns[i].data, places * p.columns[i].bytes);
  save(received.name + "weights", p.topk_weights, places * width * 4);
  save(received.name + "recv_counts", p.recv_counts, static_cast<size_t>(c.num_ranks) * 4);
  if (p.topk_ids != nullptr) {
    save(received.name + "ids", p.topk_ids, places * width * 4);
  } else {
    save(received.name + "experts", p.experts, received.experts * 4);
    save(received.name + "positions", p.positions, received.pairs * 4);
  }
}

}  // namespace

int main(int, char** argv) {
  const std::string folder = std::string(argv[2]) + "/";
  const Case c = read_case(folder + "case");
  Ranks ranks({.bases = nullptr,
               .rank = 0,
               .num_ranks = c.num_ranks,
               .max_tokens = c.max_tokens,
               .max_row_bytes = c.row_bytes + 16},
              c.deadline);
  std::vector<Received> all;
  for (int r = 0; r < c.num_ranks; ++r) {
    uint64_t sent = 0, received = 0;
    for (const char what : c.streams[static_cast<size_t>(r)]) {
      if (what == '-') continue;
      const uint64_t epoch = what == 'r' ? ++received : ++sent;
      const cuda::EpExchange x = ranks.exchange(r, what == 'd' ? 8 : 7, c.row_bytes);
      const std::string name = name_of(folder, r, epoch);
      if (what == 'r') {
        all.push_back(receive_params(c, x, name));
        const cuda::EpPlaceParams& places = all.back().places;
        const cuda::EpReceiveParams& p = all.back().p;
        if (c.layout != cuda::EpLayout::kCompact)
          ranks.add(r, cuda::sm90::ep_place_shape(places, c.num_blocks),
                    [=] { cuda::sm90::ep_place_kernel(places); });
        ranks.add(cuda::sm90::ep_receive_plan(p, c.num_blocks), &cuda::sm90::ep_receive_kernel, p);
      } else {
        const cuda::EpSendParams p = send_params(c, x, name, what == 'a');
        ranks.add(cuda::sm90::ep_send_plan(p, c.num_blocks), &cuda::sm90::ep_send_kernel, p);
      }
    }
  }
  const std::string verdict = ranks.run(schedule_of(argv[1]), folder);
  for (const Received& received : all) save_all(c, received);
  std::cout << verdict << "\n";
  return 0;
}
