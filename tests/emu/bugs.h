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
  X(WaitAtBlockScope) \
  X(EmptyCountOfOwnBlock) \
  X(ExpectOnlyInRankZero) \
  X(ExpectBeforeWait) \
  X(FenceAfterClusterSync) \
  X(InitByEveryWarp) \
  X(WrongMulticastHalf) \
  X(CoordinatesSwapped) \
  X(OneLoadTooMany) \
  X(OneStepTooFew) \
  X(ElectInDivergentCode) \
  X(ReleaseByAllLanes) \
  X(ReleaseToOneRankTwice) \
  X(ReleaseAtTheWrongAddress) \
  X(ScalesReadAfterRelease) \
  X(NoWgmmaCommit) \
  X(WaitsForOlderProducts) \
  X(DescriptorAdvance) \
  X(StagingNotHandedOver) \
  X(StoreBeforeBarrier) \
  X(FenceInOneWarpOnly) \
  X(CommitByAnotherThread) \
  X(WaitByAnotherThread) \
  X(WaitLeavesOneStore) \
  X(BarrierOfAnotherId) \
  X(RegistersByOneWarp)

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

// In attention.h.
#define MOELA_BUGS_OF_ATTENTION(X) \
  X(FragmentRewritten) \
  X(FragmentNotFenced) \
  X(ScoresReadEarly) \
  X(OutputScaledInFlight) \
  X(NextKeysNotWaitedFor) \
  X(ValuesAsKMajor) \
  X(OffsetsSwapped)

// In reduction.h.
#define MOELA_BUGS_OF_REDUCTION(X) \
  X(StoreInPlaceOfReduction) \
  X(ZeroedByOneBlock) \
  X(CountedWhenRead) \
  X(CountedWithoutAcquire) \
  X(NoSyncAfterCount) \
  X(ReadByEveryBlock) \
  X(ReadOnlyLoadOfReduced) \
  X(SumNotZeroed) \
  X(CounterNotZeroed)

// In edited_maps.h.
#define MOELA_BUGS_OF_EDITED_MAPS(X) \
  X(MapEditedInUse) \
  X(OnlyLastBoxAwaited) \
  X(MapNotReleased) \
  X(MapNotAcquired) \
  X(AnotherMapAcquired) \
  X(MapNotPublished) \
  X(NoSyncBeforePublish) \
  X(OneMapForAllBlocks)

#define MOELA_BUGS(X) \
  X(None) MOELA_BUGS_OF_PIPELINE(X) MOELA_BUGS_OF_HOST(X) MOELA_BUGS_OF_EXCHANGE(X) MOELA_BUGS_OF_FLAGS(X) \
  MOELA_BUGS_OF_ATTENTION(X) MOELA_BUGS_OF_REDUCTION(X) MOELA_BUGS_OF_EDITED_MAPS(X)
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
