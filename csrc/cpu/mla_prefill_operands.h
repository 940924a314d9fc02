// Keys and values of a head as mla_prefill_amx.h multiplies them, in blocks of 192 keys. Included by
// isa_amx_bf16.cpp only.
#pragma once

#include "cpu/amx_attend.h"
#include "cpu/mla_prefill.h"

namespace {

using moela::cpu::PrefillProblem;
using moela::cpu::PrefillSequence;

constexpr int64_t kPrefillTileKeys = 192;
constexpr int64_t kPrefillPairBlock = pair_block_floats(kPrefillTileKeys / 2);

inline const uint16_t* row_of(const moela::cpu::HeadRows& rows, int64_t token, int64_t head) {
  return static_cast<const uint16_t*>(rows.data) + rows.at(token, head);
}

// Rows of a head lie apart, where the hardware does not fetch ahead.
constexpr int64_t kRowsAhead = 4;
inline void prefetch_row(const uint16_t* row, int64_t columns) {
  for (int64_t k = 0; k < columns; k += kTileColumns) prefetch_l1(reinterpret_cast<const uint8_t*>(row + k));
}

// What a block holds, zeros where there is no key.
struct PrefillBlock {
  explicit PrefillBlock(const PrefillProblem& p)
      : pairs(keys + kPrefillTileKeys * p.padded_D() / 2),
        floats(pairs + p.padded_Dv() / kTile * kPrefillPairBlock) {}
  int64_t ordinary =
      0;  // one number: how many keys are ordinary, and their values, before the first that is not
  int64_t keys = kTile;  // [key / 32][column / 32][32 keys][16 words], those keys
  int64_t pairs;         // as in amx_attend.h, those values
  int64_t floats;
};

int64_t mla_prefill_block_floats(const PrefillProblem& p) {
  return p.dtype == Dtype::kBFloat16 ? PrefillBlock(p).floats : 0;
}

// Keys [first, first + count) of a sequence, and their values.
inline void load_block(const PrefillProblem& p, const PrefillSequence& sequence, int64_t head, int64_t first,
                       int64_t count, float* block) {
  const PrefillBlock at(p);
  int64_t end = count;
  const auto row = [&](const moela::cpu::HeadRows& rows, int64_t t) {
    return row_of(rows, sequence.key + first + t, head);
  };
  for (int64_t t = 0; t < end; t += kTileColumns) {
    const auto load = [&] {
      const auto key = [&](int64_t i) -> const uint16_t* {
        if (t + i >= end) return nullptr;
        if (t + i + kRowsAhead < end) prefetch_row(row(p.k, t + i + kRowsAhead), p.D);
        prefetch_row(row(p.v, t + i), p.Dv);
        return row(p.k, t + i);
      };
      const auto value = [&](int64_t i) { return t + i < end ? row(p.v, t + i) : nullptr; };
      const bool are_keys = copy_rows(key, p.D, block + at.keys + t * p.padded_D() / 2);
      return rows_to_pairs(value, kTileColumns, p.Dv, kPrefillPairBlock, block + at.pairs + t / 2 * kTile) &&
             are_keys;
    };
    if (load()) continue;
    for (end = t; is_ordinary(row(p.k, end), p.D) && is_ordinary(row(p.v, end), p.Dv);) ++end;
    load();  // again, as zero times what is not ordinary may be NaN
  }
  block[at.ordinary] = static_cast<float>(end);
}

void mla_prefill_load_block(const PrefillProblem& p, const PrefillSequence& sequence, int64_t head,
                            int64_t first, float* block) {
  const int64_t left = sequence.num_keys - first;
  load_block(p, sequence, head, first, left < kPrefillTileKeys ? left : kPrefillTileKeys, block);
}

}  // namespace
