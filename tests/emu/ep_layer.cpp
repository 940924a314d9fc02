// Dispatch and combine on the host, several ranks in one process, the same launches again and again as a CUDA
// graph repeats them: ep_layer <schedule> <folder>
// The file `case` says the sizes; rank r reads r.x (bfloat16), r.ids, r.weights, r.slots, r.counts, and
// writes r.out and r.status. Prints "right" or the report.
#include <iostream>
#include <string>

#include "cuda/ep_combine/ep_combine_sm90.cuh"
#include "cuda/ep_dispatch/ep_dispatch_sm90.cuh"
#include "ep.h"

using namespace moela;

namespace {

struct Sizes {
  int num_ranks, topk, max_tokens, H, num_blocks, rounds;
  std::vector<int> experts;  // [num_ranks + 1]: the first of each rank
};

uint32_t padded(size_t bytes) { return static_cast<uint32_t>((bytes + 15) / 16 * 16); }

template <class T>
T* fresh(size_t count) {
  return static_cast<T*>(emu::allocate(count * sizeof(T)));
}

cuda::EpColumn column(void* data, uint32_t bytes, uint32_t offset) {
  return {.data = static_cast<uint8_t*>(data), .stride = bytes, .bytes = bytes, .offset = offset};
}

// Appends the five kernels of a layer to the stream of rank r, `rounds` times. Returns its output.
void* add_layer(Ranks& ranks, const Sizes& s, int r, const std::string& name) {
  const auto x_bytes = static_cast<uint32_t>(s.H * 2), pair_bytes = static_cast<uint32_t>(s.topk * 4);
  const uint32_t ids_at = padded(x_bytes), weights_at = ids_at + padded(pair_bytes);
  const cuda::EpExchange there = ranks.exchange(r, 7, weights_at + padded(pair_bytes)),
                         back = ranks.exchange(r, 9, padded(x_bytes));
  const auto T = static_cast<int>(file_bytes(name + "slots") / pair_bytes);
  const int rows = s.num_ranks * s.max_tokens, capacity = rows * s.topk;
  const int first = s.experts[static_cast<size_t>(r)];
  const int num_experts = s.experts[static_cast<size_t>(r) + 1] - first;
  auto* positions = fresh<int32_t>(static_cast<size_t>(capacity));
  auto* experts = fresh<int32_t>(static_cast<size_t>(num_experts) + 1);
  auto* weights = fresh<float>(static_cast<size_t>(capacity));
  auto* recv_counts = fresh<int32_t>(static_cast<size_t>(s.num_ranks));
  auto* y = fresh<uint16_t>(static_cast<size_t>(capacity * s.H));
  auto* out = fresh<uint16_t>(static_cast<size_t>(T * s.H));
  const auto *slots = loaded<int32_t>(name + "slots"), *counts = loaded<int32_t>(name + "counts");

  const cuda::EpSendParams send = {
      .exchange = there,
      .columns = {column(load(name + "x"), x_bytes, 0), column(load(name + "ids"), pair_bytes, ids_at),
                  column(load(name + "weights"), pair_bytes, weights_at)},
      .num_columns = 3,
      .slots = slots,
      .counts = counts,
      .T = T,
      .topk = s.topk,
      .is_abort = false};
  const cuda::EpPlaceParams place = {.exchange = there,
                                     .layout = cuda::EpLayout::kExpert,
                                     .ids_offset = ids_at,
                                     .topk = s.topk,
                                     .first_expert = first,
                                     .num_local_experts = num_experts,
                                     .capacity = capacity,
                                     .positions = positions,
                                     .experts = experts};
  const cuda::EpReceiveParams receive = {.exchange = there,
                                         .layout = cuda::EpLayout::kExpert,
                                         .columns = {column(y, x_bytes, 0)},
                                         .num_columns = 1,
                                         .ids_offset = ids_at,
                                         .weights_offset = weights_at,
                                         .topk = s.topk,
                                         .first_expert = first,
                                         .num_local_experts = num_experts,
                                         .positions = positions,
                                         .experts = experts,
                                         .topk_ids = nullptr,
                                         .topk_weights = weights,
                                         .recv_counts = recv_counts,
                                         .capacity = capacity};
  const cuda::EpCombineSendParams combine_send = {.exchange = back,
                                                  .y = y,
                                                  .dtype = cuda::QuantInput::kBFloat16,
                                                  .ldy = s.H,
                                                  .places = capacity,
                                                  .H = s.H,
                                                  .topk_weights = weights,
                                                  .positions = positions,
                                                  .recv_counts = recv_counts,
                                                  .topk = s.topk};
  const cuda::EpCombineReceiveParams combine_receive = {.exchange = back,
                                                        .out = out,
                                                        .dtype = cuda::QuantInput::kBFloat16,
                                                        .H = s.H,
                                                        .slots = slots,
                                                        .send_counts = counts,
                                                        .T = T,
                                                        .topk = s.topk};
  for (int round = 0; round < s.rounds; ++round) {
    ranks.add(cuda::sm90::ep_send_plan(send, s.num_blocks), &cuda::sm90::ep_send_kernel, send);
    ranks.add(r, cuda::sm90::ep_place_shape(place, s.num_blocks),
              [=] { cuda::sm90::ep_place_kernel(place); });
    ranks.add(cuda::sm90::ep_receive_plan(receive, s.num_blocks), &cuda::sm90::ep_receive_kernel, receive);
    ranks.add(cuda::sm90::ep_combine_send_plan(combine_send, s.num_blocks),
              cuda::sm90::ep_combine_send_kernel_for(combine_send), combine_send);
    ranks.add(cuda::sm90::ep_combine_receive_plan(combine_receive, s.num_blocks),
              cuda::sm90::ep_combine_receive_kernel_for(combine_receive), combine_receive);
  }
  return out;
}

}  // namespace

int main(int, char** argv) {
  const std::string folder = std::string(argv[2]) + "/";
  Words words(folder + "case");
  const auto number = [&] { return static_cast<int>(words.number()); };
  Sizes s = {};
  for (int* size : {&s.num_ranks, &s.topk, &s.max_tokens, &s.H, &s.num_blocks, &s.rounds}) *size = number();
  for (int r = 0; r <= s.num_ranks; ++r) s.experts.push_back(number());
  Ranks ranks({.bases = nullptr,
               .rank = 0,
               .num_ranks = s.num_ranks,
               .max_tokens = s.max_tokens,
               .max_row_bytes = padded(static_cast<size_t>(s.H) * 2 + static_cast<size_t>(s.topk) * 8 + 32)},
              20000);
  std::vector<void*> outs;
  for (int r = 0; r < s.num_ranks; ++r)
    outs.push_back(add_layer(ranks, s, r, folder + std::to_string(r) + "."));
  const std::string verdict = ranks.run(schedule_of(argv[1]), folder);
  for (int r = 0; r < s.num_ranks; ++r) {
    const std::string name = folder + std::to_string(r) + ".";
    save(name + "out", outs[static_cast<size_t>(r)], static_cast<size_t>(file_bytes(name + "x")));
  }
  std::cout << verdict << "\n";
  return 0;
}
