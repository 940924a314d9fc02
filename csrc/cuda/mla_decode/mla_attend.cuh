// The multiplying side of mla_decode. Warpgroup 0 multiplies queries and keys, makes weights of the scores
// and hands them to warpgroup 1; each multiplies them with its half of the values' columns.
#pragma once

#include "cuda/block/softmax.cuh"
#include "cuda/mla_decode/mla_store.cuh"

namespace moela::cuda::sm90 {

// Which keys of a block the rows of a tile see: those before `all` every row, those from `some` on none.
struct MlaSeen {
  int all, some;
};

// Keys of the request that the row sees: bottom-right causal.
MOELA_DEVICE int keys_seen(const MlaDecodeArgs& a, int seqlen, int row) {
  return a.causal ? seqlen - (a.s_q - 1 - row / a.H) : seqlen;
}

template <class C>
MOELA_DEVICE MlaSeen seen_in_block(const MlaDecodeArgs& a, int seqlen, int tile, int block) {
  const auto within = [&](int keys) {
    const int n = keys - block * C::kKeys;
    return n < 0 ? 0 : n < C::kKeys ? n : C::kKeys;
  };
  const int rows = a.s_q * a.H, last = tile * C::kRows + C::kRows - 1;
  return {within(keys_seen(a, seqlen, tile * C::kRows)),
          within(keys_seen(a, seqlen, last < rows ? last : rows - 1))};
}

// An element of a swizzled panel: row, and column in bytes.
MOELA_DEVICE uint32_t panel_byte(int row, int column_bytes) {
  return static_cast<uint32_t>(row * 128 + ((column_bytes / 16 ^ (row & 7)) * 16) + column_bytes % 16);
}

template <class C>
MOELA_DEVICE float to_float32(uint16_t bits) {
  return C::kFloat == MlaFloat::kBFloat16 ? cvt_f32_of_bf16(bits) : cvt_f32_of_f16(bits);
}

template <class C, bool kTransposeB, int kN>
MOELA_DEVICE void multiply(Acc<kN>& acc, uint64_t a, uint64_t b, bool accumulate) {
  if constexpr (C::kFloat == MlaFloat::kBFloat16) {
    wgmma_bf16<false, kTransposeB>(acc, a, b, accumulate);
  } else {
    wgmma_f16<false, kTransposeB>(acc, a, b, accumulate);
  }
}

template <class C, int kN>
MOELA_DEVICE void multiply_rs(Acc<kN>& acc, const AFragment& a, uint64_t b) {
  if constexpr (C::kFloat == MlaFloat::kBFloat16) {
    wgmma_bf16_rs<true>(acc, a, b, true);
  } else {
    wgmma_f16_rs<true>(acc, a, b, true);
  }
}

// One of the two math warpgroups: its half of the values' columns, and a thread's two rows.
template <class C, int kGroup>
struct MlaHalf {
  static constexpr int kFirstPanel = kGroup * C::kHalfPanels;
  Acc<C::kHalf> sums;

  static MOELA_DEVICE int row(int r) { return warp() % 4 * 16 + lane() / 4 + 8 * r; }
  static MOELA_DEVICE void sync() { bar_sync<1 + kGroup>(128); }
  static MOELA_DEVICE SmemAddr values(int stage) {
    return smem_base() + C::kSmemKv + static_cast<uint32_t>(stage) * C::kTileBytes +
           static_cast<uint32_t>(kFirstPanel) * C::kPanelBytes;
  }

  MOELA_DEVICE void clear() {
    MOELA_UNROLL
    for (int i = 0; i < C::kHalf / 2; ++i) sums.set(i, 0.f);
  }
  // A maximum that has not grown, as in most blocks but the first few, leaves a factor of 1.
  MOELA_DEVICE void rescale(const float (&factor)[2]) {
    if (vote_ballot(factor[0] != 1.f || factor[1] != 1.f) == 0) return;
    MOELA_UNROLL
    for (int i = 0; i < C::kHalf / 2; ++i) sums.set(i, sums.get(i) * factor[i / 2 % 2]);
  }

