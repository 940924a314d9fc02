// The emulated body of cuda/hopper/launch.h.
#pragma once

#include <string>

#include "emu/run.h"
#include "emu/tensor_map.h"

namespace moela::cuda {

// Carries the schedule in and what was found out.
struct EmulatedStream {
  emu::Options options;
  emu::Report report;
};
using Stream = EmulatedStream*;

enum class LaunchStatus { kSuccess, kFault };

template <class... Params>
LaunchStatus launch(const LaunchShape& shape, Stream stream, void (*kernel)(Params...), Params... args) {
  stream->report = emu::run({{shape, [=] { kernel(args...); }}}, stream->options);
  return stream->report.ok() ? LaunchStatus::kSuccess : LaunchStatus::kFault;
}

// "" or where to look: the stream has the report.
inline std::string status_text(LaunchStatus status) {
  return status == LaunchStatus::kSuccess ? "" : "the emulator found a fault";
}

using emu::encode_tensor_map;

}  // namespace moela::cuda
