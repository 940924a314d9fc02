// What the host side of the kernels with planted bugs shares.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "cuda/hopper/launch.h"

using namespace moela;

// Prints what was found and ends the program.
[[noreturn]] inline void finish(const std::string& text) {
  std::printf("%s\n", text.c_str());
  std::exit(0);
}

inline void finish_run(const emu::Report& report, bool is_right) {
  if (!report.ok()) finish(report.text);
  finish(is_right ? "right" : "wrong result");
}

template <class T>
T* upload(const std::vector<T>& host) {
  auto* device = static_cast<T*>(emu::allocate(host.size() * sizeof(T)));
  emu::copy_to(device, host.data(), host.size() * sizeof(T));
  return device;
}

inline cuda::TensorSpec matrix(void* base, cuda::ElementType type, int rows, int columns, uint32_t box_rows,
                               uint32_t box_columns, cuda::Swizzle swizzle) {
  return {.base = base,
          .type = type,
          .rank = 2,
          .dims = {static_cast<uint64_t>(columns), static_cast<uint64_t>(rows)},
          .stride_bytes = {static_cast<uint64_t>(columns) * cuda::element_bytes(type)},
          .box = {box_columns, box_rows},
          .swizzle = swizzle};
}

inline cuda::sm90::TensorMap encoded(const cuda::TensorSpec& spec) {
  cuda::sm90::TensorMap map;
  if (const std::string refusal = encode_tensor_map(&map, spec); !refusal.empty())
    finish("refused: " + refusal);
  return map;
}
