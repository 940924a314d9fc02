"""The oldest transformers that moela supports; `make test` runs beside the newest."""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.install

TESTS = Path(__file__).parents[1]


def test_the_tests_of_the_drop_in_pass_beside_the_oldest_transformers(beside_the_oldest_transformers):
    output = beside_the_oldest_transformers(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", TESTS / "transformers", TESTS / "nn"
    )  # fmt: skip
    assert re.search(r"^\d+ passed", output, re.MULTILINE), output
