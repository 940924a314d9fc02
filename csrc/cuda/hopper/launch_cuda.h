// The CUDA body of launch.h.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <string>

#include "cuda/hopper/shape.h"
#include "cuda/hopper/tensor_spec.h"

namespace moela::cuda {

using Stream = cudaStream_t;
using LaunchStatus = cudaError_t;

// Runs kernel(args...) on the stream. The arguments must have the kernel's parameter types.
template <class... Params>
LaunchStatus launch(const LaunchShape& shape, Stream stream, void (*kernel)(Params...), Params... args) {
  constexpr uint32_t kSmemWithoutOptIn = 48 * 1024;
  if (shape.smem_bytes > kSmemWithoutOptIn) {
    const cudaError_t error =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.smem_bytes));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {static_cast<unsigned>(shape.cluster), 1, 1};
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = shape.overlaps_previous;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(shape.grid));
  config.blockDim = dim3(static_cast<unsigned>(shape.block));
  config.dynamicSmemBytes = shape.smem_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  void* pointers[] = {static_cast<void*>(&args)...};
  const cudaError_t error = cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), pointers);
  return error != cudaSuccess ? error : cudaGetLastError();
}

// "" or what the runtime says.
inline std::string status_text(LaunchStatus status) {
  return status == cudaSuccess ? "" : cudaGetErrorString(status);
}

// "" or why the driver refuses the map. The driver is found at run time: nothing links against it.
inline std::string encode_tensor_map(CUtensorMap* map, const TensorSpec& spec) {
  using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                              const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                              CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
  static const Encode encode = [] {
    constexpr unsigned kFirstVersion = 12000;
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, kFirstVersion,
                                         cudaEnableDefault, &result) != cudaSuccess)
      function = nullptr;
    return reinterpret_cast<Encode>(function);
  }();
  if (encode == nullptr) return "the driver has no cuTensorMapEncodeTiled";
  constexpr CUtensorMapDataType kTypes[] = {CU_TENSOR_MAP_DATA_TYPE_UINT8, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                                            CU_TENSOR_MAP_DATA_TYPE_FLOAT16, CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
                                            CU_TENSOR_MAP_DATA_TYPE_INT32};
  const CUtensorMapSwizzle swizzle = spec.swizzle == Swizzle::kNone  ? CU_TENSOR_MAP_SWIZZLE_NONE
                                     : spec.swizzle == Swizzle::k32B ? CU_TENSOR_MAP_SWIZZLE_32B
                                     : spec.swizzle == Swizzle::k64B ? CU_TENSOR_MAP_SWIZZLE_64B
                                                                     : CU_TENSOR_MAP_SWIZZLE_128B;
  cuuint64_t dims[5], strides[4];
  cuuint32_t box[5], steps[5] = {1, 1, 1, 1, 1};
  for (int d = 0; d < spec.rank; ++d) {
    dims[d] = spec.dims[d];
    box[d] = spec.box[d];
    if (d > 0) strides[d - 1] = spec.stride_bytes[d - 1];
  }
  const CUresult result = encode(map, kTypes[static_cast<int>(spec.type)], static_cast<cuuint32_t>(spec.rank),
                                 spec.base, dims, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? ""
                                : "cuTensorMapEncodeTiled: error " + std::to_string(static_cast<int>(result));
}

}  // namespace moela::cuda
