// Sums of the columns of groups of rows, as in the K-grouped product of a weight's gradient: groups of any
// size lie one after the other, and each block edits a tensor map of its own for each of its groups, so that
// what lies beyond a group is read as zero.
//
// The map of one group must not change while copies of the last one use it: a kernel that starts to edit when
// its last load is issued, not when it has landed, sums rows of another group now and then.
#pragma once

#include "bugs.h"
#include "cuda/hopper/hopper.h"

struct EditedMapsConfig {
  static constexpr int kColumns = 32, kBoxRows = 8, kStages = 2, kThreads = 64;
  static constexpr uint32_t kTileBytes = kBoxRows * kColumns * 4, kMap = kStages * kTileBytes,
                            kMapBytes = 128, kFull = kMap + kMapBytes, kEmpty = kFull + kStages * 8,
                            kSmemBytes = kEmpty + kStages * 8;
};

struct EditedMapsParams {
  moela::cuda::sm90::TensorMap rows;        // of x, with any number of rows
  const float* x;                           // [rows, kColumns]
  const int* offsets;                       // [groups + 1]
  moela::cuda::sm90::TensorMap* workspace;  // [num_blocks]
  float* sums;                              // [groups, kColumns]
  int num_groups;
  Bug bug;
};

namespace edited_maps {

using namespace moela::cuda::sm90;
using C = EditedMapsConfig;

// full[s]: one arrival, of the loading thread, with the bytes of a box. Warp 1 waits.
MOELA_DEVICE SmemAddr full(int stage) { return smem_base() + C::kFull + static_cast<uint32_t>(stage) * 8; }
// empty[s]: one arrival, of warp 1. The loading thread waits.
MOELA_DEVICE SmemAddr empty(int stage) { return smem_base() + C::kEmpty + static_cast<uint32_t>(stage) * 8; }

// Counts boxes; the stage and its parity follow.
struct Position {
  int count = 0;
  MOELA_DEVICE int stage() const { return count % C::kStages; }
  MOELA_DEVICE uint32_t parity() const { return static_cast<uint32_t>(count / C::kStages) & 1; }
};

// The whole of warp 0.
MOELA_DEVICE void publish_map(const EditedMapsParams& p, TensorMap* map, int begin, int rows) {
  const SmemAddr edited = smem_base() + C::kMap;
  if (lane() == 0) {
    tensor_map_set_address(edited, p.x + begin * C::kColumns);
    tensor_map_set_size<1>(edited, static_cast<uint32_t>(rows));
  }
  if (p.bug != Bug::kNoSyncBeforePublish) sync_warp();  // the edits of one lane come before the copy of all
  if (p.bug == Bug::kMapNotReleased) {
    if (lane() < 8)
      stg(reinterpret_cast<Vec4*>(map) + lane(), lds<Vec4>(edited + static_cast<uint32_t>(lane()) * 16));
    sync_warp();
  } else if (p.bug != Bug::kMapNotPublished) {
    tensor_map_publish(map, edited);
  }
}

// The last box of every stage has landed, in whatever order: nothing uses the map.
MOELA_DEVICE void wait_until_landed(const EditedMapsParams& p, const Position& next) {
  const int boxes = p.bug == Bug::kOnlyLastBoxAwaited ? 1 : C::kStages;
  for (int count = next.count < boxes ? 0 : next.count - boxes; count < next.count; ++count) {
    const Position box = {count};
    mbarrier_wait(full(box.stage()), box.parity());
  }
}

// Warp 0. All lanes follow the groups, one issues.
MOELA_DEVICE void load_groups(const EditedMapsParams& p) {
  TensorMap* map = p.workspace + (p.bug == Bug::kOneMapForAllBlocks ? 0 : block());
  Position at;
  for (int group = block(); group < p.num_groups; group += num_blocks()) {
    const int begin = ldg(p.offsets + group), rows = ldg(p.offsets + group + 1) - begin;
    if (rows == 0) continue;
    if (p.bug != Bug::kMapEditedInUse) wait_until_landed(p, at);
    publish_map(p, map, begin, rows);
    if (lane() == 0 && p.bug != Bug::kMapNotAcquired)
      fence_tensor_map_acquire(p.bug == Bug::kAnotherMapAcquired ? p.workspace + num_blocks() : map);
    for (int row = 0; row < rows; row += C::kBoxRows, ++at.count) {
      if (lane() != 0) continue;
      mbarrier_wait(empty(at.stage()), at.parity() ^ 1);
      mbarrier_arrive_expect_tx(full(at.stage()), C::kTileBytes);
      tma_load_2d(smem_base() + static_cast<uint32_t>(at.stage()) * C::kTileBytes, map, 0, row,
                  full(at.stage()));
    }
    sync_warp();
  }
}

// Warp 1: a lane per column.
MOELA_DEVICE void add_rows(const EditedMapsParams& p) {
  Position at;
  for (int group = block(); group < p.num_groups; group += num_blocks()) {
    const int rows = ldg(p.offsets + group + 1) - ldg(p.offsets + group);
    float sum = 0.f;
    for (int row = 0; row < rows; row += C::kBoxRows, ++at.count) {
      mbarrier_wait(full(at.stage()), at.parity());
      const SmemAddr tile = smem_base() + static_cast<uint32_t>(at.stage()) * C::kTileBytes;
      for (int r = 0; r < C::kBoxRows; ++r)
        sum += lds<float>(tile + static_cast<uint32_t>(r * C::kColumns + lane()) * 4);
      sync_warp();
      if (lane() == 0) mbarrier_arrive(empty(at.stage()));
    }
    stg(p.sums + group * C::kColumns + lane(), sum);
  }
}

}  // namespace edited_maps

MOELA_KERNEL(EditedMapsConfig::kThreads) edited_maps_kernel(MOELA_PARAM EditedMapsParams p) {
  using namespace edited_maps;
  if (tid() == 0) {
    for (int s = 0; s < C::kStages; ++s) {
      mbarrier_init(full(s), 1);
      mbarrier_init(empty(s), 1);
    }
    fence_mbarrier_init();
  }
  if (tid() < 8)
    sts(smem_base() + C::kMap + static_cast<uint32_t>(tid()) * 16,
        reinterpret_cast<const Vec4*>(&p.rows)[tid()]);
  sync_block();
  if (warp() == 0) {
    load_groups(p);
  } else {
    add_rows(p);
  }
}
