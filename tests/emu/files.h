// What a test program is given: files of the test's folder as memory of the device.
#pragma once

#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "emu/run.h"

// The bytes of a file in device memory, which ends where they end.
inline void* load(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
  void* device = moela::emu::allocate(bytes.size());
  moela::emu::copy_to(device, bytes.data(), bytes.size());
  return device;
}

// Device memory to be written: NaN in every type, so what is not written shows.
inline void* poisoned(size_t bytes) {
  void* device = moela::emu::allocate(bytes);
  moela::emu::fill(device, 0xFF, bytes);
  return device;
}

inline void append(const std::string& path, const void* device, size_t bytes,
                   std::ios::openmode mode = std::ios::app) {
  std::vector<char> host(bytes);
  moela::emu::copy_from(host.data(), device, bytes);
  std::ofstream(path, std::ios::binary | mode).write(host.data(), static_cast<std::streamsize>(bytes));
}

inline void save(const std::string& path, const void* device, size_t bytes) {
  append(path, device, bytes, std::ios::trunc);
}
