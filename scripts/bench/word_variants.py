"""Other words for Tabletop's instructions, as `word_variants.json` lists them."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sim.tasks.tabletop import Instruction
from sim.tasks.tabletop_scene import BLOCKS, ZONES
from vla.data.rewordings import misspelt

AS_TOLD = "as told"
_DATA: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
NEVER_TOLD: Mapping[str, tuple[str, ...]] = {
    told: tuple(others) for told, others in _DATA["never_told"].items()
}
"""Word of the training templates → words for the same that no training instruction has."""


@dataclass(frozen=True)
class Variant:
    """One way to say Tabletop's instructions.

    Attributes:
        push: templates of a push, all used equally often.
        lift: templates of a lift.
        replaced: kinds of words that are taken from `NEVER_TOLD`: colour, noun, verb.
        misspelt: kinds of words that have one letter left out or two swapped.
    """

    push: tuple[str, ...]
    lift: tuple[str, ...]
    replaced: tuple[str, ...] = field(default=())
    misspelt: tuple[str, ...] = field(default=())

    def say(self, instruction: Instruction, seed: int) -> str:
        """The instruction in these words; an equal seed is an equal choice."""
        rng = random.Random(seed)
        told = _words(instruction, rng)
        words = {name: self._said(name, word, rng) for name, word in told.items()}
        templates = self.push if instruction.verb == "push" else self.lift
        return rng.choice(templates).format(**words)

    def _said(self, name: str, word: str, rng: random.Random) -> str:
        kind = _KINDS[name]
        if kind in self.replaced:
            word = rng.choice(NEVER_TOLD[word])
        return misspelt(word, rng) if kind in self.misspelt else word


# Field of a template → kind of word.
_KINDS = {"verb": "verb", "block": "noun", "zone": "noun"} | dict.fromkeys(
    ("colour", "place", "other"), "colour"
)

VARIANTS: Mapping[str, Variant] = {
    name: Variant(**{key: tuple(value) for key, value in lists.items()})
    for name, lists in _DATA["variants"].items()
}


def reword(name: str, told: str, seed: int) -> str:
    """An instruction of Tabletop in the words of this variant, `AS_TOLD` among them.

    Args:
        name: of the variant.
        told: the instruction in a training template.
        seed: an equal seed is an equal choice.

    Raises:
        ValueError: no such variant, or no instruction of Tabletop.
    """
    if name == AS_TOLD:
        return told
    if name not in VARIANTS:
        raise ValueError(f"no variant {name!r}; valid: {', '.join((AS_TOLD, *VARIANTS))}")
    return VARIANTS[name].say(understand(told), seed)


def understand(told: str) -> Instruction:
    """What an instruction in one of Tabletop's templates asks for.

    Raises:
        ValueError: it names not exactly one block, or more than one zone.
    """
    blocks, zones = ([phrase for phrase in known if phrase in told] for known in (BLOCKS, ZONES))
    if len(blocks) != 1 or len(zones) > 1:
        raise ValueError(f"no instruction of Tabletop: {told!r} names {blocks} and {zones}")
    # Of a template a push is exactly what names a zone, see `Tabletop.say`.
    return Instruction("push", blocks[0], zones[0]) if zones else Instruction("lift", blocks[0])


def _words(instruction: Instruction, rng: random.Random) -> dict[str, str]:
    """Told word of each field of a template."""
    colour, block = instruction.block.split()
    place, zone = (instruction.zone or ZONES[0]).split()
    others = [name.split()[0] for name in BLOCKS if name != instruction.block]
    fields = {"verb": instruction.verb, "block": block, "zone": zone}
    return {**fields, "colour": colour, "place": place, "other": rng.choice(others)}
