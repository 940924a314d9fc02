// The element types that the CPU kernels read and write.
#pragma once

namespace moela::cpu {

enum class Dtype { kFloat32, kBFloat16, kFloat16, kE4m3, kE8m0 };

}  // namespace moela::cpu
