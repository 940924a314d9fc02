// Argument checks. Every message reads "<op>: <argument>: expected <what>, got <what>[; <what to do>]", in
// the same words as python/moela/ops/_check.py; tests/ops/test_contract.py holds the two together.
//
// They throw std::invalid_argument, which torch hands to Python as ValueError with the message unchanged.
// STD_TORCH_CHECK would be a RuntimeError with a source line in it.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace moela {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class Expected, class Got>
[[noreturn]] void fail(const char* op, const char* arg, const Expected& expected, const Got& got,
                       const char* todo = "") {
  std::ostringstream message;
  message << op << ": " << arg << ": expected " << expected << ", got " << got;
  if (*todo) message << "; " << todo;
  throw std::invalid_argument(message.str());
}

inline const char* dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Byte: return "uint8";
    case ScalarType::Char: return "int8";
    case ScalarType::Short: return "int16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::Half: return "float16";
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::Bool: return "bool";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Float8_e5m2: return "float8_e5m2";
    case ScalarType::Float8_e4m3fn: return "float8_e4m3fn";
    case ScalarType::Float8_e5m2fnuz: return "float8_e5m2fnuz";
    case ScalarType::Float8_e4m3fnuz: return "float8_e4m3fnuz";
    case ScalarType::Float8_e8m0fnu: return "float8_e8m0fnu";
    default: return "another dtype";
  }
}

inline std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (int64_t size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

inline std::string shape_text(const Tensor& t) {
  std::string text = "[";
  for (int64_t i = 0; i < t.dim(); ++i) text += (i ? ", " : "") + std::to_string(t.size(i));
  return text + "]";
}

inline void check_dim(const char* op, const char* arg, const Tensor& t, int64_t dim) {
  if (t.dim() != dim) fail(op, arg, "a " + std::to_string(dim) + "-D tensor", std::to_string(t.dim()) + "-D");
}

inline void check_min_dim(const char* op, const char* arg, const Tensor& t, int64_t dim) {
  if (t.dim() < dim)
    fail(op, arg, "a tensor of at least " + std::to_string(dim) + " dimension" + (dim > 1 ? "s" : ""),
         std::to_string(t.dim()) + "-D");
}

inline void check_dtype(const char* op, const char* arg, ScalarType dtype,
                        std::initializer_list<ScalarType> allowed) {
  std::string words;
  for (const ScalarType* it = allowed.begin(); it != allowed.end(); ++it) {
    if (*it == dtype) return;
    if (it != allowed.begin()) words += it + 1 == allowed.end() ? " or " : ", ";
    words += dtype_name(*it);
  }
  fail(op, arg, words, dtype_name(dtype));
}

inline void check_shape(const char* op, const char* arg, const Tensor& t, const std::vector<int64_t>& shape) {
  bool same = t.dim() == static_cast<int64_t>(shape.size());
  for (size_t i = 0; same && i < shape.size(); ++i) same = t.size(static_cast<int64_t>(i)) == shape[i];
  if (!same) fail(op, arg, "shape " + shape_text(shape), shape_text(t));
}

// `size`, the extent of `arg` that is called `name`, is that of `owner`.
inline void check_same(const char* op, const char* arg, const char* name, int64_t size, int64_t wanted,
                       const char* owner) {
  if (size == wanted) return;
  const std::string prefix = std::string(name) + "=";
  fail(op, arg, prefix + std::to_string(wanted) + " (that of " + owner + ")", prefix + std::to_string(size));
}

inline void check_same_dtype(const char* op, const char* arg, ScalarType dtype, ScalarType wanted,
                             const char* owner) {
  if (dtype != wanted)
    fail(op, arg, std::string(dtype_name(wanted)) + " (that of " + owner + ")", dtype_name(dtype));
}

// The CPU kernels run on CPU tensors only; the dispatcher sees to the first argument, the rest is checked
// here.
inline void check_cpu(const char* op, const char* arg, const Tensor& t, const char* owner) {
  if (t.is_cpu()) return;
  const std::string todo = std::string("move ") + arg + " there";
  const std::string got = t.is_cuda() ? "cuda:" + std::to_string(t.get_device_index()) : "another";
  fail(op, arg, std::string("device cpu (that of ") + owner + ")", got, todo.c_str());
}

inline void check_last_dim_contiguous(const char* op, const char* arg, const Tensor& t) {
  const int64_t last = t.dim() - 1;
  // A dimension of one element has no meaningful stride.
  if (t.size(last) > 1 && t.stride(last) != 1)
    fail(op, arg, "a contiguous last dimension (stride 1)", "stride " + std::to_string(t.stride(last)),
         "call .contiguous()");
}

// What an _out variant is given to write rows to, which may be strided.
inline void check_rows_out(const char* op, const char* arg, const Tensor& t,
                           const std::vector<int64_t>& shape) {
  check_shape(op, arg, t, shape);
  check_cpu(op, arg, t, "the inputs");
  check_last_dim_contiguous(op, arg, t);
}

// What an _out variant is given to write to. The quantizing ops write it densely.
inline void check_out(const char* op, const char* arg, const Tensor& t, ScalarType dtype,
                      const std::vector<int64_t>& shape) {
  check_dtype(op, arg, t.scalar_type(), {dtype});
  check_shape(op, arg, t, shape);
  check_cpu(op, arg, t, "the inputs");
  if (!t.is_contiguous())
    fail(op, arg, "a contiguous tensor", "a strided one", "allocate it with torch.empty");
}

}  // namespace moela
