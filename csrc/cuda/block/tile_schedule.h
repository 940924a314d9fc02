// How a matrix, or groups of its rows or columns, are cut into tiles: what the tile scheduler is given.
#pragma once

#include <cstdint>

namespace moela::cuda {

enum class GroupKind {
  kDense,    // one group that has all rows
  kOffsets,  // rows table[g] .. table[g + 1] of one matrix
  kCounts,   // the first table[g] rows of matrix g
  kColumns,  // all rows, of a sum over columns table[g] .. table[g + 1]: a result per group, also if it is
             // empty
};

struct TileSchedule {
  GroupKind kind;
  const int32_t* table;  // kOffsets, kColumns: [groups + 1]; kCounts: [groups]
  int groups;
  int limit;           // what the table's values are clamped to: rows, or columns
  int rows;            // of a group: kDense, kColumns
  int rows_per_tile;   // that a cluster owns of a group
  int clusters_other;  // into how many clusters the other operand is cut
  bool rows_are_left;  // whether groups are rows of the left operand
};

}  // namespace moela::cuda
