// moela._plan: the plans as Python functions, for tests and for who wants to see what will run.
#include <pybind11/pybind11.h>

#include <sstream>

#include "plan/fp8_gemm.h"

namespace py = pybind11;
using moela::plan::Fp8GemmPlan;
using moela::plan::Fp8GemmShape;

PYBIND11_MODULE(_plan, m, py::mod_gil_not_used()) {
  py::class_<Fp8GemmPlan>(m, "Fp8GemmPlan")
      .def_property_readonly("path", [](const Fp8GemmPlan& p) { return moela::plan::name_of(p.path); })
      .def_readonly("rows_per_chunk", &Fp8GemmPlan::rows_per_chunk)
      .def_readonly("num_chunks", &Fp8GemmPlan::num_chunks)
      .def_readonly("num_tasks", &Fp8GemmPlan::num_tasks)
      .def("__repr__", [](const Fp8GemmPlan& p) {
        std::ostringstream text;
        text << "<" << p << ">";
        return text.str();
      });
  m.def(
      "plan_fp8_gemm",
      [](int64_t M, int64_t N, bool has_large_sf, int cols, int dot_rows) {
        return moela::plan::plan_fp8_gemm(M, N, has_large_sf,
                                          Fp8GemmShape{.cols = cols, .dot_rows = dot_rows});
      },
      py::arg("M"), py::arg("N"), py::kw_only(), py::arg("has_large_sf") = false, py::arg("cols"),
      py::arg("dot_rows"));
}
