// The place in a kernel's source of a call, for reports.
#pragma once

#include <source_location>

namespace moela::emu {
using Where = std::source_location;
}
