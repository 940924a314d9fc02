// Tensor maps: the rules of the driver, and maps that kernels edit.
//
// A kernel's parameters cannot change. A map in device memory is read by TMA through a proxy of its own: who
// edits it must have seen the copies end that use it, and an edit reaches a copy through a release fence of
// the editor and an acquire fence, for this map, of the thread that issues the copy.
#include "emu/tensor_map.h"

#include <cstring>

#include "emu/world.h"

namespace moela::emu {
namespace {

constexpr uint32_t kMapBytes = 128, kWordBytes = 4;
static_assert(sizeof(TensorMap) == kMapBytes, "kernels copy a map as 128 bytes, as they do on a GPU");

// "" or what is wrong with the address and the strides: what a kernel can edit.
std::string geometry_fault(const cuda::TensorSpec& spec) {
  if (spec.rank < 1 || spec.rank > 5) return "the rank is not in 1..5";
  if (reinterpret_cast<uintptr_t>(spec.base) % 16) return "the global address is not a multiple of 16 bytes";
  for (int d = 0; d < spec.rank; ++d) {
    if (spec.dims[d] < 1 || spec.dims[d] > 1ull << 32) return "a dimension is not in 1..2^32";
    if (d > 0 && (spec.stride_bytes[d - 1] % 16 || spec.stride_bytes[d - 1] >= 1ull << 40))
      return "a stride is not a multiple of 16 bytes below 2^40";
  }
  return "";
}

void set_field(cuda::TensorSpec& spec, MapField field, int dim, uint64_t value, Where where) {
  if (field != MapField::kAddress && (dim < 0 || dim >= spec.rank))
    fail("bounds",
         "tensormap.replace of dimension " + std::to_string(dim) + " of a tensor map of rank " +
             std::to_string(spec.rank),
         where);
  if (field == MapField::kAddress) spec.base = reinterpret_cast<void*>(value);
  if (field == MapField::kSize) spec.dims[dim] = value;
  if (field == MapField::kStride) spec.stride_bytes[EMU_MUTANT(16, dim - 1, dim)] = value;
  if (const std::string fault = geometry_fault(spec); !fault.empty())
    fail("map", "tensormap.replace: " + fault, where);
}

void check_map_alignment(uintptr_t at, uintptr_t alignment, const char* what, Where where) {
  if (at % alignment)
    fail("alignment",
         std::string(what) + ": a tensor map is aligned to " + std::to_string(alignment) + " bytes", where);
}

}  // namespace

std::string encode_tensor_map(TensorMap* map, const cuda::TensorSpec& spec) {
  if (const std::string fault = geometry_fault(spec); !fault.empty()) return fault;
  const uint64_t element = cuda::element_bytes(spec.type);
  uint64_t bytes = element;
  for (int d = 0; d < spec.rank; ++d) {
    if (spec.box[d] < 1 || spec.box[d] > 256) return "a box dimension is not in 1..256";
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

cuda::TensorSpec spec_of(const TensorMap* map, int rank, Where where) {
  check_map_alignment(reinterpret_cast<uintptr_t>(map), alignof(TensorMap), "a copy", where);
  const cuda::TensorSpec spec = map->spec;
  if (spec.rank != rank)
    fail("bounds",
         "a copy of rank " + std::to_string(rank) + " with a tensor map of rank " + std::to_string(spec.rank),
         where);
  return spec;
}

void read_tensor_map(const TensorMap* map, Agent agent, uint32_t tick, Where where) {
  if (!is_allocated(map, kMapBytes)) return;  // a parameter of the kernel
  static const Clock kNothing;
  const Fiber& me = current();
  const auto acquired = me.acquired_maps.find(map);
  Actor actor = async_actor(agent, tick, AsyncSide::kGlobal, where);
  actor.fenced = acquired == me.acquired_maps.end() ? &kNothing : &acquired->second;
  actor.own_fenced = 0;  // by fence.proxy.async, which is for other memory
  actor.fence =
      "fence.proxy.tensormap (release by the writer, then acquire by the thread that issues the copy)";
  const char* what = "the tensor map of a copy";
  access_global(resolve_global(map, kMapBytes, what, where), kMapBytes, false, actor, what, where);
}

void edit_shared_tensor_map(uint32_t map, MapField field, int dim, uint64_t value, Where where) {
  const char* what = "tensormap.replace";
  check_map_alignment(map, alignof(TensorMap), what, where);
  const SharedRange range = resolve_own_shared(map, kMapBytes, what, where);
  const Actor actor = thread_actor(current(), where);
  access_shared(range, kMapBytes, false, actor, what, where);
  access_shared(range, kMapBytes, true, actor, what, where);
  TensorMap edited;
  std::memcpy(&edited, range.data(), kMapBytes);
  set_field(edited.spec, field, dim, value, where);
  std::memcpy(range.data(), &edited, kMapBytes);
}

void edit_global_tensor_map(TensorMap* map, MapField field, int dim, uint64_t value, Where where) {
  const char* what = "tensormap.replace";
  check_map_alignment(reinterpret_cast<uintptr_t>(map), alignof(TensorMap), what, where);
  const GlobalRange range = resolve_global(map, kMapBytes, what, where);
  const Actor actor = thread_actor(current(), where);
  access_global(range, kMapBytes, false, actor, what, where);
  access_global(range, kMapBytes, true, actor, what, where);
  set_field(map->spec, field, dim, value, where);
}

// Each lane moves a word and releases it; the instruction brings the lanes together.
void publish_tensor_map(TensorMap* to, uint32_t from, Where where) {
  const char* what = "tensormap.cp_fenceproxy";
  check_map_alignment(reinterpret_cast<uintptr_t>(to), kMapBytes, what, where);
  check_map_alignment(from, kMapBytes, what, where);
  const auto offset = static_cast<uint32_t>(current().thread % 32) * kWordBytes;
  const SharedRange source = resolve_own_shared(from + offset, kWordBytes, what, where);
  auto* target = reinterpret_cast<uint8_t*>(to) + offset;
  const GlobalRange range = resolve_global(target, kWordBytes, what, where);
  const Actor actor = thread_actor(current(), where);
  access_shared(source, kWordBytes, false, actor, what, where);
  access_global(range, kWordBytes, true, actor, what, where);
  std::memcpy(target, source.data(), kWordBytes);
  fence_tensor_map_release();
  warp_exchange(Collective::kPublishMap, nullptr, 0, where);
}

void fence_tensor_map_release() {
  Self& self = current().self;
  self.known.released_maps.join(self.known.seen);
  self.released_maps_tick = self.tick++;
}

void fence_tensor_map_acquire(const TensorMap* map, Where where) {
  check_map_alignment(reinterpret_cast<uintptr_t>(map), alignof(TensorMap), "fence.proxy.tensormap", where);
  Fiber& me = current();
  Clock& acquired = me.acquired_maps[map];
  acquired = me.self.known.released_maps;
  if (me.self.released_maps_tick > 0) acquired.set(me.self.agent, me.self.released_maps_tick);
}

}  // namespace moela::emu
