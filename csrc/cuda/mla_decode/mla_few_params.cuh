// How shared memory is laid out, and threads are, for few rows, which are the right operand of all products:
// mla_few.cuh.
#pragma once

#include "cuda/mla_decode/mla_params.cuh"

namespace moela::cuda::sm90 {

template <int kD_, int kV_, MlaFloat kFloat_>
struct MlaFewConfig : MlaConfig<kD_, kV_, kFloat_> {
  using Plain = MlaConfig<kD_, kV_, kFloat_>;
  static constexpr int kRows = plan::kMlaSm90FewRows;
  static constexpr int kRowsOfThread = kRows / 4, kValuePanels = kV_ / Plain::kPanel;
  static constexpr bool kHasBytes = false;
  static constexpr int kMathWarps = 4, kLoadingWarps = 4, kFirstLoadingWarp = 4, kThreads = 2 * 128;
  static constexpr MlaRegisters kRegisters = {.left = 168, .right = 0, .load = 168};  // stay as they are

  // smem_q [kPanels][kRows][kPanel]; smem_p [kValuePanels][kRows][kPanel], whose first panel has the weights
  // of a block and which has a result on its way to memory; smem_kv as in MlaConfig: 16 bits, swizzled by 128
  // bytes. smem_exchange [kRows][4] float32: what each warp has to say of a row. Then the barriers.
  static constexpr uint32_t kRowPanelBytes = kRows * Plain::kPanel * 2;
  static constexpr uint32_t kSmemQ = 0, kSmemP = kSmemQ + Plain::kPanels * kRowPanelBytes,
                            kSmemKv = kSmemP + kValuePanels * kRowPanelBytes;
  static constexpr int kStages = (kMaxSmemBytes - kSmemKv - kRows * 16 - 128) / Plain::kTileBytes;
  static constexpr uint32_t kSmemExchange = kSmemKv + kStages * Plain::kTileBytes,
                            kKvFull = kSmemExchange + kRows * 16, kKvEmpty = kKvFull + kStages * 8,
                            kQFull = kKvEmpty + kStages * 8, kQEmpty = kQFull + 8, kSmemBytes = kQEmpty + 8;
  static_assert(kStages >= 2 && kSmemBytes <= kMaxSmemBytes,
                "two blocks of keys do not fit a thread block's shared memory");
  static_assert(kSmemP % 1024 == 0 && kSmemKv % 1024 == 0, "a panel starts on the repeat of its swizzle");
};

// Of a cache of bytes. More warps convert than multiply: what is under way waits in their registers.
template <int kD>
struct MlaFewBytesConfig : MlaFewConfig<kD, 512, MlaFloat::kBFloat16> {
  static constexpr bool kHasBytes = true;
  static constexpr int kLoadingWarps = 8, kThreads = 3 * 128;
  static constexpr MlaRegisters kRegisters = {.left = 152, .right = 0, .load = 176};
};

}  // namespace moela::cuda::sm90
