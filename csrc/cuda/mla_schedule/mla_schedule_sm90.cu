// The translation unit of mla_schedule for nvcc. tests/emu/mla_schedule.cpp is the one for the host.
#include "cuda/mla_schedule/mla_schedule_sm90.cuh"
