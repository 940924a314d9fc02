// What launches need of torch and of the device, without linking libtorch_cuda: a CPU-only torch can then
// load libmoela_cuda too (docs/adr/0002).
#pragma once

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <stdexcept>
#include <string>

#include "common/tensor.h"

namespace moela {

inline cudaStream_t current_stream(int32_t device) {
  using StreamFn = AOTITorchError (*)(int32_t, void**);
  static const auto get = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_NOLOAD);
    return library ? reinterpret_cast<StreamFn>(dlsym(library, "aoti_torch_get_current_cuda_stream"))
                   : nullptr;
  }();
  void* stream = nullptr;
  if (get == nullptr || get(device, &stream) != 0)
    throw std::runtime_error("moela: this torch has no CUDA stream");
  return static_cast<cudaStream_t>(stream);
}

inline void check_launch(const char* op, cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(op) + ": " + cudaGetErrorString(error));
}

inline int num_multiprocessors(const char* op, int32_t device) {
  int count = 0;
  check_launch(op, cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

// Memory for one call. Whatever reuses it comes after the kernels of this stream.
inline Tensor empty_cuda(int64_t count, ScalarType dtype, int32_t device) {
  const int64_t stride = 1;
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(1, &count, &stride, shim_dtype(dtype),
                                                  aoti_torch_device_type_cuda(), device, &handle));
  return Tensor(handle);
}

}  // namespace moela
