"""The benchmark of words: its words are new to every policy, and its measures measure them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.bench import words
from scripts.bench.word_variants import AS_TOLD, NEVER_TOLD, VARIANTS, reword, understand
from scripts.bench.words import BenchWordsConfig, Reworded, as_table
from scripts.ground import prompts_of, spoken
from sim.questions import all_sentences
from sim.scenes import ScenesConfig, make_scenes
from sim.tasks.registry import find_task, groundable_names
from sim.tasks.tabletop import INSTRUCTIONS, Instruction, Tabletop
from vla.checkpoint.initialisation import GROUNDED, load_start
from vla.contract import ObservationBatch, RobotSpec

PUSH = "bring the green block to the cyan zone with a push"


def training_sentences() -> Iterator[str]:
    """All that grounding, and with it cloning in simulation, ever says."""
    names = groundable_names()
    for name in names:
        for phrasing in ("train", "heldout"):
            for prompt in prompts_of(name, phrasing):
                yield from (said.text for said in spoken(prompt, reword=True))
    tasks = [find_task(name).task for name in names]
    nouns = {t.noun(p) for t in tasks for p in (*t.object_phrases, *t.place_phrases)}
    yield from all_sentences(["gripper", *nouns])


def test_no_training_template_has_a_word_that_is_said_to_be_never_told() -> None:
    """Nor do the questions; and every word that is replaced was told."""
    told = {word for text in training_sentences() for word in re.findall(r"[a-z]+", text.lower())}
    new = [word for others in NEVER_TOLD.values() for word in others]
    assert not told & set(new)
    assert len(set(new)) == len(new)
    assert set(NEVER_TOLD) <= told


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_says_every_instruction(variant: str) -> None:
    """In its own words: the same for a seed, others for others, none left to fill in."""
    task = Tabletop()
    for index, instruction in enumerate(INSTRUCTIONS):
        told = task.say(instruction, index)
        said = {reword(variant, told, seed) for seed in range(30)}
        assert len(said) > 1
        assert reword(variant, told, 3) == reword(variant, told, 3)
        assert not any(mark in text for text in said for mark in "{}")
        replaced = VARIANTS[variant].replaced
        colour = instruction.block.split()[0]
        if "colour" in replaced:
            assert not any(colour in text.split() for text in said)
            assert all(any(new in text for new in NEVER_TOLD[colour]) for text in said)
        elif not VARIANTS[variant].misspelt:
            assert all(colour in text for text in said)


def test_an_instruction_is_understood_in_every_template() -> None:
    """Verb, block and zone of all twelve, and nothing is guessed from other sentences."""
    task = Tabletop()
    for instruction in INSTRUCTIONS:
        assert {understand(task.say(instruction, seed)) for seed in range(30)} == {instruction}
    assert understand(PUSH) == Instruction("push", "green block", "cyan zone")
    for text in ("go home", "push the red block to the green block"):
        with pytest.raises(ValueError, match="no instruction of Tabletop"):
            understand(text)


def test_as_told_changes_nothing_and_unknown_names_are_listed() -> None:
    """Also in the command's own settings."""
    assert reword(AS_TOLD, PUSH, 0) == PUSH
    with pytest.raises(ValueError, match="no variant 'rhyme'; valid: as told, colour synonyms"):
        BenchWordsConfig(("a=b",), variants=("rhyme",))
    with pytest.raises(ValueError, match="at least one of --policies"):
        BenchWordsConfig(())


class Listener:
    """A policy that remembers what it was told."""

    def __init__(self, spec: RobotSpec) -> None:
        self.spec = spec
        self.told: list[str] = []
        self.began: list[int] = []

    def reset(self, indices: list[int]) -> None:
        """Episodes that begin."""
        self.began += indices

    def act(self, observation: ObservationBatch) -> torch.Tensor:
        """Stand still."""
        self.told += observation.instructions
        return torch.zeros(len(observation), 1, self.spec.action.dim)


def test_a_policy_is_told_other_words_and_the_same_at_every_step() -> None:
    """The rest of an observation, and what begins, arrives as it is."""
    spec = load_start(GROUNDED).spec
    listener = Listener(spec)
    reworded = Reworded(listener, "all synonyms")
    reworded.reset([0, 2])
    seen = ObservationBatch({}, torch.zeros(2, 5), [PUSH, "pick up the red block"], torch.zeros(2))
    for _ in range(2):
        reworded.act(seen)
    assert listener.began == [0, 2]
    assert listener.told[:2] == listener.told[2:]
    assert "green" not in listener.told[0]
    assert seen.instructions[0] == PUSH


def test_the_table_pairs_what_was_measured_on_the_same_states() -> None:
    """Ours against the first, variant by variant."""
    ones, half = np.ones(20, bool), np.arange(20) % 2 == 0
    text = as_table(
        {"own": {AS_TOLD: ones, "a typo": half}, "tower": {AS_TOLD: ones, "a typo": ones}}
    )
    heads, _, told, typo = text.splitlines()
    assert heads == "| instruction | own | tower | tower - own |"
    assert told.startswith("| as told | 100.0% [84, 100] | 100.0% [84, 100] | +0.0%")
    assert typo.startswith("| a typo | 50.0% [30, 70] | 100.0% [84, 100] | +50.0%")


@pytest.mark.render
def test_choices_are_read_from_what_is_pointed_at(tmp_path: Path) -> None:
    """The shipped model finds what it is told, and hardly what it is told in unknown colours."""
    make_scenes(ScenesConfig(("Tabletop",), 30, tmp_path / "scenes", workers=1))
    config = BenchWordsConfig(
        (f"shipped={GROUNDED}",),
        ("colour synonyms",),
        scenes=tmp_path / "scenes",
        frames=30,
        out=tmp_path / "out",
    )
    assert words.main(config) == 0
    table = (tmp_path / "out" / "words.md").read_text().splitlines()
    rates = [float(line.split("|")[2].split("%")[0]) for line in table[2:]]
    assert rates[0] > 80
    assert rates[1] < 50
