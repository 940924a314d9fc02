"""Arguments that are refused in one line: "<what>: expected one of …, got …"."""

import argparse
import difflib
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NoReturn


def hint(got: str, names: Collection[str]) -> str:
    close = difflib.get_close_matches(got, names, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def expect_one_of(what: str, got: str, names: Collection[str]) -> None:
    if got not in names:
        raise ValueError(f"{what}: expected one of {', '.join(names)}, got {got!r}{hint(got, names)}")


class Parser(argparse.ArgumentParser):
    """argparse, with its messages in our form: one line on stderr, exit code 2."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"moela: {message.removeprefix('argument ')}\n")

    def _check_value(self, action: argparse.Action, value: str) -> None:
        try:
            if action.choices is not None:
                expect_one_of("", value, list(action.choices))
        except ValueError as error:
            raise argparse.ArgumentError(action, str(error).removeprefix(": ")) from None


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number from low to high."""

    def parse(text: str) -> int:
        is_short_number = text.isascii() and text.isdigit() and len(text) < 10
        if not is_short_number or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"expected a number from {low} to {high}, got {text!r}")
        return int(text)

    return parse


def list_of(parse: Callable[[str], object]) -> Callable[[str], list]:
    """The type of an argument whose parts are separated by commas; what is given twice counts once."""
    return lambda text: list(dict.fromkeys(parse(part.strip()) for part in text.split(",")))


def one_of(names: Collection[str]) -> Callable[[str], str]:
    """The type of an argument that is one of the names."""

    def parse(text: str) -> str:
        try:
            expect_one_of("", text, names)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error).removeprefix(": ")) from None
        return text

    return parse


def new_file(suffix: str) -> Callable[[str], Path]:
    """The type of an argument that names a file to write; refused before anything is measured."""

    def parse(text: str) -> Path:
        path = Path(text)
        if path.suffix != suffix:
            raise argparse.ArgumentTypeError(f"expected a file that ends in {suffix}, got {text!r}")
        if not os.access(path if path.exists() else path.parent, os.W_OK) or path.is_dir():
            raise argparse.ArgumentTypeError(f"expected a file that can be written, got {text!r}")
        return path

    return parse
