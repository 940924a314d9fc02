// The CUDA mla_sparse on the host:
//   mla_sparse <dtype 0..1> <has bytes> <T> <H> <D> <v_dim> <topk> <stride_qt> <stride_qh>
//              <num_pages> <page_size> <stride_page> <stride_slot> <stride_it> <stride_lt> <stride_sh>
//              <sm_scale> <pieces> <num_sms> <schedule> <folder>
// Reads q, cache, indices and, if they are there, topk_length and attn_sink from files of these names in the
// folder, writes out and lse there; pieces of 0 are the plan's choice. Prints the plan, then "right" or the
// report.
#include <filesystem>
#include <iostream>
#include <string>

#include "cuda/mla_sparse/mla_sparse_launch.h"
#include "files.h"
#include "schedule.h"

int main(int, char** argv) {
  using namespace moela;
  const auto number = [&](int i) { return std::stoi(argv[i]); };
  const std::string folder = std::string(argv[21]) + "/";
  const auto load_if_there = [&](const char* name) -> const void* {
    return std::filesystem::exists(folder + name) ? load(folder + name) : nullptr;
  };
  cuda::MlaSparseArgs a = {
      .dtype = static_cast<cuda::MlaFloat>(number(1)),
      .q = load(folder + "q"),
      .stride_qt = number(8),
      .stride_qh = number(9),
      .has_bytes = number(2) != 0,
      .cache = load(folder + "cache"),
      .num_pages = number(10),
      .page_size = number(11),
      .stride_page = number(12),
      .stride_slot = number(13),
      .indices = static_cast<const int32_t*>(load(folder + "indices")),
      .stride_it = number(14),
      .topk_length = static_cast<const int32_t*>(load_if_there("topk_length")),
      .stride_lt = number(15),
      .attn_sink = static_cast<const float*>(load_if_there("attn_sink")),
      .stride_sh = number(16),
      .sm_scale = std::stof(argv[17]),
      .T = number(3),
      .H = number(4),
      .D = number(5),
      .topk = number(7),
      .v_dim = number(6),
      .out = nullptr,
      .lse = nullptr,
      .piece_out = nullptr,
      .piece_lse = nullptr,
  };
  const plan::MlaSparseSm90Problem problem = {a.T, a.H, a.topk, a.v_dim};
  const plan::MlaSparseSm90Plan plan = number(18) == 0
                                           ? plan::plan_mla_sparse_sm90(problem, number(19))
                                           : plan::mla_sparse_sm90_plan_with(number(18), problem, number(19));
  std::cout << plan << "\n";
  const auto rows = static_cast<size_t>(a.T) * static_cast<size_t>(a.H);
  const size_t out_bytes = rows * static_cast<size_t>(a.v_dim) * 2, lse_bytes = rows * 4;
  const auto pieces = static_cast<size_t>(plan.pieces);
  a.out = poisoned(out_bytes);
  a.lse = static_cast<float*>(poisoned(lse_bytes));
  a.piece_out = static_cast<float*>(poisoned(2 * pieces * out_bytes));
  a.piece_lse = static_cast<float*>(poisoned(pieces * lse_bytes));
  cuda::EmulatedStream stream = {schedule_of(argv[20]), {}};
  std::string error = cuda::why_not_mla_sparse(a);
  if (error.empty()) error = cuda::launch_mla_sparse(a, plan, &stream);
  save(folder + "out", a.out, out_bytes);
  save(folder + "lse", a.lse, lse_bytes);
  std::cout << (error.empty() ? "right" : error + "\n" + stream.report.text) << "\n";
  return 0;
}
