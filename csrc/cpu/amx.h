// The tile registers of AMX. Included by isa_amx_bf16.cpp only.
#pragma once

#include "cpu/simd.h"

namespace {

constexpr int kTile = 16;          // rows, columns, and words of two bfloat16
constexpr int kTileRegisters = 8;  // four of products, two of the left operand, two of the right one

// The right operand and products have `columns` columns.
class Tiles {
 public:
  explicit Tiles(int64_t columns = kTile) {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int i = 0; i < kTileRegisters; ++i) {
      const bool is_left = i == 4 || i == 5;
      config.row_bytes[i] = static_cast<uint16_t>(4 * (is_left ? kTile : columns));
      config.rows[i] = kTile;
    }
    asm volatile("" ::"r"(&config) : "memory");  // gcc 12 believes that only eight bytes of it are read
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

}  // namespace
