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
// however many of them are empty.
template <bool kIsGrouped>
class TileScheduler {
 public:
  MOELA_DEVICE explicit TileScheduler(const TileSchedule& s)
      : s_(s), index_(cluster()), stride_(num_blocks() / cluster_size()) {
    if constexpr (kIsGrouped) look_at_groups();
  }

  // False: there are no more.
  MOELA_DEVICE bool next(ScheduledTile* tile) {
    if constexpr (kIsGrouped) {
      if (!find_group(tile)) return false;
    } else {
      *tile = {.group = 0, .begin = 0, .end = s_.rows, .left = 0, .right = 0};
    }
    const int along = (num_rows(tile->begin, tile->end) + s_.rows_per_tile - 1) / s_.rows_per_tile;
    const int index = kIsGrouped ? index_ - group_begin_ : index_;
    if (index >= along * s_.clusters_other) return false;
    if (s_.rows_are_left) {
      place_tile(index, along, s_.clusters_other, tile);
    } else {
      place_tile(index, s_.clusters_other, along, tile);
    }
    index_ += stride_;
    return true;
  }

 private:
  MOELA_DEVICE int clamped(int x) const { return x < 0 ? 0 : x > s_.limit ? s_.limit : x; }

  MOELA_DEVICE int num_rows(int begin, int end) const {
    return s_.kind == GroupKind::kDense || s_.kind == GroupKind::kColumns ? s_.rows : end - begin;
  }

  // This lane's group of the window, and how many tiles the window has up to its end.
  MOELA_DEVICE void look_at_groups() {
    const int group = window_ + lane();
    int tiles = 0;
    begin_ = end_ = 0;
    if (group < s_.groups) {
      const bool has_offsets = s_.kind != GroupKind::kCounts;
      begin_ = has_offsets ? clamped(ldg(s_.table + group)) : 0;
      end_ = clamped(ldg(s_.table + group + has_offsets));
      if (end_ < begin_) end_ = begin_;
      tiles = (num_rows(begin_, end_) + s_.rows_per_tile - 1) / s_.rows_per_tile * s_.clusters_other;
    }
    tiles_to_ = tiles;
    for (int distance = 1; distance < 32; distance *= 2) {
      const int below = shfl(tiles_to_, lane() - distance);
      if (lane() >= distance) tiles_to_ += below;
    }
    tiles_from_ = tiles_to_ - tiles;
  }

  MOELA_DEVICE bool find_group(ScheduledTile* tile) {
    for (int in_window = shfl(tiles_to_, 31); index_ - window_begin_ >= in_window;
         in_window = shfl(tiles_to_, 31)) {
      window_ += 32;
      if (window_ >= s_.groups) return false;
      window_begin_ += in_window;
      look_at_groups();
    }
    const auto is_before = static_cast<uint32_t>(tiles_to_ <= index_ - window_begin_);
    const int owner = static_cast<int>(redux_add(is_before));  // tiles_to_ ascends with the lane
    group_begin_ = window_begin_ + shfl(tiles_from_, owner);
    *tile = {.group = window_ + owner,
             .begin = shfl(begin_, owner),
             .end = shfl(end_, owner),
             .left = 0,
             .right = 0};
    return true;
  }

  const TileSchedule& s_;
  int index_, stride_;         // of the next tile
  int window_ = 0;             // its first group
  int window_begin_ = 0;       // the number of its first tile
  int group_begin_ = 0;        // the number of the first tile of the last group found
  int begin_, end_;            // of this lane's group
  int tiles_from_, tiles_to_;  // tiles of the window before and up to the end of this lane's group
};

}  // namespace moela::cuda::sm90
