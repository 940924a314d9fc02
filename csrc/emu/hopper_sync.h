// Barriers, launch control, registers and time. See cuda/hopper/ptx/barrier.h, mbarrier.h, time.h.
#pragma once

#include "cuda/hopper/types.h"
#include "emu/runtime.h"

namespace moela::cuda::sm90 {

using emu::Where;

inline void sync_warp(Where where = Where::current()) {
  emu::warp_exchange(emu::Collective::kSync, nullptr, 0, where);
}
inline void sync_block(Where where = Where::current()) { emu::barrier_sync(0, 0, where); }

template <int kId>
void bar_sync(int threads, Where where = Where::current()) {
  static_assert(kId > 0 && kId < 16, "barrier 0 is sync_block, and there are 16");
  emu::barrier_sync(kId, threads, where);
}

template <int kId>
void bar_arrive(int threads, Where where = Where::current()) {
  static_assert(kId > 0 && kId < 16, "barrier 0 is sync_block, and there are 16");
  emu::barrier_arrive(kId, threads, where);
}

inline void cluster_arrive(Where where = Where::current()) { emu::cluster_arrive(true, where); }
inline void cluster_arrive_relaxed(Where where = Where::current()) { emu::cluster_arrive(false, where); }
inline void cluster_wait(Where where = Where::current()) { emu::cluster_wait(where); }

template <int kRegisters>
void setmaxnreg_inc(Where where = Where::current()) {
  static_assert(kRegisters >= 24 && kRegisters <= 256 && kRegisters % 8 == 0,
                "the instruction takes no other count");
  emu::set_registers(kRegisters, true, where);
}

template <int kRegisters>
void setmaxnreg_dec(Where where = Where::current()) {
  static_assert(kRegisters >= 24 && kRegisters <= 256 && kRegisters % 8 == 0,
                "the instruction takes no other count");
  emu::set_registers(kRegisters, false, where);
}

inline uint64_t globaltimer() { return emu::global_time(); }
inline void nanosleep(uint32_t nanoseconds, Where where = Where::current()) {
  emu::sleep(nanoseconds, where);
}

inline void griddep_wait() { emu::grid_dependency_wait(); }
inline void griddep_launch() {}  // allows a start, promises nothing

inline void mbarrier_init(SmemAddr barrier, uint32_t count, Where where = Where::current()) {
  emu::mbarrier_init(barrier, count, where);
}
inline void mbarrier_inval(SmemAddr barrier, Where where = Where::current()) {
  emu::mbarrier_invalidate(barrier, where);
}
inline void fence_mbarrier_init() { emu::fence_mbarrier_init(); }
inline void mbarrier_arrive(SmemAddr barrier, Where where = Where::current()) {
  emu::mbarrier_arrive(barrier, 1, 0, emu::Window::kOwn, where);
}
inline void mbarrier_arrive_remote(SmemAddr barrier, Where where = Where::current()) {
  emu::mbarrier_arrive(barrier, 1, 0, emu::Window::kCluster, where);
}
inline void mbarrier_arrive_expect_tx(SmemAddr barrier, uint32_t bytes, Where where = Where::current()) {
  emu::mbarrier_arrive(barrier, 1, bytes, emu::Window::kOwn, where);
}
inline void mbarrier_expect_tx(SmemAddr barrier, uint32_t bytes, Where where = Where::current()) {
  emu::mbarrier_arrive(barrier, 0, bytes, emu::Window::kOwn, where);
}
inline bool mbarrier_test_wait(SmemAddr barrier, uint32_t parity, Where where = Where::current()) {
  return emu::mbarrier_test(barrier, parity, false, where);
}
inline bool mbarrier_try_wait(SmemAddr barrier, uint32_t parity, Where where = Where::current()) {
  return emu::mbarrier_test(barrier, parity, false, where);
}
inline bool mbarrier_try_wait_cluster(SmemAddr barrier, uint32_t parity, Where where = Where::current()) {
  return emu::mbarrier_test(barrier, parity, true, where);
}
inline void mbarrier_wait(SmemAddr barrier, uint32_t parity, Where where = Where::current()) {
  emu::mbarrier_wait(barrier, parity, false, where);
}
inline void mbarrier_wait_cluster(SmemAddr barrier, uint32_t parity, Where where = Where::current()) {
  emu::mbarrier_wait(barrier, parity, true, where);
}

}  // namespace moela::cuda::sm90
