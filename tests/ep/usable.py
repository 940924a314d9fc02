"""The transports, for parametrize: one that cannot be used here is a skip with its reason."""

import pytest
from moela.ep.transports import TRANSPORTS

USABLE = {
    name: pytest.param(
        name, marks=pytest.mark.skipif(bool(why := transport.why_not()), reason=f"{name}: {why}")
    )
    for name, transport in TRANSPORTS.items()
}
