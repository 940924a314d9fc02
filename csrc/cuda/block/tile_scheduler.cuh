// Which tiles a cluster works on, one after the other: of one matrix, of groups of rows, or of sums over
// groups of columns. Tile number t of the whole goes to cluster t mod clusters, so every cluster gets as many
// tiles as any other, give or take one, however uneven the groups are. Group sizes are read on the device.
#pragma once

#include "cuda/block/tile_schedule.h"
#include "cuda/hopper/hopper.h"

namespace moela::cuda::sm90 {

struct ScheduledTile {
  int group;
  int begin, end;   // of the group: rows, or columns for kColumns
  int left, right;  // which of the group's clusters, along either operand
};

// Tile `index` of `left` x `right`. Clusters side by side in time are kBand of the left operand by some of
// the right one: their operands stay in L2.
MOELA_DEVICE void place_tile(int index, int left, int right, ScheduledTile* tile) {
  constexpr int kBand = 8;
  const int band = index / (kBand * right) * kBand;
  const int height = left - band < kBand ? left - band : kBand;
  const int in_band = index - band * right;
  tile->left = band + in_band % height;
  tile->right = in_band / height;
}

// All lanes of a warp, in step. A warp looks at 32 groups at a time, one per lane: a load and five shuffles,
// however many of them are empty. It keeps three registers while a tile is computed.
template <bool kIsGrouped>
class TileScheduler {
 public:
  MOELA_DEVICE explicit TileScheduler(const TileSchedule& s) : s_(s), index_(cluster()) {
    if constexpr (kIsGrouped) look_at_groups();
  }

  // False: there are no more.
  MOELA_DEVICE bool next(ScheduledTile* tile) {
    int first = 0;  // tile of the group
    *tile = {.group = 0, .begin = 0, .end = s_.rows, .left = 0, .right = 0};
    if constexpr (kIsGrouped)
      if (!find_group(tile, &first)) return false;
    const int along = tiles_along(tile->begin, tile->end), index = index_ - first;
    if (index >= along * s_.clusters_other) return false;
    if (s_.rows_are_left) {
      place_tile(index, along, s_.clusters_other, tile);
    } else {
      place_tile(index, s_.clusters_other, along, tile);
    }
    index_ += num_blocks() / cluster_size();
    return true;
  }

 private:
  MOELA_DEVICE int clamped(int x) const { return x < 0 ? 0 : x > s_.limit ? s_.limit : x; }

  MOELA_DEVICE void range_of(int group, int* begin, int* end) const {
    const bool has_offsets = s_.kind != GroupKind::kCounts;
    *begin = has_offsets ? clamped(ldg(s_.table + group)) : 0;
    *end = clamped(ldg(s_.table + group + has_offsets));
    if (*end < *begin) *end = *begin;
  }

  // Into how many clusters a group's rows are cut.
  MOELA_DEVICE int tiles_along(int begin, int end) const {
    const bool has_all_rows = s_.kind == GroupKind::kDense || s_.kind == GroupKind::kColumns;
    return ((has_all_rows ? s_.rows : end - begin) + s_.rows_per_tile - 1) / s_.rows_per_tile;
  }

  // How many tiles the window has up to the end of this lane's group.
  MOELA_DEVICE void look_at_groups() {
    tiles_to_ = 0;
    if (window_ + lane() < s_.groups) {
      int begin, end;
      range_of(window_ + lane(), &begin, &end);
      tiles_to_ = tiles_along(begin, end) * s_.clusters_other;
    }
    for (int distance = 1; distance < 32; distance *= 2) {
      const int below = shfl(tiles_to_, lane() - distance);
      if (lane() >= distance) tiles_to_ += below;
    }
  }

  // The group of the next tile, and the number of its first tile.
  MOELA_DEVICE bool find_group(ScheduledTile* tile, int* first) {
    for (int in_window = shfl(tiles_to_, 31); index_ >= in_window; in_window = shfl(tiles_to_, 31)) {
      window_ += 32;
      if (window_ >= s_.groups) return false;
      index_ -= in_window;
      look_at_groups();
    }
    const auto is_before = static_cast<uint32_t>(tiles_to_ <= index_);
    const int owner = static_cast<int>(redux_add(is_before));  // tiles_to_ ascends with the lane
    const int before = shfl(tiles_to_, owner - 1);
    *first = owner > 0 ? before : 0;
    tile->group = window_ + owner;
    range_of(tile->group, &tile->begin, &tile->end);
    return true;
  }

  const TileSchedule& s_;
  int index_;       // of the next tile, counted from the first one of the window
  int window_ = 0;  // its first group
  int tiles_to_;    // see look_at_groups()
};

}  // namespace moela::cuda::sm90
