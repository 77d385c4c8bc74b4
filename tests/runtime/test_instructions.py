"""Instructions of ordinary length always fit; what does not is cut or refused by name."""

from __future__ import annotations

import pytest
from vla_runtime.instructions import fit_instruction, prompt_width


def count(text: str) -> int:
    """A token a word and one for the end."""
    return len(text.split()) + 1


def test_prompts_grow_in_steps() -> None:
    """And only where they have to."""
    assert [prompt_width(20, needed) for needed in (1, 20, 21, 32, 33)] == [20, 20, 32, 32, 48]


def test_what_fits_is_left_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    """Spaces included."""
    assert fit_instruction("push  it ", count, 64) == "push  it "
    assert not caplog.records


def test_an_extreme_is_cut_behind_a_word(caplog: pytest.LogCaptureFixture) -> None:
    """With a warning that says how much is left."""
    assert fit_instruction("go " * 100, count, 64) == " ".join(["go"] * 63)
    assert "instruction of 101 tokens is cut to its first 63 words" in caplog.text


def test_a_single_endless_word_leaves_nothing() -> None:
    """Half a word would be another word."""
    assert fit_instruction("x" * 1000, lambda text: len(text) + 1, 64) == ""


def test_a_model_that_reads_little_refuses() -> None:
    """Cut so early, an ordinary instruction could mean something else."""
    with pytest.raises(ValueError, match=r"has 101 tokens .*this model reads 16 .*shorten it: 'go"):
        fit_instruction("go " * 100, count, 16)
