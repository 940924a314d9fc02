// From torch tensors to the plain pointers and ints that kernels take.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <vector>

#include "common/check.h"
#include "cpu/convert.h"
#include "cpu/dtype.h"

namespace moela {

inline cpu::Dtype cpu_dtype(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return cpu::Dtype::kFloat32;
    case ScalarType::BFloat16: return cpu::Dtype::kBFloat16;
    case ScalarType::Half: return cpu::Dtype::kFloat16;
    case ScalarType::Float8_e4m3fn: return cpu::Dtype::kE4m3;
    case ScalarType::Float8_e8m0fnu: return cpu::Dtype::kE8m0;
    default: throw std::logic_error("a dtype that the checks let through has no kernel");
  }
}

inline int32_t shim_dtype(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return aoti_torch_dtype_float32();
    case ScalarType::BFloat16: return aoti_torch_dtype_bfloat16();
    case ScalarType::Half: return aoti_torch_dtype_float16();
    case ScalarType::Float8_e4m3fn: return aoti_torch_dtype_float8_e4m3fn();
    case ScalarType::Int: return aoti_torch_dtype_int32();
    default: throw std::logic_error("no op returns this dtype");
  }
}

// An uninitialised contiguous CPU tensor. Through the C shim: torch::stable::empty goes through the
// dispatcher and costs 1.2 microseconds more.
inline Tensor empty_cpu(const std::vector<int64_t>& shape, int32_t dtype) {
  std::vector<int64_t> strides(shape.size());
  int64_t stride = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= shape[i] > 1 ? shape[i] : 1;
  }
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.data(),
                                                  strides.data(), dtype, aoti_torch_device_type_cpu(), 0,
                                                  &handle));
  return Tensor(handle);
}

inline Tensor empty_cpu(const std::vector<int64_t>& shape, ScalarType dtype) {
  return empty_cpu(shape, shim_dtype(dtype));
}

// Of t's dtype, whichever that is.
inline Tensor empty_cpu(const std::vector<int64_t>& shape, const Tensor& t) {
  int32_t dtype;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &dtype));
  return empty_cpu(shape, dtype);
}

inline std::vector<int64_t> sizes_of(const Tensor& t) {
  std::vector<int64_t> sizes(t.dim());
  for (size_t i = 0; i < sizes.size(); ++i) sizes[i] = t.size(static_cast<int64_t>(i));
  return sizes;
}

// [..., N, K] -> [..., ceil(N/128), ceil(K/128)]: the shape of the scale factors of 128 x 128 blocks.
inline std::vector<int64_t> block_grid(const Tensor& w) {
  std::vector<int64_t> grid = sizes_of(w);
  for (size_t i = grid.size() - 2; i < grid.size(); ++i) grid[i] = (grid[i] + 127) / 128;
  return grid;
}

// A tensor's values as contiguous float32: its own memory where it is that already, else a converted copy.
// For the small operands (scale factors, bias).
class Float32View {
 public:
  explicit Float32View(const Tensor& t) : Float32View(t, 0, 0) {}
  // Of t[index].
  Float32View(const Tensor& t, int64_t index) : Float32View(t, 1, index * t.stride(0)) {}
  const float* data() const { return data_; }

 private:
  // Dimensions `dim` and later, from element `offset` on.
  Float32View(const Tensor& t, int64_t dim, int64_t offset) {
    if (t.scalar_type() == ScalarType::Float && is_dense(t, dim)) {
      data_ = static_cast<const float*>(t.const_data_ptr()) + offset;
      return;
    }
    append(t, cpu_dtype(t.scalar_type()), dim, offset);
    data_ = copy_.data();
  }
  static bool is_dense(const Tensor& t, int64_t dim) {
    int64_t expected = 1;
    for (int64_t i = t.dim() - 1; i >= dim; --i) {
      if (t.size(i) > 1 && t.stride(i) != expected) return false;
      expected *= t.size(i);
    }
    return true;
  }
  void append(const Tensor& t, cpu::Dtype dtype, int64_t dim, int64_t offset) {
    if (dim == t.dim()) {
      copy_.push_back(load_float(t.const_data_ptr(), dtype, offset));
      return;
    }
    for (int64_t i = 0; i < t.size(dim); ++i) append(t, dtype, dim + 1, offset + i * t.stride(dim));
  }
  const float* data_ = nullptr;
  std::vector<float> copy_;
};

// The leading dimensions of a tensor as one: [..., rows] with one stride. A tensor whose leading dimensions
// have no common stride is copied.
struct FlatRows {
  FlatRows(const Tensor& t, int64_t kept_dims) : tensor(t) {
    const int64_t lead = t.dim() - kept_dims;
    for (int64_t i = 0; i < lead; ++i) count *= t.size(i);
    int64_t expected = -1;
    for (int64_t i = lead - 1; i >= 0; --i) {
      if (t.size(i) == 1) continue;
      if (expected == -1)
        stride = t.stride(i);
      else if (t.stride(i) != expected) {
        tensor = torch::stable::contiguous(t);
        break;
      }
      expected = t.stride(i) * t.size(i);
    }
    if (tensor.is_contiguous()) {
      stride = 1;
      for (int64_t i = lead; i < t.dim(); ++i) stride *= t.size(i);
    }
  }
  Tensor tensor;
  int64_t count = 1;
  int64_t stride = 0;
};

// Memory for one call, aligned to a cache line.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : data_(count == 0 ? nullptr
                         : static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64)),
              &std::free) {
    if (count != 0 && data_ == nullptr) throw std::bad_alloc();
  }
  T* get() const { return data_.get(); }

 private:
  std::unique_ptr<T, decltype(&std::free)> data_;
};

// Of this thread, and kept for its later calls while they need no more: for up to some megabytes.
inline float* scratch_of_thread(int64_t floats) {
  static thread_local Scratch<float> scratch(0);
  static thread_local int64_t size = 0;
  if (size < floats) {
    scratch = Scratch<float>(floats);
    size = floats;
  }
  return scratch.get();
}

inline Scratch<float> allocate_floats(int64_t count) { return Scratch<float>(count); }

// Runs f(begin, end) over [0, count) on torch's own threads. `cost` is the time of one item in nanoseconds,
// roughly: work below 50 microseconds is not worth a second thread.
//
// Each thread takes the next batch when it has done its last one. Equal shares, which parallel_for would
// give, make all wait for the slowest: an efficiency core, or one that another process is using.
template <class F>
void parallel(int64_t count, double cost, const F& f) {
  if (count == 0) return;
  const auto grain = static_cast<int64_t>(50e3 / (cost < 1e-3 ? 1e-3 : cost)) + 1;
  const int64_t most = static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t threads = count / grain < most ? count / grain : most;
  if (threads <= 1) {
    f(0, count);
    return;
  }
  constexpr int64_t kBatchesPerThread = 8;
  const int64_t batch = (count + threads * kBatchesPerThread - 1) / (threads * kBatchesPerThread);
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t begin; (begin = next.fetch_add(batch)) < count;)
      f(begin, begin + batch < count ? begin + batch : count);
  });
}

}  // namespace moela
