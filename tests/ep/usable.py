"""The transports of the host, for parametrize: one that cannot be used here is a skip with its reason."""

from collections.abc import Callable
from typing import Any

import pytest
from moela.ep import run_local
from moela.ep.transports import TRANSPORTS, HostTransport

USABLE = {
    name: pytest.param(
        name, marks=pytest.mark.skipif(bool(why := transport.why_not()), reason=f"{name}: {why}")
    )
    for name, transport in TRANSPORTS.items()
    if issubclass(transport, HostTransport)
}


def over(transport: str, **others: Any) -> dict[str, Any]:
    """Settings of EpBuffer: this transport, where it needs nodes those of two ranks each."""
    return {"transport": transport, **({"ranks_per_node": 2} if transport == "hier" else {}), **others}


def run_on(transport: str, num_ranks: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """run_local with as many ranks, or with four where the transport needs two nodes of two."""
    return run_local(4 if transport == "hier" else num_ranks, function, *args)
