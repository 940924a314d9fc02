// The planted bugs. Each is one line left out or changed in an otherwise right kernel.
#pragma once

#include <string_view>

#define MOELA_BUGS(X)                                                                                        \
  X(None)                                                                                                    \
  /* pipeline.h */                                                                                           \
  X(ProducerPhase)                                                                                           \
  X(ConsumerPhase)                                                                                           \
  X(NoWaitForEmpty)                                                                                          \
  X(NoWaitForFull)                                                                                           \
  X(NoWaitInLaterRounds)                                                                                     \
  X(OnlyOneWarpWaits) X(CountTooLarge) X(NoFenceAfterInit) X(NoClusterSyncAfterInit) X(ExpectTooMuch)        \
      X(ExpectTooLittle) X(WrongMulticastMask) X(ExitBeforeRemoteArrivals) X(NoSyncWarp) X(NoRemoteRelease)  \
          X(ReleaseTwice) X(StagingReusedEarly) X(NoProxyFence) X(StagingBarrierCount) X(StoreNotCommitted)  \
              X(StoreOntoBarrier) X(WrongStride) X(WrongSwizzle) X(NoWgmmaFence) X(DivergentOperands)        \
                  X(AddsToNothing) X(EarlyRelease) X(NoWgmmaWait) X(ExitBeforeStoreRead) X(TooManyRegisters) \
                      X(WaitAtBlockScope) /* how the host sets the pipeline up */                            \
      X(BoxTooTall) X(MapOutsideAllocation) X(BoxWiderThanSwizzle) X(TooLittleSharedMemory) /* exchange.h */ \
      X(NoSyncBeforeRemoteRead) X(ExitWhileRead) X(MulticastIntoExited) X(RemoteRankOutside)                 \
          X(TwoWritersOfShared) X(LappedParity) /* flags.h */                                                \
      X(FlagRelaxed) X(FlagPlainStore) X(FlagNotWaitedFor) X(FlagWithoutSyncBlock) X(FlagOfDeviceOnly)       \
          X(TwoBlocksWriteOneAddress) X(ReadOnlyLoadOfWritten) X(NoGlobalProxyFence) X(GlobalOutOfBounds)    \
              X(GlobalUninitialised) X(NoGriddepWait)

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
