#include <sys/mman.h>

#include <cstdint>
#include <new>

#include "emu/fiber.h"

extern "C" void moela_emu_switch(void** save, void* to);

// System V ABI: rbp, rbx, r12..r15 are the callee's to keep. The control words of the FPU are not switched,
// as nothing changes them. A jump in place of ret keeps the return predictor of the caller intact.
asm(R"(
.text
.globl moela_emu_switch
moela_emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmp *%rcx
)");

namespace moela::emu {

constexpr size_t kGuard = 4096;  // below the stack: an overflow ends the process, it corrupts no neighbour

Stack::Stack(void (*entry)()) {
  void* memory = mmap(nullptr, kGuard + kBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, kGuard, PROT_NONE) != 0) throw std::bad_alloc();
  memory_ = static_cast<char*>(memory);
  reset(entry);
}

Stack::~Stack() { munmap(memory_, kGuard + kBytes); }

void Stack::reset(void (*entry)()) {
  // Tops are staggered, so that the hot frames of many stacks do not fall into one cache set.
  const uintptr_t stagger = reinterpret_cast<uintptr_t>(memory_) / (kGuard + kBytes) % 16 * 192;
  auto** top =
      reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(memory_) + kGuard + kBytes - stagger) & ~63ull);
  *--top = nullptr;  // entry has no caller; also aligns the stack as after a call
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  pointer = top;
}

void switch_stack(void** save, void* to) { moela_emu_switch(save, to); }

}  // namespace moela::emu
