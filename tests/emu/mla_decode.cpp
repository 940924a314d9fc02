// The CUDA mla_decode on the host:
//   mla_decode <dtype 0..1> <has bytes> <B> <s_q> <H> <D> <v_dim> <stride_qb> <stride_qj> <stride_qh>
//              <num_pages> <page_size> <stride_page> <stride_slot> <is paged> <stride_tb> <is ragged>
//              <causal> <batch invariant> <sm_scale> <path> <parts> <steps> <schedule> <folder>
// Reads q, cache, block_table, seqlens, cu_seqlens_q and schedule from files of these names in the folder,
// writes out and lse there; prints the plan, then "right" or the report. With steps above 0 there are lengths
// for so many steps, and each is mla_schedule, of a ragged batch after its tiles, and mla_decode with the
// same arguments, as a CUDA graph replays them: seqlens is overwritten in between. Files hold the results of
// all steps. Of a ragged batch s_q is the number of all tokens. A path of -1 is the plan's choice.
#include <iostream>
#include <string>

#include "cuda/mla_decode/mla_decode_launch.h"
#include "cuda/mla_schedule/mla_schedule_sm90.cuh"
#include "files.h"
#include "schedule.h"

int main(int, char** argv) {
  using namespace moela;
  const auto number = [&](int i) { return std::stoi(argv[i]); };
  const std::string folder = std::string(argv[25]) + "/";
  const bool is_paged = number(15) != 0, is_ragged = number(17) != 0;
  const int parts = number(22), steps = number(23);
  cuda::MlaDecodeArgs a = {
      .dtype = static_cast<cuda::MlaFloat>(number(1)),
      .q = load(folder + "q"),
      .stride_qb = number(8),
      .stride_qj = number(9),
      .stride_qh = number(10),
      .has_bytes = number(2) != 0,
      .cache = load(folder + "cache"),
      .num_pages = number(11),
      .page_size = number(12),
      .stride_page = number(13),
      .stride_slot = number(14),
      .block_table = is_paged ? static_cast<const int32_t*>(load(folder + "block_table")) : nullptr,
      .stride_tb = number(16),
      .seqlens = nullptr,
      .cu_seqlens_q = is_ragged ? static_cast<const int32_t*>(load(folder + "cu_seqlens_q")) : nullptr,
      .schedule = nullptr,
      .stride_schedule = 4,
      .sm_scale = std::stof(argv[20]),
      .B = number(3),
      .s_q = number(4),
      .H = number(5),
      .D = number(6),
      .v_dim = number(7),
      .causal = number(18) != 0,
      .batch_invariant = number(19) != 0,
      .items = 0,
      .item_rows = 0,
      .tiles = nullptr,
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
                                              .is_ragged = is_ragged,
                                              .has_bytes = a.has_bytes,
                                              .has_rope = a.D > a.v_dim,
                                              .has_packed_rows = cuda::mla_host::has_packed_rows(a),
                                              .batch_invariant = a.batch_invariant};
  const plan::MlaDecodeSm90Path path =
      number(21) < 0 ? plan::mla_decode_sm90_path(problem) : static_cast<plan::MlaDecodeSm90Path>(number(21));
  plan::MlaDecodeSm90Plan plan = plan::mla_decode_sm90_plan_with(path, problem, 132);
  plan.num_parts = parts;
  a.items = static_cast<int>(plan.items);
  a.item_rows = static_cast<int>(plan.item_rows);
  std::cout << plan << "\n";

  const auto elements = [](int64_t count, int64_t bytes) { return static_cast<size_t>(count * bytes); };
  const int64_t rows = int64_t{is_ragged ? 1 : a.B} * a.s_q * a.H;
  a.pieces = plan::mla_decode_sm90_pieces(problem, plan);
  const int64_t piece_rows = a.pieces * a.item_rows;
  a.out = poisoned(elements(rows * a.v_dim, 2));
  a.lse = static_cast<float*>(poisoned(elements(rows, 4)));
  a.piece_out = static_cast<float*>(poisoned(elements(piece_rows * a.v_dim, 4)));
  a.piece_lse = static_cast<float*>(poisoned(elements(piece_rows, 4)));
  const auto* lengths = static_cast<const int32_t*>(load(folder + "seqlens"));
  auto* seqlens = static_cast<int32_t*>(poisoned(elements(a.B, 4)));
  a.seqlens = seqlens;
  auto* schedule =
      static_cast<int32_t*>(steps == 0 ? load(folder + "schedule")
                                       : poisoned(elements(plan::mla_schedule_rows(a.items, parts), 16)));
  a.schedule = schedule;
  auto* tiles = static_cast<int32_t*>(poisoned(elements(a.items, 16)));
  auto* tile_lengths = static_cast<int32_t*>(poisoned(elements(a.items, 4)));
  if (is_ragged) a.tiles = tiles;

  cuda::EmulatedStream stream = {schedule_of(argv[24]), {}};
  stream.options.max_live_blocks = 16;  // of 384 threads each
  std::string error = cuda::why_not_mla_decode(a);
  for (int step = 0; error.empty() && (step == 0 || step < steps); ++step) {
    emu::copy_to(seqlens, lengths + step * a.B, elements(a.B, 4));
    if (is_ragged) error = cuda::launch_mla_tiles(a, tiles, tile_lengths, &stream);
    if (error.empty() && steps > 0)
      error = cuda::status_text(cuda::launch_mla_schedule({.seqlens = is_ragged ? tile_lengths : seqlens,
                                                           .B = a.items,
                                                           .rows = a.item_rows,
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
