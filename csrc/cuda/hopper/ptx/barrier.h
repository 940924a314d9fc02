// Barriers among threads of a warp, a block and a cluster; launch control; registers.
#pragma once

#include "cuda/hopper/types.h"

namespace moela::cuda::sm90 {

// PTX ISA "bar.warp.sync". Orders memory among the 32 lanes.
MOELA_DEVICE void sync_warp() { asm volatile("bar.warp.sync 0xffffffff;" ::: "memory"); }

// PTX ISA "bar.sync". Barrier 0, all threads of the block.
MOELA_DEVICE void sync_block() { asm volatile("bar.sync 0;" ::: "memory"); }

// PTX ISA "bar.sync". `threads` of the block, a multiple of 32, count with those of bar_arrive. The id is a
// template constant: with a run-time id the compiler reserves all 16 barriers.
template <int kId>
MOELA_DEVICE void bar_sync(int threads) {
  static_assert(kId > 0 && kId < 16, "barrier 0 is sync_block, and there are 16");
  asm volatile("bar.sync %0, %1;" ::"n"(kId), "r"(threads) : "memory");
}

// PTX ISA "bar.arrive".
template <int kId>
MOELA_DEVICE void bar_arrive(int threads) {
  static_assert(kId > 0 && kId < 16, "barrier 0 is sync_block, and there are 16");
  asm volatile("bar.arrive %0, %1;" ::"n"(kId), "r"(threads) : "memory");
}

// PTX ISA "barrier.cluster.arrive".
MOELA_DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }

// PTX ISA "barrier.cluster.arrive". Orders no memory: enough before the exit, and for barriers that
// fence_mbarrier_init() has published.
MOELA_DEVICE void cluster_arrive_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

// PTX ISA "barrier.cluster.wait".
MOELA_DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// PTX ISA "setmaxnreg". All warps of a warpgroup; a multiple of 8 in 24..256. The increase waits until the
// block has that many.
template <int kRegisters>
MOELA_DEVICE void setmaxnreg_inc() {
  static_assert(kRegisters >= 24 && kRegisters <= 256 && kRegisters % 8 == 0,
                "the instruction takes no other count");
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
MOELA_DEVICE void setmaxnreg_dec() {
  static_assert(kRegisters >= 24 && kRegisters <= 256 && kRegisters % 8 == 0,
                "the instruction takes no other count");
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// PTX ISA "griddepcontrol". Until the kernels that this one overlaps have ended and their writes are visible.
MOELA_DEVICE void griddep_wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// PTX ISA "griddepcontrol". The next kernel may start; it sees nothing of this one before its griddep_wait().
MOELA_DEVICE void griddep_launch() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

}  // namespace moela::cuda::sm90
