"""Options of a robot in one text: `scene.xml --rate_hz=30`, into a dataclass."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import MISSING, fields
from typing import Any, NoReturn


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def split_argument(argument: str) -> tuple[str, list[str]]:
    """The first word, and the rest, as a shell splits them; both may be empty.

    Raises:
        ValueError: a quote is not closed.
    """
    try:
        first, *rest = shlex.split(argument) or [""]
    except ValueError as error:
        raise ValueError(f"robot argument {argument!r}: {error}") from error
    return (first, rest) if not first.startswith("-") else ("", [first, *rest])


def parse_options(kind: str, words: list[str], *classes: type) -> list[Any]:
    """One instance of each dataclass from `--field=value` words.

    Args:
        kind: of the robot, for messages.
        words: such as ["--rate_hz=30"].
        classes: dataclasses whose fields are str, int or float and have defaults; no name twice.

    Raises:
        ValueError: an unknown option, or a value of another type; the message lists the options.
    """
    parser = _Parser(prog=f"--robot {kind}", add_help=False, allow_abbrev=False)
    for entry in (entry for cls in classes for entry in fields(cls)):
        assert entry.default is not MISSING, entry.name
        parser.add_argument(f"--{entry.name}", type=type(entry.default), default=entry.default)
    try:
        values = vars(parser.parse_args(words))
    except ValueError as error:
        known = ", ".join(f"--{entry.name}" for cls in classes for entry in fields(cls))
        raise ValueError(f"robot {kind}: {error}; its options are {known}") from None
    return [cls(**{entry.name: values[entry.name] for entry in fields(cls)}) for cls in classes]
