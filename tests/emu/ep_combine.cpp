// The CUDA ep_combine on the host, several ranks in one process: ep_combine <schedule> <folder>
// The file `case` of the folder says what the ranks do; rank r reads r.y, r.weights (if there are any),
// r.positions, r.recv_counts, r.slots, r.send_counts, and writes r.e.out for every epoch e, and r.status.
// Prints "right" or the report.
#include <iostream>
#include <string>

#include "cuda/ep_combine/ep_combine_sm90.cuh"
#include "ep.h"

using namespace moela;

int main(int, char** argv) {
  const std::string folder = std::string(argv[2]) + "/";
  Words words(folder + "case");
  const auto number = [&] { return static_cast<int>(words.number()); };
  const int num_ranks = number(), topk = number(), places = number(), max_tokens = number();
  const int num_blocks = number(), dtype = number(), H = number(), ldy = number(), weighted = number();
  const auto type = static_cast<cuda::QuantInput>(dtype);
  const auto bytes = static_cast<uint32_t>(H * cuda::sm90::element_bytes_of(type));
  const uint32_t row_bytes = (bytes + 15) / 16 * 16;
  Ranks ranks({.bases = nullptr,
               .rank = 0,
               .num_ranks = num_ranks,
               .max_tokens = max_tokens,
               .max_row_bytes = row_bytes},
              20000);
  struct Out {
    std::string name;
    void* data;
    size_t bytes;
  };
  std::vector<Out> all;
  for (int r = 0; r < num_ranks; ++r) {
    const std::string name = folder + std::to_string(r) + ".", stream = words.text();
    const void* y = load(name + "y");
    const auto* weights = weighted != 0 ? loaded<float>(name + "weights") : nullptr;
    const auto *positions = loaded<int32_t>(name + "positions"), *slots = loaded<int32_t>(name + "slots"),
               *recv_counts = loaded<int32_t>(name + "recv_counts"),
               *send_counts = loaded<int32_t>(name + "send_counts");
    const auto T = static_cast<int>(file_bytes(name + "slots") / (4 * topk));
    uint64_t received = 0;
    for (const char what : stream) {
      if (what == 's') {
        const cuda::EpCombineSendParams p = {.exchange = ranks.exchange(r, 9, row_bytes),
                                             .y = y,
                                             .dtype = type,
                                             .ldy = ldy,
                                             .places = file_bytes(name + "y") / (ldy * bytes / H),
                                             .H = H,
                                             .topk_weights = weights,
                                             .positions = positions,
                                             .recv_counts = recv_counts,
                                             .topk = places};
        ranks.add(cuda::sm90::ep_combine_send_plan(p, num_blocks), cuda::sm90::ep_combine_send_kernel_for(p),
                  p);
      } else {
        const size_t out_bytes = static_cast<size_t>(T) * bytes;
        const cuda::EpCombineReceiveParams p = {.exchange = ranks.exchange(r, 9, row_bytes),
                                                .out = emu::allocate(out_bytes),
                                                .dtype = type,
                                                .H = H,
                                                .slots = slots,
                                                .send_counts = send_counts,
                                                .T = T,
                                                .topk = topk};
        ranks.add(cuda::sm90::ep_combine_receive_plan(p, num_blocks),
                  cuda::sm90::ep_combine_receive_kernel_for(p), p);
        all.push_back({name + std::to_string(++received) + ".out", p.out, out_bytes});
      }
    }
  }
  const std::string verdict = ranks.run(schedule_of(argv[1]), folder);
  for (const Out& out : all) save(out.name, out.data, out.bytes);
  std::cout << verdict << "\n";
  return 0;
}
