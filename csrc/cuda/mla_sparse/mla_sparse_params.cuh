// What the device side of mla_sparse is given, how its shared memory is laid out, and what a block does.
#pragma once

#include "cuda/mla_decode/mla_params.cuh"
#include "cuda/mla_sparse/mla_sparse.h"

namespace moela::cuda::sm90 {

template <int kD_, int kV_, MlaFloat kFloat_, bool kHasBytes_>
struct MlaSparseConfig : MlaConfig<kD_, kV_, kFloat_> {
  using Dense = MlaConfig<kD_, kV_, kFloat_>;
  static constexpr bool kHasBytes = kHasBytes_;
  static constexpr MlaRegisters kRegisters = {.left = 192, .right = 160, .load = 152};

  // After mla_decode's shared memory smem_named [kStages] uint64: bit i: entry i of the block names a slot.
  static constexpr uint32_t kSmemNamed = Dense::kSmemBytes,
                            kSmemBytes = kSmemNamed + static_cast<uint32_t>(Dense::kStages) * 8;
  static_assert(kSmemNamed % 8 == 0 && kSmemBytes <= kMaxSmemBytes, "it does not fit a thread block");
  static_assert(!kHasBytes || (kV_ == 512 && kFloat_ == MlaFloat::kBFloat16),
                "a row of bytes is read 16 at a time and becomes bfloat16");
};

struct MlaSparseParams {
  TensorMap q;  // [T, H, D]
  MlaSparseArgs args;
  int tiles, pieces, piece_blocks;
  int units;         // T * pieces * tiles
  float scale_log2;  // sm_scale * log2(e)
};

template <class C>
MOELA_DEVICE SmemAddr smem_named(int stage) {
  return smem_base() + C::kSmemNamed + static_cast<uint32_t>(stage) * 8;
}

// Blocks [begin, end) of the entries of a token, for one tile of its heads.
struct MlaSparseUnit {
  int token, piece, tile;
  int begin, end;
  int entries;  // of the token, in all its pieces
};

// The units of a thread block. Those of one piece are neighbours, so that tiles read the same rows at about
// the same time.
class MlaSparseUnits {
 public:
  MOELA_DEVICE explicit MlaSparseUnits(const MlaSparseParams& p) : p_(p), index_(block()) {}

  MOELA_DEVICE bool next(MlaSparseUnit* unit) {
    if (index_ >= p_.units) return false;
    const MlaSparseArgs& a = p_.args;
    unit->tile = index_ % p_.tiles;
    unit->piece = index_ / p_.tiles % p_.pieces;
    unit->token = index_ / p_.tiles / p_.pieces;
    unit->entries = a.topk_length == nullptr ? a.topk : length_of(unit->token);
    const int blocks = (unit->entries + plan::kMlaSm90Keys - 1) / plan::kMlaSm90Keys;
    const int begin = unit->piece * p_.piece_blocks, end = begin + p_.piece_blocks;
    unit->begin = begin < blocks ? begin : blocks;
    unit->end = end < blocks ? end : blocks;
    index_ += num_blocks();
    return true;
  }

 private:
  MOELA_DEVICE int length_of(int token) const {
    const int length = ldg_nc(p_.args.topk_length + token * p_.args.stride_lt);
    return length < 0 ? 0 : length < p_.args.topk ? length : p_.args.topk;
  }

  const MlaSparseParams& p_;
  int index_;
};

}  // namespace moela::cuda::sm90
