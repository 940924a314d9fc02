// The schedule that a test program is told to use: "eager", "lazy" or a seed.
#pragma once

#include <string>

#include "emu/run.h"

inline moela::emu::Options schedule_of(const std::string& name) {
  moela::emu::Options options;
  if (name == "eager") {
    options.schedule = moela::emu::Schedule::kEager;
  } else if (name == "lazy") {
    options.schedule = moela::emu::Schedule::kLazy;
  } else {
    options.schedule = moela::emu::Schedule::kRandom;
    options.seed = std::stoull(name);
  }
  return options;
}
