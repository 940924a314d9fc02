// The tiles that every cluster gets:
//   tile_scheduler <kind> <groups> <limit> <rows> <rows per tile> <clusters of the other operand>
//                  <rows are left> <clusters> <schedule> <table values ...>
// Prints "cluster group begin end left right" for each, in the order in which the cluster gets them, or the
// report.
#include "cuda/block/tile_scheduler.cuh"

#include <cstdio>
#include <iostream>
#include <string>
#include <vector>

#include "cuda/hopper/launch.h"
#include "schedule.h"

namespace {

using namespace moela;

constexpr int kMostTiles = 4096;  // of a cluster

struct ListParams {
  cuda::TileSchedule schedule;
  int* out;  // [clusters, kMostTiles, 5]
  int* counts;
};

template <bool kIsGrouped>
void list_kernel(const ListParams p) {
  using namespace cuda::sm90;
  griddep_wait();
  TileScheduler<kIsGrouped> tiles(p.schedule);
  int count = 0;
  for (ScheduledTile t; tiles.next(&t); ++count) {
    const int values[] = {t.group, t.begin, t.end, t.left, t.right};
    if (lane() == 0)
      for (int i = 0; i < 5; ++i) stg(p.out + (cluster() * kMostTiles + count) * 5 + i, values[i]);
  }
  if (lane() == 0) stg(p.counts + cluster(), count);
}

}  // namespace

int main(int argc, char** argv) {
  const auto number = [&](int i) { return std::stoi(argv[i]); };
  const std::vector<int32_t> table = [&] {
    std::vector<int32_t> values;
    for (int i = 10; i < argc; ++i) values.push_back(number(i));
    return values;
  }();
  const int clusters = number(8);
  ListParams p = {.schedule = {.kind = static_cast<cuda::GroupKind>(number(1)),
                               .table = static_cast<int32_t*>(emu::allocate(table.size() * 4 + 4)),
                               .groups = number(2),
                               .limit = number(3),
                               .rows = number(4),
                               .rows_per_tile = number(5),
                               .clusters_other = number(6),
                               .rows_are_left = number(7) != 0},
                  .out = static_cast<int*>(emu::allocate(static_cast<size_t>(clusters) * kMostTiles * 20)),
                  .counts = static_cast<int*>(emu::allocate(static_cast<size_t>(clusters) * 4))};
  emu::copy_to(const_cast<int32_t*>(p.schedule.table), table.data(), table.size() * 4);
  cuda::EmulatedStream stream = {schedule_of(argv[9]), {}};
  const cuda::LaunchShape shape = {.grid = clusters, .block = 32, .overlaps_previous = true};
  const bool is_grouped = p.schedule.kind != cuda::GroupKind::kDense;
  const std::string error = cuda::status_text(
      cuda::launch(shape, &stream, is_grouped ? &list_kernel<true> : &list_kernel<false>, p));
  if (!error.empty()) {
    std::cout << error << "\n" << stream.report.text << "\n";
    return 0;
  }
  for (int c = 0; c < clusters; ++c) {
    int count, tile[5];
    emu::copy_from(&count, p.counts + c, 4);
    for (int i = 0; i < count; ++i) {
      emu::copy_from(tile, p.out + (c * kMostTiles + i) * 5, sizeof tile);
      std::printf("%d %d %d %d %d %d\n", c, tile[0], tile[1], tile[2], tile[3], tile[4]);
    }
  }
  return 0;
}
