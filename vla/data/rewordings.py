"""Other orders and polite forms of an English instruction, made by rules that know no synonyms.

Templates and recorded instructions have one order, "push the red block to the purple zone", and a
model that reads no other takes the first thing named for the one to move. A phrase that begins with
a preposition may as well stand first: "to the purple zone push the red block".
"""

from __future__ import annotations

import re

_PREPOSITIONS = frozenset(
    "across around at behind below beside by from in inside into near off on onto over through to "
    "toward towards under with".split()
)
# Behind these a phrase belongs to a second clause: "grasp the block and hold it in the air".
_CONJUNCTIONS = frozenset("and but or so that then until while".split())
_PRONOUNS = frozenset("it them".split())
OPENINGS = ("", "please ", "now ", "could you ", "robot, ", "go and ")
CLOSINGS = ("", ", please", " for me", ", thank you", " now")


def fronted(instruction: str) -> list[str]:
    """The instruction with its end, from any of its prepositions on, moved to the front.

    None is moved before what its pronoun stands for ("by pushing it"), and none of two clauses.
    """
    words = instruction.split()
    if not _CONJUNCTIONS.isdisjoint(words):
        return []
    # Not directly behind the verb ("go to the target"), nor the second of two ("off to the side").
    starts = [
        i
        for i in range(2, len(words) - 1)
        if words[i] in _PREPOSITIONS and words[i - 1] not in _PREPOSITIONS
    ]
    return [
        " ".join([*words[i:], *words[:i]]) for i in starts if _PRONOUNS.isdisjoint(words[i:])
    ]


def rewordings(instruction: str) -> list[str]:
    """The instruction and its other orders, each in every polite form; each text once."""
    # A question or several sentences: no rule here fits them.
    if re.search(r"[?!;:.,]", instruction):
        return [instruction]
    orders = [instruction, *fronted(instruction)]
    texts = (f"{first}{order}{last}" for order in orders for first in OPENINGS for last in CLOSINGS)
    return [*dict.fromkeys(texts)]
