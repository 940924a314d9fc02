"""One rule of one instruction broken: what the report says, under every schedule."""

import native
import pytest

DEADLOCK = "deadlock: every thread waits, and no copy is under way:\n    "
MISUSES = {
    "shared load not aligned": "alignment: a shared load of 4 bytes at address 1026",
    "shared load before the window": "bounds: a shared load touches bytes -1024 to -1020",
    "global load not aligned": "alignment: a global load is not aligned",
    "matrix row not aligned": "alignment: stmatrix: a row is not aligned to 16 bytes",
    "copy of 8 bytes": "alignment: a bulk copy moves a multiple of 16 bytes",
    "tile not at a multiple of 128": "alignment: a TMA load: the shared address is not a multiple of 128",
    "map of another rank": "bounds: a copy of rank 3 with a tensor map of rank 2",
    "copy onto a barrier": "mbarrier: a TMA load touches the mbarrier at smem+0",
    "multicast outside the cluster": "bounds: a multicast to rank 2, which the cluster does not have",
    "arrival at no barrier": "mbarrier: mbarrier.arrive on smem+0 of block 0, which is no",
    "barrier not aligned": "alignment: an mbarrier is aligned to 8 bytes",
    "barrier of nobody": "mbarrier: a count is in 1..2^20-1",
    "barrier initialised twice": "mbarrier: the mbarrier at smem+0 of block 0 is initialised twice",
    "too many bytes expected": "mbarrier: more than 2^20-1 bytes expected",
    "wait for a barrier of another block": "mbarrier: a wait for a barrier of another block",
    "arrival at a barrier that was not fenced": "proxy: an arrival from another block at the mbarrier",
    "copy to one block and signal to another": "mbarrier: st.async takes addresses of one block",
    "cluster wait without arrival": "barrier: barrier.cluster.wait without an arrive",
    "two cluster arrivals": "barrier: a second barrier.cluster.arrive without a wait between",
    "lanes in different collectives": "divergence: lanes of warp 0 are in different collectives",
    "warp number of some lanes": "divergence: lanes of warp 0 come here with different numbers of calls of",
    "a lane missing from a collective": f"{DEADLOCK}31 threads",
    "a thread missing from a block barrier": f"{DEADLOCK}96 threads",
    "named barrier of 48 threads": "barrier: the count of a named barrier is a multiple of 32",
    "registers increased to fewer": "registers: setmaxnreg.inc to 24 from 248",
    "wgmma by half a warpgroup": "wgmma: needs a whole warpgroup of 128 threads",
    "descriptor with a base offset": "wgmma: a descriptor with a base offset",
    "operand not fenced for the tensor core": "proxy: wgmma by tensor core of warpgroup 0",
    "accumulator ends in flight": "accumulator: an accumulator ends while the tensor core writes it",
    "accumulator read without a value": "accumulator: an accumulator is read before it has a value",
    "fragment changed in flight": "fragment: a fragment of A is touched while wgmma may still read it",
    "fragment changed to what it was": "fragment: a fragment of A is touched while wgmma may still read it",
    "fragment read in flight": "fragment: a fragment of A is touched while wgmma may still read it",
    "fragment ends in flight": "fragment: a fragment of A ends while wgmma may still read it",
    "fragment set after the fence": "fragment: no wgmma.fence between the last access to the fragment of A",
    "fragment without a value": "fragment: wgmma reads a fragment of A of which not all registers have",
    "products of two shapes in one accumulator": "accumulator: no wgmma.fence between products of different",
    "map edited beyond its rank": "bounds: tensormap.replace of dimension 3 of a tensor map of rank 2",
    "map edited to no rows": "map: tensormap.replace: a dimension is not in 1..2^32",
    "map edited to an odd stride": "map: tensormap.replace: a stride is not a multiple of 16 bytes",
    "map edited to an odd address": "map: tensormap.replace: the global address is not a multiple of 16",
    "map edited where none is": "uninitialised: tensormap.replace",
    "map not aligned": "alignment: tensormap.replace: a tensor map is aligned to 64 bytes",
    "map published from 64": "alignment: tensormap.cp_fenceproxy: a tensor map is aligned to 128 bytes",
    "map published by half a warp": f"{DEADLOCK}16 threads",
    "store not committed": "exit: a thread ends with bulk stores that it has not committed",
    "written after the fence": "proxy: a bulk store",
    "block of 48 threads": "launch: a block has 32..1024 threads, a multiple of 32",
    "grid that is no multiple of the cluster": "launch: the grid is not a positive multiple of the cluster",
    "cluster of 16": "launch: a cluster has 1..8 blocks",
    "too much shared memory": "launch: a block has at most 227 KiB of shared memory",
}


@pytest.mark.parametrize("name", MISUSES)
def test_the_report_names_the_rule(name):
    for schedule in native.SCHEDULES:
        report = native.run(native.program("tests/emu/misuse.cpp"), name, schedule)
        assert report.startswith(MISUSES[name])


def test_every_misuse_is_tested():
    assert sorted(native.run(native.program("tests/emu/misuse.cpp")).splitlines()) == sorted(MISUSES)
