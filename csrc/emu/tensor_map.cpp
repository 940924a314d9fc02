#include "emu/tensor_map.h"

#include "emu/world.h"

namespace moela::emu {

std::string encode_tensor_map(TensorMap* map, const cuda::TensorSpec& spec) {
  const uint64_t element = cuda::element_bytes(spec.type);
  if (spec.rank < 1 || spec.rank > 5) return "the rank is not in 1..5";
  if (reinterpret_cast<uintptr_t>(spec.base) % 16) return "the global address is not a multiple of 16 bytes";
  uint64_t bytes = element;
  for (int d = 0; d < spec.rank; ++d) {
    if (spec.dims[d] < 1 || spec.dims[d] > 1ull << 32) return "a dimension is not in 1..2^32";
    if (spec.box[d] < 1 || spec.box[d] > 256) return "a box dimension is not in 1..256";
    if (d > 0 && (spec.stride_bytes[d - 1] % 16 || spec.stride_bytes[d - 1] >= 1ull << 40))
      return "a stride is not a multiple of 16 bytes below 2^40";
    bytes += (spec.dims[d] - 1) * (d == 0 ? element : spec.stride_bytes[d - 1]);
  }
  const uint64_t inner = spec.box[0] * element, span = static_cast<uint32_t>(spec.swizzle);
  if (inner % 16) return "the inner box is not a multiple of 16 bytes";
  if (span && inner > span)
    return "the inner box of " + std::to_string(inner) + " bytes exceeds the swizzle span of " +
           std::to_string(span);
  if (!is_allocated(spec.base, bytes)) return "the tensor reaches outside its allocation";
  map->spec = spec;
  return "";
}

}  // namespace moela::emu
