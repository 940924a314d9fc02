// moela._plan: the plans as Python functions, for tests and for who wants to see what will run.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <iterator>
#include <sstream>
#include <vector>

#include "plan/fp8_gemm.h"
#include "plan/fp8_gemm_sm90.h"
#include "plan/grouped_fp8_gemm_sm90.h"

namespace py = pybind11;
using moela::plan::Fp8GemmPlan;
using moela::plan::Fp8GemmShape;
using moela::plan::Fp8GemmSm90Plan;
using moela::plan::GemmSm90Tile;
using moela::plan::GroupedFp8GemmSm90Plan;

namespace {

template <class T>
std::string printed(const T& value) {
  std::ostringstream text;
  text << "<" << value << ">";
  return text.str();
}

}  // namespace

PYBIND11_MODULE(_plan, m, py::mod_gil_not_used()) {
  py::class_<Fp8GemmPlan>(m, "Fp8GemmPlan")
      .def_property_readonly("path", [](const Fp8GemmPlan& p) { return moela::plan::name_of(p.path); })
      .def_readonly("rows_per_chunk", &Fp8GemmPlan::rows_per_chunk)
      .def_readonly("num_chunks", &Fp8GemmPlan::num_chunks)
      .def_readonly("num_tasks", &Fp8GemmPlan::num_tasks)
      .def("__repr__", printed<Fp8GemmPlan>);
  m.def(
      "plan_fp8_gemm",
      [](int64_t M, int64_t N, bool has_large_sf, int cols, int dot_rows) {
        return moela::plan::plan_fp8_gemm(M, N, has_large_sf,
                                          Fp8GemmShape{.cols = cols, .dot_rows = dot_rows});
      },
      py::arg("M"), py::arg("N"), py::kw_only(), py::arg("has_large_sf") = false, py::arg("cols"),
      py::arg("dot_rows"));
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
}
