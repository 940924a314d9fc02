"""`pytest bench`: a few cases of every op under pytest-benchmark, which repeats calls, so caches are warm.

For profiling one contestant, and for tools that read pytest-benchmark's files. `moela bench` compares.
"""

import pytest
import torch
from moela.bench.selection import default_layers, lineups
from moela.bench.suite import Bench, check
from moela.shapes import MODELS

LINEAR, EXPERTS = ("deepseek-v3", "kv_a"), ("qwen3-30b-a3b", None)  # the smallest experts, any layer of them
TOKENS = (1, 16)


def small_layer(bench: Bench) -> tuple[str, str]:
    """A model, and a layer of it that fits into memory beside its copies for the baselines."""
    model, layer = EXPERTS if bench.has_routing else LINEAR
    return model, layer if layer in bench.layers(MODELS[model]) else default_layers(bench, model)[0]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "contestant" not in metafunc.fixturenames:
        return
    bench = metafunc.module.BENCH
    [lineup] = lineups([bench], torch.device("cpu"), ["all"], ["all"])
    model, layer = small_layer(bench)
    metafunc.parametrize(
        "contestant",
        [
            pytest.param((bench, case, name), id=f"{model}.{layer}/{case.tokens}-{name}")
            for case in bench.cases(model, [layer], TOKENS, bench.dtypes[:1])
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
