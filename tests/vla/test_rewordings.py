"""Rules that say an English instruction in another order, politely, or with a typing error."""

from __future__ import annotations

import random

import pytest

from vla.data.paraphrases import Paraphrases
from vla.data.rewordings import CLOSINGS, OPENINGS, fronted, misspelt, rewordings

PUSH = "push the red block to the blue zone"


@pytest.mark.parametrize(
    ("instruction", "others"),
    [
        (PUSH, ["to the blue zone push the red block"]),
        (
            "bring the cup to the sink with care",
            [
                "to the sink with care bring the cup",
                "with care bring the cup to the sink",
            ],
        ),
        ("raise the cup off the table", ["off the table raise the cup"]),
        ("from the cup to the sink", ["to the sink from the cup"]),
        # What is named first there stays first: a pronoun, a second clause, a verb's own part.
        ("move the cup by pushing it", []),
        ("take the cup and hold it in the air", []),
        ("slide the puck until it is on the ball", []),
        ("go to the target", []),
        ("pick up the cup", []),
        ("", []),
    ],
)
def test_what_follows_a_preposition_may_stand_first(instruction: str, others: list[str]) -> None:
    """With all words there, each once, and nothing else."""
    assert fronted(instruction) == others
    assert all(sorted(other.split()) == sorted(instruction.split()) for other in others)


def test_every_order_has_every_polite_form() -> None:
    """Each text once, the orders themselves first, the same in every call."""
    made = rewordings(PUSH)
    assert made[:2] == [PUSH, "to the blue zone push the red block"]
    assert len(set(made)) == len(made)
    # Half of the texts have an error: of each order the others are word for word.
    assert len(made) == pytest.approx(2 * len(OPENINGS) * len(CLOSINGS), abs=2)
    assert "please push the red block to the blue zone, thank you" in made
    assert made == rewordings(PUSH)


def test_errors_are_in_one_word() -> None:
    """Every text is one that is spelt correctly, apart from at most one word."""
    orders = [PUSH, *fronted(PUSH)]
    spelt = [
        f"{first}{order}{last}".split()
        for order in orders
        for first in OPENINGS
        for last in CLOSINGS
    ]
    for text in rewordings(PUSH):
        words = text.split()
        apart = [
            sum(a != b for a, b in zip(words, right, strict=True))
            for right in spelt
            if len(right) == len(words)
        ]
        assert min(apart) <= 1
    assert sum(text.split() not in spelt for text in rewordings(PUSH)) > 15


@pytest.mark.parametrize("text", ["where is it?", "first this; then that", "left, then right"])
def test_what_no_rule_fits_stays(text: str) -> None:
    """Questions and sentences of several parts."""
    assert rewordings(text) == [text]


def test_a_typing_error_leaves_the_first_letter() -> None:
    """One letter less, or two swapped; words of one or two letters stay."""
    rng = random.Random(0)
    for _ in range(200):
        wrong = misspelt("purple", rng)
        assert wrong[0] == "p"
        assert len(wrong) == 5 or sorted(wrong) == sorted("purple")
    assert [misspelt(word, rng) for word in ("", "a", "to")] == ["", "a", "to"]


def test_paraphrases_are_reworded_with_what_was_recorded() -> None:
    """All forms of a recorded instruction stand for it, and so do those of its paraphrases."""
    given = Paraphrases({"go left": ["move left"]})
    made = given.reworded(["go left", PUSH])
    assert made.every(["go left"]) == [*rewordings("go left"), *rewordings("move left")]
    assert made.every([PUSH]) == rewordings(PUSH)
    # Without paraphrases there are rewordings, too.
    assert Paraphrases().reworded([PUSH]).every([PUSH]) == rewordings(PUSH)
