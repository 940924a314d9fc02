"""`pytest bench`: a few cases of every op under pytest-benchmark, which repeats calls, so caches are warm.

For profiling one contestant, and for tools that read pytest-benchmark's files. `moela bench` compares.
"""

import pytest
import torch
from moela.bench.selection import lineups
from moela.bench.suite import check

MODEL, LAYER, TOKENS = "deepseek-v3", "kv_a", (1, 16)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "contestant" not in metafunc.fixturenames:
        return
    bench = metafunc.module.BENCH
    [lineup] = lineups([bench], torch.device("cpu"), ["all"], ["all"])
    metafunc.parametrize(
        "contestant",
        [
            pytest.param((bench, case, name), id=f"{MODEL}.{LAYER}/{case.tokens}-{name}")
            for case in bench.cases(MODEL, [LAYER], TOKENS, bench.dtypes[:1])
            for name in [*lineup.backends, *lineup.baselines]
        ],
        indirect=True,
    )


@pytest.fixture
def contestant(request: pytest.FixtureRequest):
    """The call of one contestant, checked."""
    bench, case, name = request.param
    inputs = bench.inputs(case, torch.device("cpu"))
    own, baselines = ([name], ["none"]) if name not in [b.name for b in bench.baselines] else ([], [name])
    [lineup] = lineups([bench], torch.device("cpu"), own, baselines)
    entry = next((e for e in lineup.entries(inputs, small=inputs) if e.name == name), None)
    if entry is None:
        pytest.skip(f"{name}: {lineup.absent[name]}")
    [verdict] = check(bench, inputs, [entry]).values()
    if isinstance(verdict, str):
        pytest.fail(f"{name}: {verdict}", pytrace=False)
    return entry.call
