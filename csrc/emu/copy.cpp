// TMA and bulk copies: checked when they are issued, data move when the schedule lands them.
#include <algorithm>
#include <cstring>

#include "emu/layout.h"
#include "emu/world.h"

namespace moela::emu {
namespace {

constexpr uint32_t kSwizzledBytes = 16;  // what a swizzle moves as a whole

// Calls f(offset of the row in the box, bytes left of the tensor, global address, bytes inside the tensor)
// for every row of the box.
template <class F>
void each_row(const cuda::TensorSpec& s, const Coordinates& at, F f) {
  const auto element = static_cast<int64_t>(cuda::element_bytes(s.type));
  const uint32_t row_bytes = s.box[0] * static_cast<uint32_t>(element);
  const int64_t rows = cuda::box_bytes(s) / row_bytes;
  const int64_t width = static_cast<int64_t>(s.dims[0]) * element, first = at.at[0] * element;
  const int64_t low = std::max<int64_t>(first, 0), high = std::min(first + row_bytes, width);
  for (int64_t row = 0; row < rows; ++row) {
    bool is_inside = low < high;
    int64_t rest = row;
    auto* from = static_cast<uint8_t*>(s.base);
    for (int d = 1; d < s.rank; ++d) {
      const int64_t index = at.at[d] + rest % s.box[d];
      rest /= s.box[d];
      is_inside &= index >= 0 && index < static_cast<int64_t>(s.dims[d]);
      from += index * static_cast<int64_t>(s.stride_bytes[d - 1]);
    }
    f(static_cast<uint32_t>(row * row_bytes), static_cast<uint32_t>(low - first), from + low,
      is_inside ? static_cast<uint32_t>(high - low) : 0u);
  }
}

// The byte of shared memory that holds byte `in_box` of the box at `offset`.
uint32_t smem_byte(uint32_t offset, uint32_t in_box, cuda::Swizzle swizzle) {
  const uint32_t address = kSmemWindow + offset + in_box;
  return swizzled(address / kSwizzledBytes * kSwizzledBytes, static_cast<uint32_t>(swizzle)) +
         address % kSwizzledBytes - kSmemWindow;
}

// A swizzled box occupies whole 128-byte rows of chunks, also where its own rows are shorter.
uint32_t occupied_bytes(const cuda::TensorSpec& s) {
  const uint32_t bytes = cuda::box_bytes(s);
  return s.swizzle == cuda::Swizzle::kNone ? bytes : (bytes + 127) / 128 * 128;
}

void check_rank(const TensorMap* map, int rank, Where where) {
  if (map->spec.rank != rank)
    fail("bounds",
         "a copy of rank " + std::to_string(rank) + " with a tensor map of rank " +
             std::to_string(map->spec.rank),
         where);
}

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
    if (!b.is_fenced)
      fail("proxy",
           std::string(what) + " signals the mbarrier at " + smem_name(*block, b.offset) +
               ", whose initialisation no fence has followed",
           where);
    const SharedRange data = resolve_shared((smem & low) | rank, bytes, what, where);
    access_shared(data, bytes, true,
                  async_actor(b.traffic, b.phase + 1, &current().self.known.fenced_shared, where), what,
                  where);
    if (world->options.schedule != Schedule::kEager) std::memset(data.data(), 0xFF, bytes);
    ++b.copies_in_phase;
    all.push_back({data, &b});
  }
  return all;
}

void read_global(const void* from, uint32_t bytes, Mbarrier& b, const char* what, Where where) {
  access_global(resolve_global(from, bytes, what, where), bytes, false,
                async_actor(b.traffic, b.phase + 1, &current().self.known.fenced_global, where), what, where);
}

// A thread's stores are two agents, created with its first store.
void prepare_stores(Fiber& f, Where where) {
  f.where = where;
  if (f.store_reads == 0) {
    const std::string of = " a bulk store of thread " + std::to_string(f.thread);
    f.store_reads = f.block->new_agent("the shared-memory side of" + of);
    f.store_writes = f.block->new_agent("the global side of" + of);
  }
  f.has_open_stores = true;
}

void read_shared_for_store(Fiber& f, SharedRange from, uint32_t bytes, const char* what, Where where) {
  access_shared(from, bytes, false,
                async_actor(f.store_reads, f.store_group + 1, &f.self.known.fenced_shared, where), what,
                where);
}

void write_global_for_store(Fiber& f, const void* to, uint32_t bytes, const char* what, Where where) {
  access_global(resolve_global(to, bytes, what, where), bytes, true,
                async_actor(f.store_writes, f.store_group + 1, &f.self.known.fenced_global, where), what,
                where);
}

}  // namespace

void tensor_load(uint32_t smem, const TensorMap* map, int rank, Coordinates at, uint32_t barrier,
                 uint32_t mask, Where where) {
  const char* what = "a TMA load";
  check_rank(map, rank, where);
  const cuda::TensorSpec spec = map->spec;
  const auto all = open_targets(smem, barrier, occupied_bytes(spec), mask, 128, what, where);
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
  const SharedRange source = resolve_shared(from, bytes, what, where);
  const uint32_t mask = to >> kRankShift ? 1u << ((to >> kRankShift) - 1) : 0;
  const auto all = open_targets(to, barrier, bytes, mask, 16, what, where);
  const Target target = all[0];
  access_shared(source, bytes, false,
                async_actor(target.barrier->traffic, target.barrier->phase + 1,
                            &current().self.known.fenced_shared, where),
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

void tensor_store(const TensorMap* map, int rank, Coordinates at, uint32_t smem, Where where) {
  const char* what = "a TMA store";
  check_rank(map, rank, where);
  if (smem % 128) fail("alignment", "a TMA store: the shared address is not a multiple of 128", where);
  Fiber& f = current();
  prepare_stores(f, where);
  const cuda::TensorSpec spec = map->spec;
  const SharedRange from = resolve_shared(smem, occupied_bytes(spec), what, where);
  read_shared_for_store(f, from, cuda::box_bytes(spec), what, where);
  each_row(spec, at, [&](uint32_t, uint32_t, const uint8_t* to, uint32_t bytes) {
    if (bytes > 0) write_global_for_store(f, to, bytes, what, where);
  });
  start_copy({.land =
                  [=] {
                    each_row(spec, at, [&](uint32_t row, uint32_t skipped, uint8_t* to, uint32_t bytes) {
                      for (uint32_t b = 0; b < bytes; ++b)
                        to[b] = from.block->smem[smem_byte(from.offset, row + skipped + b, spec.swizzle)];
                    });
                  },
              .stores_of = &f,
              .group = f.store_group});
}

void bulk_store(void* global, uint32_t smem, uint32_t bytes, Where where) {
  const char* what = "a bulk store";
  if (bytes == 0 || bytes % 16 || smem % 16 || reinterpret_cast<uintptr_t>(global) % 16)
    fail("alignment", "a bulk copy moves a multiple of 16 bytes at a multiple of 16", where);
  Fiber& f = current();
  prepare_stores(f, where);
  const SharedRange from = resolve_shared(smem, bytes, what, where);
  read_shared_for_store(f, from, bytes, what, where);
  write_global_for_store(f, global, bytes, what, where);
  start_copy(
      {.land = [=] { std::memcpy(global, from.data(), bytes); }, .stores_of = &f, .group = f.store_group});
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