  // Of keys that only some rows of the tile see, for those: on the tensor core the weight 0 would make NaN of
  // a NaN or an infinity, which may not reach the others. Every key has its own weight and value.
  MOELA_DEVICE void add_keys_of_some(const MlaDecodeArgs& a, const MlaPiece& piece, int tile, int block,
                                     const MlaSeen& seen, int stage) {
    const SmemAddr values = MlaHalf::values(stage), weights = smem_base() + C::kSmemP;
    int limit[2];
    MOELA_UNROLL
    for (int r = 0; r < 2; ++r)
      limit[r] = keys_seen(a, piece.seqlen, tile * C::kRows + row(r)) - block * C::kKeys;
    for (int key = seen.all; key < seen.some; ++key) {
      float weight[2];
      MOELA_UNROLL
      for (int r = 0; r < 2; ++r)
        weight[r] = to_float32<C>(lds<uint16_t>(weights + panel_byte(row(r), key * 2)));
      MOELA_UNROLL
      for (int i = 0; i < C::kHalf / 2; i += 4) {
        const int column = i / 4 * 8 + 2 * (lane() % 4);
        const auto pair = lds<uint32_t>(values + static_cast<uint32_t>(column / C::kPanel) * C::kPanelBytes +
                                        panel_byte(key, column % C::kPanel * 2));
        MOELA_UNROLL
        for (int j = 0; j < 4; ++j) {
          const float value = to_float32<C>(static_cast<uint16_t>(pair >> 16 * (j % 2)));
          const float sum = sums.get(i + j);
          sums.set(i + j, key < limit[j / 2] ? sum + weight[j / 2] * value : sum);
        }
      }
    }
  }

  // What no row or only some see: the tensor core multiplies zeros with the weight 0.
  MOELA_DEVICE void clear_keys(int first, int stage) {
    constexpr int kChunks = C::kHalfPanels * 8;  // 16 bytes each
    for (int i = tid() % 128; i < (C::kKeys - first) * kChunks; i += 128)
      sts(values(stage) + static_cast<uint32_t>(i % kChunks / 8) * C::kPanelBytes +
              static_cast<uint32_t>((first + i / kChunks) * 128 + i % 8 * 16),
          Vec4{0, 0, 0, 0});
    fence_proxy_async_shared();
  }

  // Before the values are multiplied: the last keys of the piece's request.
  MOELA_DEVICE void end_keys(const MlaDecodeArgs& a, const MlaPiece& piece, int tile, int block,
                             const MlaSeen& seen, int stage) {
    if (seen.all == C::kKeys) return;
    add_keys_of_some(a, piece, tile, block, seen, stage);
    sync();  // no warp overwrites keys that another still reads
    clear_keys(seen.all, stage);
    sync();
  }

  // sums += weights x values, with weights from registers or from smem_p.
  MOELA_DEVICE void multiply_values(AFragment (&weights)[4], int stage) {
    const uint64_t v = make_descriptor(values(stage), C::kPanelBytes, 1024, OperandLayout::k128B);
    wgmma_fence(sums, weights[0], weights[1], weights[2], weights[3]);
    MOELA_UNROLL
    for (uint32_t step = 0; step < 4; ++step)
      multiply_rs<C>(sums, weights[step], advance_descriptor(v, step * 16 * 128));
    wgmma_commit();
    wgmma_wait<0>(sums, weights[0], weights[1], weights[2], weights[3]);
  }
  MOELA_DEVICE void multiply_values(int stage) {
    const uint64_t p = make_descriptor(smem_base() + C::kSmemP, 0, 1024, OperandLayout::k128B);
    const uint64_t v = make_descriptor(values(stage), C::kPanelBytes, 1024, OperandLayout::k128B);
    wgmma_fence(sums);
    MOELA_UNROLL
    for (uint32_t step = 0; step < 4; ++step)
      multiply<C, true>(sums, advance_descriptor(p, step * 32), advance_descriptor(v, step * 16 * 128), true);
    wgmma_commit();
    wgmma_wait<0>(sums);
  }
};

template <class C>
MOELA_DEVICE void multiply_keys(Acc<C::kKeys>& scores, int stage) {
  const uint64_t q = make_descriptor(smem_base() + C::kSmemQ, 0, 1024, OperandLayout::k128B);
  const uint64_t k = make_descriptor(smem_base() + C::kSmemKv + static_cast<uint32_t>(stage) * C::kTileBytes,
                                     0, 1024, OperandLayout::k128B);
  wgmma_fence(scores);
  MOELA_UNROLL
  for (uint32_t panel = 0; panel < C::kPanels; ++panel) {
    MOELA_UNROLL
    for (uint32_t step = 0; step < 4; ++step) {
      const uint32_t bytes = panel * C::kPanelBytes + step * 32;
      multiply<C, false>(scores, advance_descriptor(q, bytes), advance_descriptor(k, bytes),
                         panel > 0 || step > 0);
    }
  }
  wgmma_commit();
  wgmma_wait<0>(scores);
}

}  // namespace moela::cuda::sm90
