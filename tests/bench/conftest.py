"""Tests of the bench run it; what its figures mean needs a quiet machine, and is not looked at here."""

import pytest
from moela.bench import roofline


@pytest.fixture(autouse=True)
def _small_probes(monkeypatch):
    """Buffers of gigabytes, as large caches ask for, take most of the time of a run with two rounds."""
    monkeypatch.setattr(roofline, "_MAX_BUFFER_BYTES", 1 << 24)
