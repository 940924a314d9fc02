"""Kernels with one planted bug each: reported under every schedule, while the right kernel passes."""

from functools import cache

import native
import pytest

# Kernel -> bug -> the kinds of report that name it. What a bug does first may depend on the schedule.
BUGS = {
    "pipeline": {
        "ProducerPhase": "deadlock",
        "ConsumerPhase": "uninitialised parity",
        "NoWaitForEmpty": "mbarrier race",
        "NoWaitForFull": "uninitialised",
        "NoWaitInLaterRounds": "race",
        "OnlyOneWarpWaits": "uninitialised race",
        "CountTooLarge": "deadlock",
        "NoFenceAfterInit": "proxy",
        "NoClusterSyncAfterInit": "race mbarrier",
        "ExpectTooMuch": "deadlock",
        "ExpectTooLittle": "race mbarrier deadlock uninitialised",
        "WrongMulticastMask": "deadlock",
        "ExitBeforeRemoteArrivals": "exit",
        "NoSyncWarp": "race",
        "NoRemoteRelease": "deadlock",
        "ReleaseTwice": "race mbarrier parity",
        "StagingReusedEarly": "race",
        "NoProxyFence": "proxy",
        "StagingBarrierCount": "barrier",
        "StoreNotCommitted": "exit",
        "StoreOntoBarrier": "mbarrier",
        "WrongStride": "wrong",
        "WrongSwizzle": "wgmma",
        "NoWgmmaFence": "accumulator",
        "DivergentOperands": "divergence",
        "AddsToNothing": "accumulator",
        "EarlyRelease": "race",
        "NoWgmmaWait": "accumulator",
        "ExitBeforeStoreRead": "exit",
        "TooManyRegisters": "deadlock",
        "WaitAtBlockScope": "race",
        "EmptyCountOfOwnBlock": "race mbarrier parity",
        "ExpectOnlyInRankZero": "mbarrier race uninitialised deadlock",
        "ExpectBeforeWait": "mbarrier race parity",
        "FenceAfterClusterSync": "proxy",
        "InitByEveryWarp": "mbarrier race",
        "WrongMulticastHalf": "race uninitialised",
        "CoordinatesSwapped": "wrong",
        "OneLoadTooMany": "exit",
        "OneStepTooFew": "exit deadlock",
        "ElectInDivergentCode": "deadlock",
        "ReleaseByAllLanes": "mbarrier race parity",
        "ReleaseToOneRankTwice": "mbarrier race parity deadlock",
        "ReleaseAtTheWrongAddress": "bounds",
        "ScalesReadAfterRelease": "race",
        "NoWgmmaCommit": "accumulator",
        "WaitsForOlderProducts": "accumulator",
        "DescriptorAdvance": "wrong",
        "StagingNotHandedOver": "race",
        "StoreBeforeBarrier": "race proxy uninitialised",
        "FenceInOneWarpOnly": "proxy",
        "CommitByAnotherThread": "exit",
        "WaitByAnotherThread": "race",
        "WaitLeavesOneStore": "race",
        "BarrierOfAnotherId": "deadlock",
        "RegistersByOneWarp": "exit",
        "BoxTooTall": "bounds",
        "MapOutsideAllocation": "refused",
        "BoxWiderThanSwizzle": "refused",
        "TooLittleSharedMemory": "bounds",
    },
    "exchange": {
        "NoSyncBeforeRemoteRead": "uninitialised race",
        "ExitWhileRead": "exit",
        "MulticastIntoExited": "exit",
        "RemoteRankOutside": "bounds",
        "TwoWritersOfShared": "race",
        "LappedParity": "parity",
    },
    "flags": {
        "FlagRelaxed": "race",
        "FlagPlainStore": "race",
        "FlagNotWaitedFor": "race uninitialised",
        "FlagWithoutSyncBlock": "race uninitialised",
        "FlagOfDeviceOnly": "race",
        "TwoBlocksWriteOneAddress": "race",
        "ReadOnlyLoadOfWritten": "read-only",
        "NoGlobalProxyFence": "proxy",
        "GlobalOutOfBounds": "bounds",
        "GlobalUninitialised": "uninitialised",
        "NoGriddepWait": "race",
    },
    "attention": {
        "FragmentRewritten": "fragment",
        "FragmentNotFenced": "fragment",
        "ScoresReadEarly": "accumulator",
        "OutputScaledInFlight": "accumulator",
        "NextKeysNotWaitedFor": "race uninitialised",
        "ValuesAsKMajor": "wrong",
        "OffsetsSwapped": "wrong",
    },
    "reduction": {
        "StoreInPlaceOfReduction": "race",
        "ZeroedByOneBlock": "race proxy",
        "CountedWhenRead": "race",
        "CountedWithoutAcquire": "race",
        "NoSyncAfterCount": "race",
        "ReadByEveryBlock": "race",
        "ReadOnlyLoadOfReduced": "read-only",
        "SumNotZeroed": "uninitialised",
        "CounterNotZeroed": "uninitialised",
    },
    "edited_maps": {
        "MapEditedInUse": "race",
        "OnlyLastBoxAwaited": "race",
        "MapNotReleased": "proxy",
        "MapNotAcquired": "proxy",
        "AnotherMapAcquired": "proxy",
        "MapNotPublished": "wrong bounds",
        "NoSyncBeforePublish": "race",
        "OneMapForAllBlocks": "race",
    },
}
CASES = [(kernel, bug) for kernel, bugs in BUGS.items() for bug in bugs]


@cache
def found(kernel: str, bug: str, schedule: str) -> str:
    return native.run(native.program("tests/emu/bugs.cpp"), kernel, bug, schedule)


@pytest.mark.parametrize("schedule", [*native.SCHEDULES, *map(str, range(4, 12))])
@pytest.mark.parametrize("kernel", BUGS)
def test_a_right_kernel_passes(kernel, schedule):
    assert found(kernel, "None", schedule) == "right"


@pytest.mark.parametrize(("kernel", "bug"), CASES, ids=[bug for _, bug in CASES])
def test_a_bug_is_reported_under_every_schedule(kernel, bug):
    reports = {schedule: found(kernel, bug, schedule) for schedule in native.SCHEDULES}
    kinds = BUGS[kernel][bug].split()
    assert {s: r for s, r in reports.items() if r.split()[0].rstrip(":") not in kinds} == {}


def test_every_planted_bug_is_tested():
    names = native.run(native.program("tests/emu/bugs.cpp")).split()
    assert sorted(names) == sorted(["None", *(bug for _, bug in CASES)])


# --- a report says what happened and where ---------------------------------------------------------------


def test_a_deadlock_names_barrier_phase_and_threads():
    report = found("pipeline", "ProducerPhase", "lazy")
    assert "128 threads (0..127) of block 0" in report
    assert "mbarrier smem+41472 of block 0 (rank 0 of its cluster), parity 0" in report
    assert "(in phase 0, 1 of 1 arrivals and 0 bytes outstanding)" in report
    assert "at pipeline.h:" in report


def test_a_race_names_both_accesses_and_their_lines():
    report = found("pipeline", "EarlyRelease", "lazy")
    assert "overwrites smem+0 of block" in report
    assert "while tensor core of warpgroup 0 of block" in report
    assert report.count("at pipeline.h:") == 2


def test_a_store_onto_a_barrier_names_it():
    report = found("pipeline", "StoreOntoBarrier", "lazy")
    assert report.startswith("mbarrier: a shared store touches the mbarrier at smem+41472")
