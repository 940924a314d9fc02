// The planted bugs. Each is one line left out or changed in an otherwise right kernel.
#pragma once

#include <string_view>

// clang-format off: one name a line
// In pipeline.h.
#define MOELA_BUGS_OF_PIPELINE(X) \
  X(ProducerPhase) \
  X(ConsumerPhase) \
  X(NoWaitForEmpty) \
  X(NoWaitForFull) \
  X(NoWaitInLaterRounds) \
  X(OnlyOneWarpWaits) \
  X(CountTooLarge) \
  X(NoFenceAfterInit) \
  X(NoClusterSyncAfterInit) \
  X(ExpectTooMuch) \
  X(ExpectTooLittle) \
  X(WrongMulticastMask) \
  X(ExitBeforeRemoteArrivals) \
  X(NoSyncWarp) \
  X(NoRemoteRelease) \
  X(ReleaseTwice) \
  X(StagingReusedEarly) \
  X(NoProxyFence) \
  X(StagingBarrierCount) \
  X(StoreNotCommitted) \
  X(StoreOntoBarrier) \
  X(WrongStride) \
  X(WrongSwizzle) \
  X(NoWgmmaFence) \
  X(DivergentOperands) \
  X(AddsToNothing) \
  X(EarlyRelease) \
  X(NoWgmmaWait) \
  X(ExitBeforeStoreRead) \
  X(TooManyRegisters) \
  X(WaitAtBlockScope)

// In how the host sets the pipeline up.
#define MOELA_BUGS_OF_HOST(X) \
  X(BoxTooTall) \
  X(MapOutsideAllocation) \
  X(BoxWiderThanSwizzle) \
  X(TooLittleSharedMemory)

// In exchange.h.
#define MOELA_BUGS_OF_EXCHANGE(X) \
  X(NoSyncBeforeRemoteRead) \
  X(ExitWhileRead) \
  X(MulticastIntoExited) \
  X(RemoteRankOutside) \
  X(TwoWritersOfShared) \
  X(LappedParity)

// In flags.h.
#define MOELA_BUGS_OF_FLAGS(X) \
  X(FlagRelaxed) \
  X(FlagPlainStore) \
  X(FlagNotWaitedFor) \
  X(FlagWithoutSyncBlock) \
  X(FlagOfDeviceOnly) \
  X(TwoBlocksWriteOneAddress) \
  X(ReadOnlyLoadOfWritten) \
  X(NoGlobalProxyFence) \
  X(GlobalOutOfBounds) \
  X(GlobalUninitialised) \
  X(NoGriddepWait)

#define MOELA_BUGS(X) \
  X(None) MOELA_BUGS_OF_PIPELINE(X) MOELA_BUGS_OF_HOST(X) MOELA_BUGS_OF_EXCHANGE(X) MOELA_BUGS_OF_FLAGS(X)
// clang-format on

enum class Bug {
#define MOELA_BUG_ENUM(name) k##name,
  MOELA_BUGS(MOELA_BUG_ENUM)
#undef MOELA_BUG_ENUM
};

inline constexpr std::string_view kBugNames[] = {
#define MOELA_BUG_NAME(name) #name,
    MOELA_BUGS(MOELA_BUG_NAME)
#undef MOELA_BUG_NAME
};
