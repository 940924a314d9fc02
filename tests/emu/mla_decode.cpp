// The CUDA mla_decode on the host:
//   mla_decode <dtype 0..1> <B> <s_q> <H> <D> <v_dim> <stride_qb> <stride_qj> <stride_qh>
//              <num_pages> <page_size> <stride_page> <stride_slot> <is paged> <stride_tb>
//              <causal> <batch invariant> <sm_scale> <parts> <pieces> <schedule> <folder>
// Reads q, cache, block_table, seqlens and schedule from files of these names in the folder, writes out and
// lse there; prints the plan, then "right" or the report.
#include <iostream>
#include <string>

#include "cuda/mla_decode/mla_decode_launch.h"
#include "files.h"
#include "schedule.h"

int main(int, char** argv) {
  using namespace moela;
  const auto number = [&](int i) { return std::stoi(argv[i]); };
  const std::string folder = std::string(argv[22]) + "/";
  const bool is_paged = number(14) != 0;
  cuda::MlaDecodeArgs a = {
      .dtype = static_cast<cuda::MlaFloat>(number(1)),
      .q = load(folder + "q"),
      .stride_qb = number(7),
      .stride_qj = number(8),
      .stride_qh = number(9),
      .cache = load(folder + "cache"),
      .num_pages = number(10),
      .page_size = number(11),
      .stride_page = number(12),
      .stride_slot = number(13),
      .block_table = is_paged ? static_cast<const int32_t*>(load(folder + "block_table")) : nullptr,
      .stride_tb = number(15),
      .seqlens = static_cast<const int32_t*>(load(folder + "seqlens")),
      .schedule = static_cast<const int32_t*>(load(folder + "schedule")),
      .stride_schedule = 4,
      .sm_scale = std::stof(argv[18]),
      .B = number(2),
      .s_q = number(3),
      .H = number(4),
      .D = number(5),
      .v_dim = number(6),
      .causal = number(16) != 0,
      .batch_invariant = number(17) != 0,
      .out = nullptr,
      .lse = nullptr,
      .piece_out = nullptr,
      .piece_lse = nullptr,
  };
  const auto rows = static_cast<size_t>(a.B * a.s_q * a.H),
             piece_rows = static_cast<size_t>(number(20) * a.s_q * a.H);
  const size_t out_bytes = rows * static_cast<size_t>(a.v_dim) * 2, lse_bytes = rows * 4;
  a.out = poisoned(out_bytes);
  a.lse = static_cast<float*>(poisoned(lse_bytes));
  a.piece_out = static_cast<float*>(poisoned(piece_rows * static_cast<size_t>(a.v_dim) * 4));
  a.piece_lse = static_cast<float*>(poisoned(piece_rows * 4));
  plan::MlaDecodeSm90Plan plan =
      plan::plan_mla_decode_sm90({.B = a.B,
                                  .s_q = a.s_q,
                                  .H = a.H,
                                  .capacity = 0,
                                  .page_size = a.page_size,
                                  .is_paged = is_paged,
                                  .has_packed_rows = cuda::mla_host::has_packed_rows(a)},
                                 132);
  plan.num_parts = number(19);
  std::cout << plan << "\n";
  cuda::EmulatedStream stream = {schedule_of(argv[21]), {}};
  stream.options.max_live_blocks = 16;  // of 384 threads each
  std::string error = cuda::why_not_mla_decode(a);
  if (error.empty()) error = cuda::launch_mla_decode(a, plan, &stream);
  save(folder + "out", a.out, out_bytes);
  save(folder + "lse", a.lse, lse_bytes);
  std::cout << (error.empty() ? "right" : error + "\n" + stream.report.text) << "\n";
  return 0;
}
