"""The block under FSDP2, in parts of a mesh of four processes."""

import on_ranks
import torch
from pool import Pool


def test_a_sharded_block_is_trained_as_in_one_process(tmp_path):
    pool = Pool(4, tmp_path / "store")
    try:
        for name, error, size in (found for of_rank in pool.run(on_ranks.sharded) for found in of_rank):
            # Three steps of float32 sums of some 64 terms in other orders.
            assert error <= 2.0**-15 * size, name
    finally:
        pool.close()


def test_what_is_compared_moves():
    before, after = on_ranks.trained_alone(1), on_ranks.trained_alone(3)
    assert all(
        (after[name] - before[name]).abs().max() > 2.0**-12 * after[name].abs().max() for name in after
    )
    assert not any(torch.isnan(p).any() for p in after.values())
