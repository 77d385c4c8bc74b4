"""`vla convert`: rewrite a checkpoint of an older format in today's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vla.checkpoint.folder import load_checkpoint
from vla.checkpoint.initialisation import load_start


@dataclass(frozen=True)
class ConvertConfig:
    """Rewrite a checkpoint in today's format.

    Attributes:
        checkpoint: folder of the old one, which stays as it is.
        out: folder of the new one.
    """

    checkpoint: Path
    out: Path

    def __post_init__(self) -> None:
        if self.out.exists():
            raise ValueError(f"{self.out} exists: name a new folder")


def main(config: ConvertConfig) -> int:
    """Convert, and say where the new one is."""
    # With the training state, which an ordinary load leaves out.
    state = load_checkpoint(config.checkpoint, with_training_state=True).training_state
    load_start(config.checkpoint).save(config.out, state)
    print(f"converted: {config.out}")
    return 0
