"""For every test here: it ends in time, or the stacks of all threads are printed and the run ends."""

import faulthandler
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from moela.ep.device import Kernels
from moela.ep.transports import local_device
from moela.ep.transports.local import LocalTransport

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode adds no folder itself

import device_definition

LIMIT = 300  # seconds; compiling takes most


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def kernels(monkeypatch) -> None:
    """Ranks that are threads exchange rows by kernels as on a GPU: by their definition, in host memory."""
    five = Kernels(*(getattr(device_definition, name) for name in Kernels._fields))
    monkeypatch.setattr(local_device, "kernels_for", lambda *_: five)
    monkeypatch.setattr(LocalTransport, "on", lambda device: local_device.LocalDeviceTransport)


@pytest.fixture(params=["host", "kernels"])
def way(request) -> str:
    """The two ways in which threads exchange rows."""
    if request.param == "kernels":
        request.getfixturevalue("kernels")
    return request.param
