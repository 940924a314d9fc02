// TMA and bulk copies into shared memory: checked when they are issued, data move when the schedule lands
// them.
#include <cstring>

#include "emu/box.h"
#include "emu/world.h"

namespace moela::emu {
namespace {

// The blocks of the cluster that a copy goes to: the own one, or those of the mask.
std::vector<Block*> targets(uint32_t address, uint32_t mask, Where where) {
  Block* own = current().block;
  if (mask == 0) return {resolve_shared(address, 0, "a copy", where).block};
  std::vector<Block*> blocks;
  for (uint32_t r = 0; r < 16; ++r) {
    if (!(mask >> r & 1)) continue;
    if (r >= own->cluster->blocks.size())
      fail("bounds", "a multicast to rank " + std::to_string(r) + ", which the cluster does not have", where);
    blocks.push_back(own->cluster->blocks[r]);
  }
  return blocks;
}

struct Target {
  SharedRange data;
  Mbarrier* barrier;
};

// Checks and records the shared-memory side of a load into each target block.
std::vector<Target> open_targets(uint32_t smem, uint32_t barrier, uint32_t bytes, uint32_t mask,
                                 uint32_t alignment, const char* what, Where where) {
  std::vector<Target> all;
  if (smem % alignment)
    fail("alignment",
         std::string(what) + ": the shared address is not a multiple of " + std::to_string(alignment), where);
  for (Block* block : targets(smem, mask, where)) {
    const auto rank = static_cast<uint32_t>(block->cluster_rank + 1) << kRankShift;
    const uint32_t low = (1u << kRankShift) - 1;
    Mbarrier& b = find_mbarrier(resolve_shared((barrier & low) | rank, 8, what, where), what, where);
    check_published(b, what, where);
    const SharedRange data = resolve_shared((smem & low) | rank, bytes, what, where);
    access_shared(data, bytes, true, async_actor(b.traffic, b.phase + 1, AsyncSide::kShared, where), what,
                  where);
    if (world->options.schedule != Schedule::kEager) std::memset(data.data(), 0xFF, bytes);
    ++b.copies_in_phase;
    all.push_back({data, &b});
  }
  return all;
}

// Without a multicast the barrier is in the block that the data go to.
void check_same_block(uint32_t smem, uint32_t barrier, const char* what, Where where) {
  if (resolve_shared(smem, 0, what, where).block != resolve_shared(barrier, 8, what, where).block)
    fail("mbarrier", std::string(what) + " to one block that signals an mbarrier of another", where);
}

void read_global(const void* from, uint32_t bytes, Mbarrier& b, const char* what, Where where) {
  access_global(resolve_global(from, bytes, what, where), bytes, false,
                async_actor(b.traffic, b.phase + 1, AsyncSide::kGlobal, where), what, where);
}

}  // namespace

void check_cache_policy(uint64_t policy, Where where) {
  if (policy != kEvictFirst && policy != kEvictLast)
    fail("policy", "a cache policy that createpolicy has not made", where);
}

void tensor_load(uint32_t smem, const TensorMap* map, int rank, Coordinates at, uint32_t barrier,
                 uint32_t mask, Where where) {
  const char* what = "a TMA load";
  if (mask == 0) check_same_block(smem, barrier, what, where);
  const cuda::TensorSpec spec = spec_of(map, rank, where);
  const auto all = open_targets(smem, barrier, occupied_bytes(spec), mask, 128, what, where);
  read_tensor_map(map, all[0].barrier->traffic, all[0].barrier->phase + 1, where);
  each_row(spec, at, [&](uint32_t, uint32_t, const uint8_t* from, uint32_t bytes) {
    if (bytes > 0) read_global(from, bytes, *all[0].barrier, what, where);
  });
  start_copy({.land = [spec, at, all] {
    for (const Target& target : all) {
      uint8_t* smem_data = target.data.block->smem.data();
      each_row(spec, at, [&](uint32_t row, uint32_t skipped, const uint8_t* from, uint32_t inside) {
        const uint32_t row_bytes = spec.box[0] * cuda::element_bytes(spec.type);
        for (uint32_t b = 0; b < row_bytes; ++b) {
          const bool is_inside = b >= skipped && b - skipped < inside;
          smem_data[smem_byte(target.data.offset, row + b, spec.swizzle)] =
              is_inside ? from[b - skipped] : EMU_MUTANT(9, 0, 0xFF);
        }
      });
      complete_bytes(*target.barrier, cuda::box_bytes(spec));
    }
  }});
}

void bulk_load(uint32_t smem, const void* global, uint32_t bytes, uint32_t barrier, uint32_t mask,
               Where where) {
  const char* what = "a bulk load";
  if (bytes == 0 || bytes % 16 || reinterpret_cast<uintptr_t>(global) % 16)
    fail("alignment", "a bulk copy moves a multiple of 16 bytes at a multiple of 16", where);
  if (mask == 0) check_same_block(smem, barrier, what, where);
  const auto all = open_targets(smem, barrier, bytes, mask, 16, what, where);
  read_global(global, bytes, *all[0].barrier, what, where);
  start_copy({.land = [=] {
    for (const Target& target : all) {
      std::memcpy(target.data.data(), global, bytes);
      complete_bytes(*target.barrier, bytes);
    }
  }});
}

void bulk_copy_cluster(uint32_t to, uint32_t from, uint32_t bytes, uint32_t barrier, Where where) {
  const char* what = "a bulk copy to a block of the cluster";
  if (bytes == 0 || bytes % 16 || to % 16 || from % 16)
    fail("alignment", "a bulk copy moves a multiple of 16 bytes at a multiple of 16", where);
  if (to >> kRankShift != barrier >> kRankShift)
    fail("mbarrier", "a copy to one block that signals an mbarrier of another", where);
  const SharedRange source = resolve_own_shared(from, bytes, what, where);
  const uint32_t mask = to >> kRankShift ? 1u << ((to >> kRankShift) - 1) : 0;
  const auto all = open_targets(to, barrier, bytes, mask, 16, what, where);
  const Target target = all[0];
  access_shared(source, bytes, false,
                async_actor(target.barrier->traffic, target.barrier->phase + 1, AsyncSide::kShared, where),
                what, where);
  start_copy({.land = [=] {
    std::memcpy(target.data.data(), source.data(), bytes);
    complete_bytes(*target.barrier, bytes);
  }});
}

void store_async(uint32_t address, const void* value, uint32_t bytes, uint32_t barrier, Where where) {
  const uint32_t rank = address >> kRankShift;
  if (rank == 0 || rank != barrier >> kRankShift)
    fail("mbarrier", "st.async takes addresses of one block of the cluster, from mapa", where);
  const auto all = open_targets(address, barrier, bytes, 1u << (rank - 1), bytes, "st.async", where);
  std::vector<uint8_t> copy(static_cast<const uint8_t*>(value), static_cast<const uint8_t*>(value) + bytes);
  start_copy({.land = [copy, target = all[0]] {
    std::memcpy(target.data.data(), copy.data(), copy.size());
    complete_bytes(*target.barrier, static_cast<int64_t>(copy.size()));
  }});
}

}  // namespace moela::emu
