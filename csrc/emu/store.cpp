// TMA and bulk copies from shared to global memory, plain and adding: groups that the issuing thread commits
// and waits for.
#include <cstring>

#include "emu/box.h"
#include "emu/convert.h"
#include "emu/world.h"

namespace moela::emu {
namespace {

// What a store does to each element of its target.
enum class Effect { kReplace, kAdd };

template <class T>
T load_as(const uint8_t* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <class T>
void store_as(uint8_t* to, T value) {
  std::memcpy(to, &value, sizeof value);
}

// One element of a reduction. Each is atomic; the order of several is the schedule's.
void add_element(cuda::ElementType type, uint8_t* to, const uint8_t* value) {
  switch (type) {
    case cuda::ElementType::kBFloat16:
      return store_as(
          to, bf16_of_float(float_of_bf16(load_as<uint16_t>(to)) + float_of_bf16(load_as<uint16_t>(value))));
    case cuda::ElementType::kFloat16:
      return store_as(
          to, f16_of_float(float_of_f16(load_as<uint16_t>(to)) + float_of_f16(load_as<uint16_t>(value))));
    case cuda::ElementType::kFloat32: return store_as(to, load_as<float>(to) + load_as<float>(value));
    default: return store_as(to, load_as<uint32_t>(to) + load_as<uint32_t>(value));
  }
}

// A thread's stores are two agents, created with its first store.
void prepare_stores(Fiber& f, Where where) {
  f.where = where;
  if (f.store_reads == 0) {
    const std::string of = " a bulk store of thread " + std::to_string(f.thread);
    f.store_reads = f.block->new_agent("the shared-memory side of" + of,
                                       "bulk_commit and bulk_wait_read by that thread, then a barrier");
    f.store_writes =
        f.block->new_agent("the global side of" + of,
                           "bulk_commit and bulk_wait (not bulk_wait_read) by that thread, then a release");
  }
  f.has_open_stores = true;
}

void read_shared_for_store(Fiber& f, SharedRange from, uint32_t bytes, const char* what, Where where) {
  access_shared(from, bytes, false, async_actor(f.store_reads, f.store_group + 1, AsyncSide::kShared, where),
                what, where);
}

void write_global_for_store(Fiber& f, const void* to, uint32_t bytes, Effect effect, const char* what,
                            Where where) {
  Actor actor = async_actor(f.store_writes, f.store_group + 1, AsyncSide::kGlobal, where);
  if (effect == Effect::kAdd) actor.access.proxy = Proxy::kReduce;
  const GlobalRange range = resolve_global(to, bytes, what, where);
  if (effect == Effect::kAdd) check_has_value(range, bytes, actor, what, where);
  access_global(range, bytes, true, actor, what, where);
}

// Bytes of one row, in order, from where the swizzle has put them.
void apply(Effect effect, cuda::ElementType type, uint8_t* to, const uint8_t* values, uint32_t bytes) {
  if (effect == Effect::kReplace || EMU_MUTANT(15, false, true)) {
    std::memcpy(to, values, bytes);
    return;
  }
  const uint32_t size = cuda::element_bytes(type);
  for (uint32_t at = 0; at < bytes; at += size) add_element(type, to + at, values + at);
}

void store_box(const TensorMap* map, int rank, Coordinates at, uint32_t smem, Effect effect, const char* what,
               Where where) {
  Fiber& f = current();
  prepare_stores(f, where);
  const cuda::TensorSpec spec = spec_of(map, rank, where);
  if (smem % 128)
    fail("alignment", std::string(what) + ": the shared address is not a multiple of 128", where);
  read_tensor_map(map, f.store_reads, f.store_group + 1, where);
  const SharedRange from = resolve_own_shared(smem, occupied_bytes(spec), what, where);
  read_shared_for_store(f, from, cuda::box_bytes(spec), what, where);
  each_row(spec, at, [&](uint32_t, uint32_t, const uint8_t* to, uint32_t bytes) {
    if (bytes > 0) write_global_for_store(f, to, bytes, effect, what, where);
  });
  start_copy({.land =
                  [=] {
                    std::vector<uint8_t> values(spec.box[0] * cuda::element_bytes(spec.type));
                    each_row(spec, at, [&](uint32_t row, uint32_t skipped, uint8_t* to, uint32_t bytes) {
                      for (uint32_t b = 0; b < bytes; ++b)
                        values[b] = from.block->smem[smem_byte(from.offset, row + skipped + b, spec.swizzle)];
                      apply(effect, spec.type, to, values.data(), bytes);
                    });
                  },
              .stores_of = &f,
              .group = f.store_group});
}

void store_bytes(void* global, uint32_t smem, uint32_t bytes, Effect effect, cuda::ElementType type,
                 const char* what, Where where) {
  if (bytes == 0 || bytes % 16 || smem % 16 || reinterpret_cast<uintptr_t>(global) % 16)
    fail("alignment", "a bulk copy moves a multiple of 16 bytes at a multiple of 16", where);
  Fiber& f = current();
  prepare_stores(f, where);
  const SharedRange from = resolve_own_shared(smem, bytes, what, where);
  read_shared_for_store(f, from, bytes, what, where);
  write_global_for_store(f, global, bytes, effect, what, where);
  start_copy({.land = [=] { apply(effect, type, static_cast<uint8_t*>(global), from.data(), bytes); },
              .stores_of = &f,
              .group = f.store_group});
}

}  // namespace

void tensor_store(const TensorMap* map, int rank, Coordinates at, uint32_t smem, Where where) {
  store_box(map, rank, at, smem, Effect::kReplace, "a TMA store", where);
}

void tensor_reduce_add(const TensorMap* map, int rank, Coordinates at, uint32_t smem, Where where) {
  if (map->spec.type == cuda::ElementType::kUint8)
    fail("reduce", "TMA adds elements of 2 or 4 bytes, and the tensor map has bytes", where);
  store_box(map, rank, at, smem, Effect::kAdd, "a TMA reduction", where);
}

void bulk_store(void* global, uint32_t smem, uint32_t bytes, Where where) {
  store_bytes(global, smem, bytes, Effect::kReplace, cuda::ElementType::kUint8, "a bulk store", where);
}

void bulk_reduce_add(void* global, uint32_t smem, uint32_t bytes, cuda::ElementType type, Where where) {
  store_bytes(global, smem, bytes, Effect::kAdd, type, "a bulk reduction", where);
}

void bulk_commit() {
  Fiber& f = current();
  ++f.store_group;
  f.has_open_stores = false;
}

void bulk_wait(int max_pending, bool is_read, Where where) {
  Fiber& f = current();
  if (f.has_open_stores) fail("exit", "a wait for bulk stores that are not committed", where);
  if (f.store_reads == 0 || f.store_group <= static_cast<uint32_t>(max_pending)) return;
  const uint32_t done = f.store_group - static_cast<uint32_t>(max_pending);
  land_stores(f, done);
  f.self.known.seen.set(f.store_reads, done);
  if (!is_read) f.self.known.seen.set(f.store_writes, done);
}

}  // namespace moela::emu
