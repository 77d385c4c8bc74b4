"""`vla lerobot-train`: LeRobot's `lerobot-train` with the same flags, on decoded images."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from policies.lerobot.training import train


def main(flags: Sequence[str]) -> int:
    """Train as LeRobot's flags say."""
    sys.argv = ["lerobot-train", *flags]  # where LeRobot reads them, more than once
    train()
    return 0
