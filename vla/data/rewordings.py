"""Other orders, polite forms and typing errors of an English instruction, by rules.

The rules know no synonyms: those are what a language tower is for, see docs/words.md.

Templates and recorded instructions have one order, "push the red block to the purple zone", and a
model that reads no other takes the first thing named for the one to move. A phrase that begins with
a preposition may as well stand first: "to the purple zone push the red block".
"""

from __future__ import annotations

import random
import re

_PREPOSITIONS = frozenset(
    (
        *("across", "around", "at", "behind", "below", "beside", "by", "from", "in", "inside"),
        *("into", "near", "off", "on", "onto", "over", "through", "to", "toward", "towards"),
        *("under", "with"),
    )
)
# Behind these a phrase belongs to a second clause: "grasp the block and hold it in the air".
_CONJUNCTIONS = frozenset(["and", "but", "or", "so", "that", "then", "until", "while"])
_PRONOUNS = frozenset(["it", "them"])
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
    return [" ".join([*words[i:], *words[:i]]) for i in starts if _PRONOUNS.isdisjoint(words[i:])]


def misspelt(word: str, rng: random.Random) -> str:
    """One letter left out, or two neighbours swapped; the first letter stays, short words stay."""
    if len(word) < 3:
        return word
    index = rng.randrange(1, len(word) - 1)
    if rng.random() < 0.5:
        return word[:index] + word[index + 1] + word[index] + word[index + 2 :]
    return word[:index] + word[index + 1 :]


def rewordings(instruction: str) -> list[str]:
    """The instruction and its other orders, in every polite form; each text once.

    Every second one has a typing error in one of its words, the same ones in every call.
    """
    # A question or several sentences: no rule here fits them.
    if re.search(r"[?!;:.,]", instruction):
        return [instruction]
    orders = [instruction, *fronted(instruction)]
    texts = [f"{first}{order}{last}" for order in orders for first in OPENINGS for last in CLOSINGS]
    rng = random.Random(instruction)  # its own: no training's random numbers depend on this
    texts = [_with_error(text, rng) if index % 2 else text for index, text in enumerate(texts)]
    return [*dict.fromkeys([*orders, *texts])]


def _with_error(text: str, rng: random.Random) -> str:
    words = text.split()
    index = rng.randrange(len(words))
    words[index] = misspelt(words[index], rng)
    return " ".join(words)
