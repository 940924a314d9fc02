"""run_local: ranks that are threads."""

import pickle

import layer
import moela
import pytest
from moela.ep import EpBuffer, EpPeerLost, EpTimeout, run_local


def test_results_are_by_rank_and_every_rank_is_its_own():
    assert run_local(3, lambda group, base: base + group.index, 10) == [10, 11, 12]


def test_the_error_that_began_it_is_raised_and_the_others_end_at_once():
    told = []

    def on_rank(group):
        buffer = EpBuffer(group, **layer.SETTINGS | {"deadline": 60.0})
        if group.index == 1:
            raise ZeroDivisionError("of rank 1")
        args = [t.detach() for t in layer.inputs(group.index)[:3]]
        try:
            moela.ep_dispatch(*args, group=buffer.name)
        except EpPeerLost as error:
            told.append(error.ranks)
            raise

    with pytest.raises(ZeroDivisionError, match="of rank 1"):
        run_local(3, on_rank)
    assert told == [[1], [1]]


@pytest.mark.parametrize("kind", [EpTimeout, EpPeerLost])
def test_errors_come_home_from_a_process(kind):
    error = pickle.loads(pickle.dumps(kind([1, 3], 7, "why")))
    assert (error.ranks, error.epoch, type(error)) == ([1, 3], 7, kind)
    assert "rank 1 and rank 3: why" in str(error)
