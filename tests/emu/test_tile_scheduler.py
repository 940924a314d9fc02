"""The tile scheduler against brute force: every tile of every group once, shared evenly."""

import random
from collections import Counter
from dataclasses import dataclass
from itertools import accumulate, pairwise

import native
import pytest

DENSE, OFFSETS, COUNTS, COLUMNS = range(4)
SIZES = {
    "one group": [300],
    "one row": [1],
    "no rows": [0],
    "all empty": [0] * 40,
    "one expert has all": [0] * 33 + [700] + [0] * 30,
    "last one of 512": [0] * 511 + [129],
    "edges of a tile": [0, 1, 63, 64, 65, 127, 128, 129, 0],
    "many small": [random.Random(1).choice([0, 0, 1, 2, 5]) for _ in range(257)],
    "uneven": [random.Random(2).randrange(400) for _ in range(32)],
    "one per lane": [64] * 32,
    "one more": [64] * 33,
}


@dataclass
class Schedule:
    kind: int
    table: list[int]
    groups: int
    limit: int
    rows: int = 0
    rows_per_tile: int = 64
    clusters_other: int = 3
    rows_are_left: bool = True
    clusters: int = 7
    schedule: str = "lazy"

    def ranges(self) -> list[tuple[int, int]]:
        """Of every group: rows, or columns."""
        if self.kind == DENSE:
            return [(0, self.rows)]
        clamped = [min(max(x, 0), self.limit) for x in self.table]
        if self.kind == COUNTS:
            return [(0, count) for count in clamped]
        return [(begin, max(begin, end)) for begin, end in pairwise(clamped)]

    def expected(self) -> list[tuple[int, ...]]:
        """(group, begin, end, left, right) of every tile, by brute force."""
        tiles = []
        for group, (begin, end) in enumerate(self.ranges()):
            rows = self.rows if self.kind in (DENSE, COLUMNS) else end - begin
            for row in range(0, rows, self.rows_per_tile):
                for other in range(self.clusters_other):
                    place = (row // self.rows_per_tile, other)
                    tiles.append((group, begin, end, *(place if self.rows_are_left else place[::-1])))
        return tiles

    def got(self) -> list[list[tuple[int, ...]]]:
        """The tiles of each cluster, in its order."""
        args = (self.kind, self.groups, self.limit, self.rows, self.rows_per_tile, self.clusters_other)
        args = (*args, int(self.rows_are_left), self.clusters, self.schedule, *self.table)
        text = native.run(native.program("tests/emu/tile_scheduler.cpp"), *map(str, args))
        lists = [[] for _ in range(self.clusters)]
        for line in text.splitlines():
            cluster, *tile = map(int, line.split())
            lists[cluster].append(tuple(tile))
        return lists


def by_rows(kind: int, sizes: list[int], **changes) -> Schedule:
    if kind == OFFSETS:
        table = [0, *accumulate(sizes)]
        return Schedule(kind, table, len(sizes), limit=table[-1], **changes)
    return Schedule(kind, sizes, len(sizes), limit=max(sizes), **changes)


def check(schedule: Schedule) -> None:
    got = schedule.got()
    assert Counter(tile for tiles in got for tile in tiles) == Counter(schedule.expected())
    lengths = [len(tiles) for tiles in got]
    assert max(lengths) - min(lengths) <= 1, "some clusters have more to do"


@pytest.mark.parametrize("rows_are_left", [True, False])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("kind", [OFFSETS, COUNTS])
def test_every_tile_of_every_group_comes_once_and_the_clusters_share_evenly(kind, sizes, rows_are_left):
    check(by_rows(kind, SIZES[sizes], rows_are_left=rows_are_left))


@pytest.mark.parametrize("clusters", [1, 2, 132])
@pytest.mark.parametrize("rows_per_tile", [16, 128, 256])
def test_for_any_machine_and_tile(clusters, rows_per_tile):
    sizes = SIZES["uneven"] if rows_per_tile > 16 else SIZES["many small"]
    check(by_rows(OFFSETS, sizes, clusters=clusters, rows_per_tile=rows_per_tile, clusters_other=2))


@pytest.mark.parametrize("rows", [1, 64, 65, 1000])
def test_one_matrix(rows):
    for rows_are_left in (True, False):
        check(Schedule(DENSE, [], 1, rows, rows=rows, clusters_other=11, rows_are_left=rows_are_left))


@pytest.mark.parametrize("sizes", SIZES)
def test_sums_over_groups_of_columns_have_all_tiles_also_for_an_empty_group(sizes):
    table = [0, *accumulate(SIZES[sizes])]
    check(Schedule(COLUMNS, table, len(table) - 1, limit=table[-1], rows=130, clusters_other=2))


def test_sizes_that_are_wrong_stay_within_the_matrix():
    check(Schedule(OFFSETS, [0, 50, 40, 900, -7, 60], 5, limit=100))
    check(Schedule(COUNTS, [5, -3, 1000, 64], 4, limit=64))


def test_clusters_at_work_together_are_near_each_other():
    """132 clusters of 40 x 40 tiles touch 8 rows of tiles and 17 columns, not 4 and 40 or one and all."""
    schedule = Schedule(DENSE, [], 1, 2560, rows=2560, clusters_other=40, clusters=132)
    first = [tiles[0] for tiles in schedule.got()]
    assert len({left for *_, left, _ in first}) == 8
    assert len({right for *_, right in first}) == 17


@pytest.mark.parametrize("schedule", native.SCHEDULES)
def test_under_every_schedule(schedule):
    check(by_rows(OFFSETS, SIZES["edges of a tile"], schedule=schedule))
