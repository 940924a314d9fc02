// What barriers, warp collectives, matrices, conversions and flags do.
#pragma once

#include "cuda/hopper/hopper.h"
#include "device.h"

namespace conform {

using namespace moela::cuda::sm90;

// Word t of register j of the source of stmatrix: two 16-bit halves, numbered.
MOELA_DEVICE uint32_t numbered_halves(uint32_t word) { return (2 * word) | (2 * word + 1) << 16; }

// out[0..127]: shared memory after stmatrix of registers whose halves are numbered 2 * (kCount * lane + j) +
// h. out[128 + kCount * lane + j]: registers after ldmatrix of memory whose halves are numbered in order.
template <int kCount, bool kTranspose>
MOELA_KERNEL(32)
matrix_kernel(uint32_t* out) {
  const SmemAddr smem = smem_base();
  const auto l = static_cast<uint32_t>(lane());
  const SmemAddr row = smem + l % (8 * kCount) * 16;
  uint32_t r[kCount];
  for (uint32_t j = 0; j < kCount; ++j) r[j] = numbered_halves(kCount * l + j);
  stmatrix<kCount, kTranspose>(row, r);
  sync_warp();
  for (uint32_t j = 0; j < kCount; ++j) stg(out + j * 32 + l, lds<uint32_t>(smem + (j * 32 + l) * 4));
  sync_warp();
  for (uint32_t j = 0; j < kCount; ++j) sts<uint32_t>(smem + (j * 32 + l) * 4, numbered_halves(j * 32 + l));
  sync_warp();
  ldmatrix<kCount, kTranspose>(row, r);
  for (uint32_t j = 0; j < kCount; ++j) stg(out + 128 + kCount * l + j, r[j]);
}

// Two bits per step: whether test_wait is true for parity 0 and for parity 1.
MOELA_KERNEL(32) phases_kernel(uint32_t* out) {
  const SmemAddr barrier = smem_base();
  if (tid() != 0) return;
  auto look = [&] {
    stg(out++, static_cast<uint32_t>(mbarrier_test_wait(barrier, 0)) |
                   static_cast<uint32_t>(mbarrier_test_wait(barrier, 1)) << 1);
  };
  mbarrier_init(barrier, 2);
  look();
  mbarrier_arrive(barrier);
  look();
  mbarrier_arrive(barrier);
  look();
  mbarrier_arrive(barrier);
  mbarrier_arrive(barrier);
  look();
  mbarrier_arrive(barrier);
  mbarrier_arrive_expect_tx(barrier, 0);
  look();
  mbarrier_inval(barrier);
  mbarrier_init(barrier, 1);  // the same bytes, a fresh barrier
  look();
}

// Two warpgroups pass a value back and forth through named barriers: one arrives, the other waits.
MOELA_KERNEL(256) named_barrier_kernel(uint32_t* out) {
  const SmemAddr slot = smem_base() + static_cast<uint32_t>(tid() % 128) * 4;
  setmaxnreg_dec<40>();
  if (tid() < 128) {
    sts<uint32_t>(slot, static_cast<uint32_t>(tid()));
    bar_arrive<1>(256);
    bar_sync<2>(256);
    stg(out + tid(), lds<uint32_t>(slot));
  } else {
    setmaxnreg_inc<64>();
    bar_sync<1>(256);
    sts<uint32_t>(slot, lds<uint32_t>(slot) * 3);
    bar_arrive<2>(256);
  }
}

// Reads and writes another block's memory and arrives at its barrier.
MOELA_KERNEL(32) cluster_kernel(uint32_t* out) {
  const SmemAddr barrier = smem_base(), slot = smem_base() + 16 + static_cast<uint32_t>(lane()) * 8;
  const int next = (cluster_rank() + 1) % cluster_size();
  if (lane() == 0) {
    mbarrier_init(barrier, 32);
    fence_mbarrier_init();
  }
  sts<uint32_t>(slot, static_cast<uint32_t>(100 * cluster_rank() + lane()));
  cluster_sync();
  const auto theirs = lds_cluster<uint32_t>(mapa(slot, next));
  sts_cluster<uint32_t>(mapa(slot, next) + 4, theirs + 7);
  mbarrier_arrive_remote(mapa(barrier, next));
  mbarrier_wait_cluster(barrier, 0);
  uint32_t* mine = out + (block() * 32 + lane()) * 3;
  stg(mine, theirs);
  stg(mine + 1, lds<uint32_t>(slot + 4));
  stg(mine + 2, static_cast<uint32_t>(cluster() * 100 + cluster_rank() * 10 + cluster_size()));
  cluster_arrive_relaxed();
  cluster_wait();
}

// Seven words per lane, see judge.py.
MOELA_KERNEL(32) warp_kernel(uint32_t* out) {
  const auto l = static_cast<uint32_t>(lane());
  const uint32_t elected = elect_one(), value = l * l + 1;
  uint32_t* mine = out + l * 7;
  stg(mine, vote_ballot(elected != 0));
  stg(mine + 1, shfl(value, static_cast<int>(31 - l)));
  stg(mine + 2, shfl_xor(value, 5));
  stg(mine + 3, redux_max(value % 17));
  stg(mine + 4, redux_add(value));
  stg(mine + 5, vote_ballot(l % 3 == 0));
  stg(mine + 6, static_cast<uint32_t>(num_blocks() * 100 + warp()));
}

// For each float: e4m3 | bf16 << 16, then f16 of it, then the quotient by 3, then e5m2.
MOELA_KERNEL(128) convert_kernel(const float* in, int count, uint32_t* out) {
  for (int i = tid(); i < count; i += 128) {
    const float x = ldg_nc(in + i);
    stg(out + 4 * i, static_cast<uint32_t>(cvt_e4m3x2(x, -x)) | (cvt_bf16x2(x, 0.f) & 0xFFFF) << 16);
    stg(out + 4 * i + 1, cvt_f16x2(x, -x));
    stg(out + 4 * i + 2, bits_of(div_rn(x, 3.f)));
    stg(out + 4 * i + 3, static_cast<uint32_t>(cvt_e5m2x2(x, -x)));
  }
}

// 2^x of each float.
MOELA_KERNEL(128) approx_kernel(const float* in, int count, float* out) {
  for (int i = tid(); i < count; i += 128) stg(out + i, ex2_approx(ldg_nc(in + i)));
}

// Every e4m3 code as f16 and as float, every bf16 upper byte as float, and every e5m2 code as f16.
MOELA_KERNEL(128) decode_kernel(uint32_t* out) {
  for (int code = tid(); code < 256; code += 128) {
    const uint32_t halves = cvt_f16x2_of_e4m3x2(static_cast<uint16_t>(code | (255 - code) << 8));
    stg(out + 4 * code, halves);
    stg(out + 4 * code + 1, bits_of(cvt_f32_of_f16(static_cast<uint16_t>(halves))));
    stg(out + 4 * code + 2, bits_of(cvt_f32_of_bf16(static_cast<uint16_t>(code << 8 | 0x41))));
    stg(out + 4 * code + 3, cvt_f16x2_of_e5m2x2(static_cast<uint16_t>(code | (255 - code) << 8)));
  }
}

template <class T>
MOELA_DEVICE void copy_as(const uint8_t* from, uint8_t* to) {
  const SmemAddr smem = smem_base() + static_cast<uint32_t>(lane()) * sizeof(T);
  sts(smem, ldg(reinterpret_cast<const T*>(from) + lane()));
  stg(reinterpret_cast<T*>(to) + lane(), lds<T>(smem));
  sync_warp();
}

// 32 accesses of 1, 2, 4, 8 and 16 bytes, through shared memory.
MOELA_KERNEL(32) widths_kernel(const uint8_t* in, uint8_t* out) {
  copy_as<uint8_t>(in, out);
  copy_as<uint16_t>(in + 32, out + 32);
  copy_as<uint32_t>(in + 96, out + 96);
  copy_as<uint64_t>(in + 224, out + 224);
  copy_as<Vec4>(in + 480, out + 480);
  stg(reinterpret_cast<Vec4*>(out + 992) + lane(),
      ldg_nc_once(reinterpret_cast<const Vec4*>(in + 480) + lane()));
}

// Block i waits for block i-1, at both scopes and both widths. Words: data, then the counters.
MOELA_KERNEL(32) flags_kernel(uint32_t* narrow, uint64_t* wide, uint32_t* data) {
  griddep_wait();
  const int b = block();
  if (lane() == 0) {
    wait_flag_at_least<Scope::kGpu>(narrow, static_cast<uint32_t>(b));
    wait_flag_at_least<Scope::kSys>(wide, static_cast<uint64_t>(b));
  }
  sync_warp();
  const uint32_t before = b == 0 ? 1 : ldg(data + (b - 1) * 32 + lane());
  stg(data + b * 32 + lane(), before * 2);
  sync_warp();
  if (lane() == 0) {
    const auto old = atom_add_acq_rel<Scope::kGpu>(narrow + 1, 5u);
    st_relaxed<Scope::kSys>(narrow + 2, old + ld_relaxed<Scope::kGpu>(narrow + 1));
    red_add_release<Scope::kGpu>(narrow, 1u);
    st_release<Scope::kSys>(wide, ld_acquire<Scope::kSys>(wide) + 1);
  }
  griddep_launch();
}

// Block i waits for block i-1 with relaxed accesses between fences.
MOELA_KERNEL(32) fences_kernel(uint32_t* flag, uint32_t* data) {
  const int b = block();
  if (lane() == 0) {
    while (ld_relaxed<Scope::kGpu>(flag) < static_cast<uint32_t>(b)) {
    }
    fence_acq_rel<Scope::kGpu>();
  }
  sync_warp();
  const uint32_t before = b == 0 ? 1 : ldg(data + (b - 1) * 32 + lane());
  stg(data + b * 32 + lane(), before * 3);
  sync_warp();
  if (lane() == 0) {
    fence_acq_rel<Scope::kSys>();
    st_relaxed<Scope::kGpu>(flag, static_cast<uint32_t>(b + 1));
  }
}

// Waits with a deadline: for what is there, and in vain. Words: both results, whether the second took as long
// as it should.
MOELA_KERNEL(32) deadline_kernel(const uint64_t* flag, uint32_t* out) {
  constexpr uint64_t kDeadline = 20'000;
  if (lane() != 0) return;
  stg(out, static_cast<uint32_t>(wait_flag_until<Scope::kSys>(flag, uint64_t{4}, kDeadline)));
  const uint64_t start = globaltimer();
  stg(out + 1, static_cast<uint32_t>(wait_flag_until<Scope::kSys>(flag, uint64_t{5}, kDeadline)));
  nanosleep(100);
  stg(out + 2, static_cast<uint32_t>(globaltimer() - start >= kDeadline));
}

// make_descriptor for a tile at 1024 times the case, then the same 4096 bytes further on.
MOELA_KERNEL(32) descriptor_kernel(const uint32_t* in, int count, uint64_t* out) {
  for (int i = tid(); i < count; i += 32) {
    const auto layout = static_cast<OperandLayout>(ldg(in + 3 * i + 2));
    const uint64_t made =
        make_descriptor(static_cast<SmemAddr>(1024 * i), ldg(in + 3 * i), ldg(in + 3 * i + 1), layout);
    stg(out + 2 * i, made);
    stg(out + 2 * i + 1, advance_descriptor(made, 4096));
  }
}

template <int kCount, bool kTranspose>
void run_matrix(const Device& device) {
  auto* out = static_cast<uint32_t*>(device.allocate(256 * 4));
  device.launch({.grid = 1, .block = 32, .smem_bytes = 512}, &matrix_kernel<kCount, kTranspose>, out);
  device.dump("matrix_x" + std::to_string(kCount) + (kTranspose ? "_trans" : ""), out, 256 * 4);
}

inline void run_threads(const Device& device) {
  run_matrix<1, false>(device);
  run_matrix<2, false>(device);
  run_matrix<4, false>(device);
  run_matrix<1, true>(device);
  run_matrix<2, true>(device);
  run_matrix<4, true>(device);

  auto* out = static_cast<uint32_t*>(device.allocate(1 << 16));
  device.launch({.grid = 1, .block = 32, .smem_bytes = 64}, &phases_kernel, out);
  device.dump("phases", out, 6 * 4);
  device.launch({.grid = 1, .block = 256, .smem_bytes = 512}, &named_barrier_kernel, out);
  device.dump("named_barrier", out, 128 * 4);
  device.launch({.grid = 8, .block = 32, .cluster = 4, .smem_bytes = 512}, &cluster_kernel, out);
  device.dump("cluster", out, 8 * 32 * 3 * 4);
  device.launch({.grid = 1, .block = 32}, &warp_kernel, out);
  device.dump("warp", out, 32 * 7 * 4);
  device.launch({.grid = 1, .block = 128}, &decode_kernel, out);
  device.dump("decode", out, 256 * 4 * 4);

  const std::vector<float> values = device.input<float>("convert.f32");
  const auto count = static_cast<int>(values.size());
  device.launch({.grid = 1, .block = 128}, &convert_kernel, static_cast<const float*>(device.upload(values)),
                count, out);
  device.dump("convert", out, values.size() * 16);

  const std::vector<float> exponents = device.input<float>("approx.f32");
  auto* powers = static_cast<float*>(device.allocate(exponents.size() * 4));
  device.launch({.grid = 1, .block = 128}, &approx_kernel,
                static_cast<const float*>(device.upload(exponents)), static_cast<int>(exponents.size()),
                powers);
  device.dump("approx_ex2", powers, exponents.size() * 4);

  const std::vector<uint32_t> layouts = device.input<uint32_t>("descriptors");
  const auto num_layouts = static_cast<int>(layouts.size() / 3);
  auto* descriptors = static_cast<uint64_t*>(device.allocate(layouts.size() * 8));
  device.launch({.grid = 1, .block = 32}, &descriptor_kernel,
                static_cast<const uint32_t*>(device.upload(layouts)), num_layouts, descriptors);
  device.dump("descriptors", descriptors, static_cast<size_t>(num_layouts) * 16);

  const uint8_t* bytes = device.upload(device.input<uint8_t>("widths"));
  auto* copy = static_cast<uint8_t*>(device.allocate(992 + 512));
  device.launch({.grid = 1, .block = 32, .smem_bytes = 512}, &widths_kernel, bytes, copy);
  device.dump("widths", copy, 992 + 512);

  uint32_t* narrow = device.upload(std::vector<uint32_t>(3, 0));
  uint64_t* wide = device.upload(std::vector<uint64_t>(1, 0));
  device.launch({.grid = 4, .block = 32, .overlaps_previous = true}, &flags_kernel, narrow, wide, out);
  device.dump("flags", out, 4 * 32 * 4);
  device.dump("flags_counters", narrow, 3 * 4);
  device.launch({.grid = 4, .block = 32}, &fences_kernel, device.upload(std::vector<uint32_t>(1, 0)), out);
  device.dump("fences", out, 4 * 32 * 4);
  const uint64_t* four = device.upload(std::vector<uint64_t>(1, 4));
  device.launch({.grid = 1, .block = 32}, &deadline_kernel, four, out);
  device.dump("deadline", out, 3 * 4);
}

}  // namespace conform
