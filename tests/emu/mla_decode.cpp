// The CUDA mla_decode on the host:
//   mla_decode <dtype 0..1> <B> <s_q> <H> <D> <v_dim> <stride_qb> <stride_qj> <stride_qh>
//              <num_pages> <page_size> <stride_page> <stride_slot> <is paged> <stride_tb>
//              <causal> <batch invariant> <sm_scale> <parts> <steps> <schedule> <folder>
// Reads q, cache, block_table, seqlens and schedule from files of these names in the folder, writes out and
// lse there; prints the plan, then "right" or the report. With steps above 0 there are lengths for so many
// steps, and each is mla_schedule and mla_decode with the same arguments, as a CUDA graph replays them:
// seqlens is overwritten in between. Files hold the results of all steps.
#include <iostream>
#include <string>

#include "cuda/mla_decode/mla_decode_launch.h"
#include "cuda/mla_schedule/mla_schedule_sm90.cuh"
#include "files.h"
#include "schedule.h"

int main(int, char** argv) {
  using namespace moela;
  const auto number = [&](int i) { return std::stoi(argv[i]); };
  const std::string folder = std::string(argv[22]) + "/";
  const bool is_paged = number(14) != 0;
  const int parts = number(19), steps = number(20);
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
      .seqlens = nullptr,
      .schedule = nullptr,
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
      .pieces = 0,
      .piece_out = nullptr,
      .piece_lse = nullptr,
  };
  const plan::MlaDecodeSm90Problem problem = {.B = a.B,
                                              .s_q = a.s_q,
                                              .H = a.H,
                                              .capacity = a.page_size * (is_paged ? a.stride_tb : 1),
                                              .page_size = a.page_size,
                                              .is_paged = is_paged,
                                              .has_packed_rows = cuda::mla_host::has_packed_rows(a)};
  plan::MlaDecodeSm90Plan plan = plan::plan_mla_decode_sm90(problem, 132);
  plan.num_parts = parts;
  std::cout << plan << "\n";

  const auto elements = [](int64_t count, int64_t bytes) { return static_cast<size_t>(count * bytes); };
  const int64_t rows = int64_t{a.B} * a.s_q * a.H;
  a.pieces = plan::mla_decode_sm90_pieces(problem, parts, a.batch_invariant);
  const int64_t piece_rows = a.pieces * a.s_q * a.H;
  a.out = poisoned(elements(rows * a.v_dim, 2));
  a.lse = static_cast<float*>(poisoned(elements(rows, 4)));
  a.piece_out = static_cast<float*>(poisoned(elements(piece_rows * a.v_dim, 4)));
  a.piece_lse = static_cast<float*>(poisoned(elements(piece_rows, 4)));
  const auto* lengths = static_cast<const int32_t*>(load(folder + "seqlens"));
  auto* seqlens = static_cast<int32_t*>(poisoned(elements(a.B, 4)));
  a.seqlens = seqlens;
  auto* schedule = static_cast<int32_t*>(
      steps == 0 ? load(folder + "schedule") : poisoned(elements(plan::mla_schedule_rows(a.B, parts), 16)));
  a.schedule = schedule;

  cuda::EmulatedStream stream = {schedule_of(argv[21]), {}};
  stream.options.max_live_blocks = 16;  // of 384 threads each
  std::string error = cuda::why_not_mla_decode(a);
  for (int step = 0; error.empty() && (step == 0 || step < steps); ++step) {
    emu::copy_to(seqlens, lengths + step * a.B, elements(a.B, 4));
    if (steps > 0)
      error = cuda::status_text(cuda::launch_mla_schedule({.seqlens = seqlens,
                                                           .B = a.B,
                                                           .rows = a.s_q * a.H,
                                                           .num_parts = parts,
                                                           .batch_invariant = a.batch_invariant,
                                                           .schedule = schedule},
                                                          &stream));
    if (error.empty()) error = cuda::launch_mla_decode(a, plan, &stream);
    append(folder + "out", a.out, elements(rows * a.v_dim, 2));
    append(folder + "lse", a.lse, elements(rows, 4));
  }
  std::cout << (error.empty() ? "right" : error + "\n" + stream.report.text) << "\n";
  return 0;
}
