// The element types that the quantizing kernels read.
#pragma once

namespace moela::cuda {

enum class QuantInput { kFloat32, kBFloat16, kFloat16 };

}  // namespace moela::cuda
