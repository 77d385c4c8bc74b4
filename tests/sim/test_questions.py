"""Questions: their answers follow from where things are."""

from __future__ import annotations

import re

import numpy as np
import pytest

from sim.questions import KINDS, PHRASINGS, Questioner, all_sentences
from sim.scenes import Scenes

PHRASES = ("gripper", "target", "object", "blue zone", "red block", "green block", "yellow block")
POINTS = [
    [1.3, 0.75, 0.43],
    [0, 0, 0],
    [0, 0, 0],
    [1.3, 0.9, 0.42],
    [1.3, 0.75, 0.42],
    [1.4, 0.9, 0.42],
    [1.0, 0.4, 0.42],
]
PLACES = [[0.0, 0.0], [0, 0], [0, 0], [0.9, -0.5], [0.0, 0.25], [np.nan, np.nan], [np.nan, np.nan]]


def make(fingers: tuple[float, float] = (0.025, 0.025)) -> Questioner:
    """One frame: the hand around the red block, the green one out of the first image."""
    image_points = np.array(PLACES, np.float32)[None, :, None].repeat(3, axis=2)
    return Questioner(
        Scenes(
            task="Tabletop",
            images=np.zeros((1, 3, 8, 8, 3), np.uint8),
            proprio=np.array([[1.3, 0.75, 0.43, *fingers]], np.float32),
            points=np.array(POINTS, np.float32)[None],
            image_points=image_points,
            phrases=PHRASES,
        )
    )


def ask(questioner: Questioner, kind: str, seed: int = 0) -> tuple[str, str]:
    """Question and answer of a kind."""
    return questioner.ask(0, kind, "train", np.random.default_rng(seed))


def test_what_is_gripped() -> None:
    """A block between open fingers; nothing once they are wide open or shut."""
    assert ask(make(), "gripped")[1] == "red block"
    assert ask(make((0.05, 0.05)), "gripped")[1] == "nothing"
    assert ask(make((0.0, 0.0)), "gripped")[1] == "nothing"


def test_where_gives_row_and_column_of_the_first_image() -> None:
    """Only of objects that are in it; off by at most half a bin."""
    asked = dict(ask(make(), "where", seed) for seed in range(20))
    assert not any("green" in text for text in asked)
    answer = next(answer for text, answer in asked.items() if "blue zone" in text)
    bins = [int(token) for token in re.findall(r"<loc(\d+)>", answer)]
    assert [(b + 0.5) / 64 for b in bins] == pytest.approx([0.25, 0.95], abs=1 / 128)


def test_which_colour_is_nearest() -> None:
    """By distance in the world."""
    answers = dict(ask(make(), "colour", seed) for seed in range(30))
    assert {a for text, a in answers.items() if "gripper" in text} == {"red"}
    assert {a for text, a in answers.items() if "blue zone" in text} == {"green"}


def test_the_caption_names_what_is_visible_from_left_to_right() -> None:
    """And what is gripped."""
    assert ask(make(), "caption")[1] == "from left to right red block, blue zone, gripped red block"


def test_held_out_phrasings_are_not_trained_on() -> None:
    """And every word of theirs is in the sentences that the tokenizer learns from."""
    for kind in KINDS:
        assert not set(PHRASINGS[kind]["train"]) & set(PHRASINGS[kind]["heldout"])
    assert "tell me the place of the red block" in all_sentences(["red block"])
