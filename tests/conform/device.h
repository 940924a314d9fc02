// Memory and launches for the conformance program, on a GPU or under the emulator; files in, files out.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "cuda/hopper/launch.h"

#ifndef MOELA_EMULATE
#include <cuda_runtime.h>
#endif

namespace conform {

using namespace moela;

[[noreturn]] inline void stop(const std::string& why) {
  std::fprintf(stderr, "conform: %s\n", why.c_str());
  std::exit(1);
}

class Device {
 public:
  Device(std::string folder, cuda::Stream stream) : folder_(std::move(folder)), stream_(stream) {}

  // Memory whose bytes are all 0xFF.
  void* allocate(size_t bytes) const {
#ifdef MOELA_EMULATE
    void* memory = emu::allocate(bytes);
    emu::fill(memory, 0xFF, bytes);
#else
    void* memory = nullptr;
    check(cudaMalloc(&memory, bytes));
    check(cudaMemset(memory, 0xFF, bytes));
#endif
    return memory;
  }

  template <class T>
  T* upload(const std::vector<T>& host) const {
    void* memory = allocate(host.size() * sizeof(T));
#ifdef MOELA_EMULATE
    emu::copy_to(memory, host.data(), host.size() * sizeof(T));
#else
    check(cudaMemcpy(memory, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
#endif
    return static_cast<T*>(memory);
  }

  template <class... Params>
  void launch(const cuda::LaunchShape& shape, void (*kernel)(Params...), Params... args) const {
    const auto status = cuda::launch(shape, stream_, kernel, args...);
#ifdef MOELA_EMULATE
    if (status != cuda::LaunchStatus::kSuccess) stop(stream_->report.text);
#else
    check(status);
    check(cudaDeviceSynchronize());
#endif
  }

  // Writes device memory to <folder>/<name>.bin.
  void dump(const std::string& name, const void* memory, size_t bytes) const {
    std::vector<char> host(bytes);
#ifdef MOELA_EMULATE
    emu::copy_from(host.data(), memory, bytes);
#else
    check(cudaMemcpy(host.data(), memory, bytes, cudaMemcpyDeviceToHost));
#endif
    std::ofstream(folder_ + "/" + name + ".bin", std::ios::binary)
        .write(host.data(), static_cast<std::streamsize>(bytes));
  }

  // An input that judge.py has prepared.
  template <class T>
  std::vector<T> input(const std::string& name) const {
    std::ifstream file(folder_ + "/in/" + name, std::ios::binary);
    if (!file) stop("no input " + name + "; run judge.py prepare first");
    const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
    std::vector<T> values(bytes.size() / sizeof(T));
    std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  }

 private:
#ifndef MOELA_EMULATE
  static void check(cudaError_t error) {
    if (error != cudaSuccess) stop(cudaGetErrorString(error));
  }
#endif

  std::string folder_;
  cuda::Stream stream_;
};

}  // namespace conform
