"""A choice from a registry with its settings, in one flag: `name` or `name:setting=value,...`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tyro


def read_choice(what: str, flag: str, text: str, configs: Mapping[str, type[Any]]) -> Any:
    """The settings of a choice.

    Args:
        what: is chosen, for messages, such as "action head".
        flag: which brings the text.
        text: `name` or `name:setting=value,setting=value`; `name:help` prints the settings.
        configs: the dataclass of each name's settings, all of which have defaults.

    Raises:
        ValueError: no choice of that name; lists those there are.
        SystemExit: no such setting or value; what is valid has been printed.
    """
    # No colon leaves `settings` empty: the defaults.
    name, _, settings = text.partition(":")
    if name not in configs:
        raise ValueError(f"no {what} {name!r}; valid: {', '.join(configs)}")
    # The settings become flags of a parser of their own, so help and errors come from there.
    words = [f"--{setting}" for setting in settings.split(",") if setting]
    # Without its own help, which its errors would advise as `--head l1: --help`.
    is_help = settings == "help"
    return tyro.cli(configs[name], prog=f"{flag} {name}:", args=words, add_help=is_help)
