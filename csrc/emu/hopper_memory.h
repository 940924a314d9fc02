// Ids, shared and global memory. See cuda/hopper/ptx/ids.h, shared.h, global.h.
#pragma once

#include "cuda/hopper/types.h"
#include "emu/runtime.h"

namespace moela::cuda::sm90 {

using emu::Where;

inline SmemAddr smem_base() { return emu::kSmemWindow; }
inline int tid() { return emu::ids().thread; }
inline int lane() { return emu::ids().thread % 32; }
inline int warp() { return emu::read_warp(); }
inline int block() { return emu::ids().block; }
inline int num_blocks() { return emu::ids().num_blocks; }
inline int cluster_rank() { return emu::ids().cluster_rank; }
inline int cluster_size() { return emu::ids().cluster_size; }
inline int cluster() { return emu::ids().block / emu::ids().cluster_size; }

template <class T>
constexpr bool kIsAccessible =
    sizeof(T) == 1 || sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16;

template <class T>
T lds(SmemAddr from, Where where = Where::current()) {
  static_assert(kIsAccessible<T>, "one instruction moves 1, 2, 4, 8 or 16 bytes");
  T value;
  emu::load_shared(from, &value, sizeof(T), emu::Window::kOwn, where);
  return value;
}

template <class T>
void sts(SmemAddr to, T value, Where where = Where::current()) {
  static_assert(kIsAccessible<T>, "one instruction moves 1, 2, 4, 8 or 16 bytes");
  emu::store_shared(to, &value, sizeof(T), emu::Window::kOwn, where);
}

inline SmemAddr mapa(SmemAddr address, int rank, Where where = Where::current()) {
  return emu::map_shared_rank(address, rank, where);
}

template <class T>
T lds_cluster(SmemAddr from, Where where = Where::current()) {
  static_assert(kIsAccessible<T>, "one instruction moves 1, 2, 4, 8 or 16 bytes");
  T value;
  emu::load_shared(from, &value, sizeof(T), emu::Window::kCluster, where);
  return value;
}

template <class T>
void sts_cluster(SmemAddr to, T value, Where where = Where::current()) {
  static_assert(kIsAccessible<T>, "one instruction moves 1, 2, 4, 8 or 16 bytes");
  emu::store_shared(to, &value, sizeof(T), emu::Window::kCluster, where);
}

inline void st_async(SmemAddr to, uint32_t value, SmemAddr barrier, Where where = Where::current()) {
  emu::store_async(to, &value, sizeof value, barrier, where);
}

template <class T>
T ldg(const T* from, Where where = Where::current()) {
  static_assert(kIsAccessible<T>, "one instruction moves 1, 2, 4, 8 or 16 bytes");
  T value;
  emu::load_global(from, &value, sizeof(T), emu::Path::kCoherent, where);
  return value;
}

template <class T>
T ldg_nc(const T* from, Where where = Where::current()) {
  static_assert(kIsAccessible<T>, "one instruction moves 1, 2, 4, 8 or 16 bytes");
  T value;
  emu::load_global(from, &value, sizeof(T), emu::Path::kReadOnly, where);
  return value;
}

template <class T>
void stg(T* to, T value, Where where = Where::current()) {
  static_assert(kIsAccessible<T>, "one instruction moves 1, 2, 4, 8 or 16 bytes");
  emu::store_global(to, &value, sizeof(T), where);
}

template <class T>
constexpr bool kIsFlag = sizeof(T) == 4 || sizeof(T) == 8;

constexpr emu::Scope emulated(Scope scope) {
  return scope == Scope::kGpu ? emu::Scope::kGpu : emu::Scope::kSys;
}

template <Scope kScope, class T>
T ld_acquire(const T* from, Where where = Where::current()) {
  static_assert(kIsFlag<T>, "a flag has 4 or 8 bytes");
  T value;
  emu::load_atomic(from, &value, sizeof(T), true, emulated(kScope), where);
  return value;
}

template <Scope kScope, class T>
T ld_relaxed(const T* from, Where where = Where::current()) {
  static_assert(kIsFlag<T>, "a flag has 4 or 8 bytes");
  T value;
  emu::load_atomic(from, &value, sizeof(T), false, emulated(kScope), where);
  return value;
}

template <Scope kScope, class T>
void st_release(T* to, T value, Where where = Where::current()) {
  static_assert(kIsFlag<T>, "a flag has 4 or 8 bytes");
  emu::store_atomic(to, &value, sizeof(T), true, emulated(kScope), where);
}

template <Scope kScope, class T>
void st_relaxed(T* to, T value, Where where = Where::current()) {
  static_assert(kIsFlag<T>, "a flag has 4 or 8 bytes");
  emu::store_atomic(to, &value, sizeof(T), false, emulated(kScope), where);
}

template <Scope kScope>
void fence_acq_rel() {
  emu::fence_acq_rel(emulated(kScope));
}

template <Scope kScope, class T>
void red_add_release(T* to, T value, Where where = Where::current()) {
  static_assert(kIsFlag<T>, "a flag has 4 or 8 bytes");
  emu::add_atomic(to, value, sizeof(T), false, true, emulated(kScope), where);
}

template <Scope kScope, class T>
T atom_add_acq_rel(T* to, T value, Where where = Where::current()) {
  static_assert(kIsFlag<T>, "a flag has 4 or 8 bytes");
  return static_cast<T>(emu::add_atomic(to, value, sizeof(T), true, true, emulated(kScope), where));
}

template <Scope kScope, class T>
void wait_flag_at_least(const T* flag, T value, Where where = Where::current()) {
  static_assert(kIsFlag<T>, "a flag has 4 or 8 bytes");
  emu::wait_flag_at_least(flag, value, sizeof(T), emulated(kScope), where);
}

}  // namespace moela::cuda::sm90
