// The multiply-add of probe.h in the tiles of AMX. Included by isa_amx_bf16.cpp only.
#pragma once

#include "cpu/amx_tile.h"
#include "cpu/probe_kernel.h"

namespace {

// Products of four tiles, as in multiply_tiles, take sixteen iterations' time of the other probes.
constexpr uint64_t kIterationsOfTiles = 16;

float probe_tiles(uint64_t iterations) {
  const Tiles registers;  // which are zeros
  for (uint64_t n = 0; n < iterations / kIterationsOfTiles; ++n) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  return 0.f;
}

constexpr moela::cpu::Probe kTileProbe = {.read = probe_read,
                                          .fma = probe_tiles,
                                          .fma_flops = 4 * 2 * 2 * kTile * kTileFloats / kIterationsOfTiles};

}  // namespace
