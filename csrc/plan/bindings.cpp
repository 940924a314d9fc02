// moela._plan: the plans as Python functions, for tests and for who wants to see what will run.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <iterator>
#include <sstream>
#include <vector>

#include "plan/ep_rows_sm90.h"
#include "plan/fp8_gemm_sm90.h"
#include "plan/fused_experts.h"
#include "plan/grouped_fp8_gemm_sm90.h"
#include "plan/grouped_gemm.h"
#include "plan/mla_decode_sm90.h"
#include "plan/mla_sparse_sm90.h"

namespace py = pybind11;
using moela::plan::EpRowsSm90Plan;
using moela::plan::Fp8GemmSm90Plan;
using moela::plan::FusedExpertsPlan;
using moela::plan::GemmRowChunk;
using moela::plan::GemmSm90Tile;
using moela::plan::GroupedFp8GemmSm90Plan;
using moela::plan::GroupedGemmPlan;
using moela::plan::MlaDecodeSm90Plan;
using moela::plan::MlaSparseSm90Plan;

namespace {

template <class T>
std::string printed(const T& value) {
  std::ostringstream text;
  text << "<" << value << ">";
  return text.str();
}

}  // namespace

PYBIND11_MODULE(_plan, m, py::mod_gil_not_used()) {
  py::class_<GemmRowChunk>(m, "GemmRowChunk")
      .def_readonly("problem", &GemmRowChunk::problem)
      .def_property_readonly("path", [](const GemmRowChunk& c) { return moela::plan::name_of(c.path); })
      .def_readonly("m0", &GemmRowChunk::m0)
      .def_readonly("num_rows", &GemmRowChunk::num_rows)
      .def_readonly("row_of_wave", &GemmRowChunk::row_of_wave);
  py::class_<GroupedGemmPlan>(m, "GroupedGemmPlan")
      .def_readonly("chunks", &GroupedGemmPlan::chunks)
      .def_readonly("waves", &GroupedGemmPlan::waves)
      .def_readonly("rows_per_wave", &GroupedGemmPlan::rows_per_wave)
      .def_readonly("num_tasks", &GroupedGemmPlan::num_tasks)
      .def("__repr__", printed<GroupedGemmPlan>);
  m.def(
      "plan_grouped_gemm",
      [](const std::vector<int64_t>& num_rows, int64_t N, int64_t bytes_per_row, bool needs_panel,
         bool is_bf16, int cols, int dot_rows, bool has_bf16) {
        std::vector<moela::plan::GemmRows> problems;
        for (int64_t count : num_rows)
          problems.push_back({.count = count, .needs_panel = needs_panel, .is_bf16 = is_bf16});
        return moela::plan::plan_grouped_gemm(problems, N, bytes_per_row,
                                              {.cols = cols, .dot_rows = dot_rows, .has_bf16 = has_bf16});
      },
      py::arg("num_rows"), py::arg("N"), py::arg("bytes_per_row"), py::kw_only(),
      py::arg("needs_panel") = false, py::arg("is_bf16") = false, py::arg("cols"), py::arg("dot_rows"),
      py::arg("has_bf16") = false);
  py::class_<FusedExpertsPlan>(m, "FusedExpertsPlan")
      .def_readonly("num_chunks", &FusedExpertsPlan::num_chunks)
      .def_readonly("tokens_per_chunk", &FusedExpertsPlan::tokens_per_chunk)
      .def("__repr__", printed<FusedExpertsPlan>);
  m.def("plan_fused_experts", moela::plan::plan_fused_experts, py::arg("num_tokens"), py::arg("hidden"));
  m.def("fused_experts_row_bytes", moela::plan::fused_experts_row_bytes, py::arg("hidden"),
        py::arg("intermediate"));
  py::class_<GemmSm90Tile>(m, "GemmSm90Tile")
      .def_readonly("swaps", &GemmSm90Tile::swaps)
      .def_property_readonly("block_left", &GemmSm90Tile::block_left)
      .def_readonly("block_right", &GemmSm90Tile::block_right)
      .def_readonly("cluster", &GemmSm90Tile::cluster)
      .def_property_readonly("cluster_left", &GemmSm90Tile::cluster_left)
      .def_property_readonly("cluster_right", &GemmSm90Tile::cluster_right)
      .def_readonly("splits", &GemmSm90Tile::splits)
      .def_readonly("stages", &GemmSm90Tile::stages)
      .def("__repr__", printed<GemmSm90Tile>);
  m.attr("GEMM_SM90_TILES") = py::cast(std::vector<GemmSm90Tile>(std::begin(moela::plan::kGemmSm90Tiles),
                                                                 std::end(moela::plan::kGemmSm90Tiles)));
  py::class_<Fp8GemmSm90Plan>(m, "Fp8GemmSm90Plan")
      .def_property_readonly("tile",
                             [](const Fp8GemmSm90Plan& p) { return moela::plan::kGemmSm90Tiles[p.tile]; })
      .def_readonly("splits", &Fp8GemmSm90Plan::splits)
      .def_readonly("tiles_left", &Fp8GemmSm90Plan::tiles_left)
      .def_readonly("tiles_right", &Fp8GemmSm90Plan::tiles_right)
      .def_readonly("cluster", &Fp8GemmSm90Plan::cluster)
      .def_readonly("grid", &Fp8GemmSm90Plan::grid)
      .def_readonly("microseconds", &Fp8GemmSm90Plan::microseconds)
      .def("__repr__", printed<Fp8GemmSm90Plan>);
  m.def("gemm_sm90_splits", moela::plan::gemm_sm90_splits, py::arg("N"), py::arg("K"));
  m.def(
      "plan_fp8_gemm_sm90",
      [](int64_t M, int64_t N, int64_t K, int num_sms) {
        return moela::plan::plan_fp8_gemm_sm90(M, N, K, {.num_sms = num_sms});
      },
      py::arg("M"), py::arg("N"), py::arg("K"), py::kw_only(), py::arg("num_sms") = 132);
  py::class_<GroupedFp8GemmSm90Plan>(m, "GroupedFp8GemmSm90Plan")
      .def_property_readonly(
          "tile", [](const GroupedFp8GemmSm90Plan& p) { return moela::plan::kGemmSm90Tiles[p.tile]; })
      .def_readonly("splits", &GroupedFp8GemmSm90Plan::splits)
      .def_readonly("cluster", &GroupedFp8GemmSm90Plan::cluster)
      .def_readonly("grid", &GroupedFp8GemmSm90Plan::grid)
      .def_readonly("microseconds", &GroupedFp8GemmSm90Plan::microseconds)
      .def("__repr__", printed<GroupedFp8GemmSm90Plan>);
  m.def(
      "plan_grouped_fp8_gemm_sm90",
      [](int64_t M, int64_t N, int64_t K, int64_t E, bool is_masked, int num_sms) {
        return moela::plan::plan_grouped_fp8_gemm_sm90({M, E, is_masked}, N, K, {.num_sms = num_sms});
      },
      py::arg("M"), py::arg("N"), py::arg("K"), py::arg("E"), py::kw_only(), py::arg("is_masked") = false,
      py::arg("num_sms") = 132);
  py::class_<MlaDecodeSm90Plan>(m, "MlaDecodeSm90Plan")
      .def_readonly("items", &MlaDecodeSm90Plan::items)
      .def_readonly("item_rows", &MlaDecodeSm90Plan::item_rows)
      .def_readonly("tiles", &MlaDecodeSm90Plan::tiles)
      .def_readonly("tile_rows", &MlaDecodeSm90Plan::tile_rows)
      .def_readonly("num_parts", &MlaDecodeSm90Plan::num_parts)
      .def_readonly("key_box", &MlaDecodeSm90Plan::key_box)
      .def_readonly("query_box", &MlaDecodeSm90Plan::query_box)
      .def("__repr__", printed<MlaDecodeSm90Plan>);
  m.def(
      "plan_mla_decode_sm90",
      [](int64_t s_q, int64_t H, int64_t B, int64_t page_size, bool is_paged, bool is_ragged, bool has_bytes,
         bool has_rope, bool has_packed_rows, bool batch_invariant, int num_sms) {
        return moela::plan::plan_mla_decode_sm90({.B = B,
                                                  .s_q = s_q,
                                                  .H = H,
                                                  .capacity = 0,
                                                  .page_size = page_size,
                                                  .is_paged = is_paged,
                                                  .is_ragged = is_ragged,
                                                  .has_bytes = has_bytes,
                                                  .has_rope = has_rope,
                                                  .has_packed_rows = has_packed_rows,
                                                  .batch_invariant = batch_invariant},
                                                 num_sms);
      },
      py::arg("s_q"), py::arg("H"), py::kw_only(), py::arg("B") = 1, py::arg("page_size") = 64,
      py::arg("is_paged") = true, py::arg("is_ragged") = false, py::arg("has_bytes") = false,
      py::arg("has_rope") = true, py::arg("has_packed_rows") = true, py::arg("batch_invariant") = false,
      py::arg("num_sms") = 132);
  m.def(
      "mla_decode_sm90_pieces",
      [](int64_t B, int64_t capacity, int num_parts, bool batch_invariant) {
        const moela::plan::MlaDecodeSm90Problem problem = {.B = B,
                                                           .s_q = 1,
                                                           .H = 1,
                                                           .capacity = capacity,
                                                           .page_size = capacity,
                                                           .is_paged = false,
                                                           .is_ragged = false,
                                                           .has_bytes = false,
                                                           .has_rope = true,
                                                           .has_packed_rows = true,
                                                           .batch_invariant = batch_invariant};
        return moela::plan::mla_decode_sm90_pieces(problem,
                                                   moela::plan::plan_mla_decode_sm90(problem, num_parts));
      },
      py::arg("B"), py::arg("capacity"), py::arg("num_parts"), py::arg("batch_invariant"));
  py::class_<MlaSparseSm90Plan>(m, "MlaSparseSm90Plan")
      .def_readonly("tiles", &MlaSparseSm90Plan::tiles)
      .def_readonly("pieces", &MlaSparseSm90Plan::pieces)
      .def_readonly("piece_blocks", &MlaSparseSm90Plan::piece_blocks)
      .def_readonly("grid", &MlaSparseSm90Plan::grid)
      .def_readonly("microseconds", &MlaSparseSm90Plan::microseconds)
      .def("__repr__", printed<MlaSparseSm90Plan>);
  m.def(
      "plan_mla_sparse_sm90",
      [](int64_t T, int64_t H, int64_t topk, int64_t v_dim, int num_sms) {
        return moela::plan::plan_mla_sparse_sm90({.T = T, .H = H, .topk = topk, .v_dim = v_dim}, num_sms);
      },
      py::arg("T"), py::arg("H"), py::arg("topk"), py::kw_only(), py::arg("v_dim") = 512,
      py::arg("num_sms") = 132);
  py::class_<EpRowsSm90Plan>(m, "EpRowsSm90Plan")
      .def_readonly("warps", &EpRowsSm90Plan::warps)
      .def_readonly("row_bytes", &EpRowsSm90Plan::row_bytes)
      .def_readonly("smem_bytes", &EpRowsSm90Plan::smem_bytes)
      .def_readonly("grid", &EpRowsSm90Plan::grid)
      .def("__repr__", printed<EpRowsSm90Plan>);
  m.def("plan_ep_rows_sm90", &moela::plan::plan_ep_rows_sm90, py::arg("row_bytes"), py::arg("rows"),
        py::kw_only(), py::arg("num_ranks") = 8, py::arg("num_blocks") = 132);
}
