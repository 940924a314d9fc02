"""Which transports there are, and which one the ranks of a buffer use."""

from moela.ep.rendezvous import Member
from moela.ep.transports.base import (
    DeviceTransport,
    Header,
    HostTransport,
    Received,
    Setup,
    Transport,
    expect_agreement,
)
from moela.ep.transports.collective import CollectiveTransport
from moela.ep.transports.hier import HierTransport
from moela.ep.transports.local import LocalTransport
from moela.ep.transports.shm import ShmTransport
from moela.ep.transports.symm import SymmTransport

# In the order of preference.
TRANSPORTS: dict[str, type[Transport]] = {
    t.name: t for t in (LocalTransport, ShmTransport, SymmTransport, HierTransport, CollectiveTransport)
}


def reasons_against(
    faults: list[dict[str, str | None]], members: list[Member], is_local: bool
) -> dict[str, str | None]:
    """Per transport why these ranks cannot use it, None where they can. The same on every rank.

    faults: what `why_not` of each transport said on each rank.
    """
    reasons = {}
    for name, transport in TRANSPORTS.items():
        of_rank = (f"rank {r}: {fault[name]}" for r, fault in enumerate(faults) if fault[name])
        reasons[name] = transport.unfit(members, is_local) or next(of_rank, None)
    return reasons


def faults_here() -> dict[str, str | None]:
    """Per transport why this process cannot use it, None where it can."""
    return {name: transport.why_not() for name, transport in TRANSPORTS.items()}


__all__ = [
    "TRANSPORTS",
    "DeviceTransport",
    "Header",
    "HostTransport",
    "Received",
    "Setup",
    "Transport",
    "expect_agreement",
    "faults_here",
    "reasons_against",
]
