// The emulated tensor map: what cuTensorMapEncodeTiled is told, checked by the rules that it checks.
#pragma once

#include <cstdint>
#include <string>

#include "cuda/hopper/tensor_spec.h"

namespace moela::emu {

struct alignas(64) TensorMap {
  cuda::TensorSpec spec;
};

// "" or why the driver would refuse the map.
std::string encode_tensor_map(TensorMap* map, const cuda::TensorSpec& spec);

}  // namespace moela::emu
