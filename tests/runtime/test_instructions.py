"""Instructions of ordinary length always fit; what does not is cut or refused by name."""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from vla_runtime.exported.folder import PromptSettings
from vla_runtime.exported.prompts import Prompts, WordStates
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


def test_a_single_endless_word_is_refused() -> None:
    """Half a word would be another word, and no word is what nobody said."""
    with pytest.raises(ValueError, match="has 1001 tokens without a space to cut it at"):
        fit_instruction("x" * 1000, lambda text: len(text) + 1, 64)
    assert fit_instruction(" " * 100, lambda text: len(text) + 1, 64) == ""


def test_a_model_that_reads_little_refuses() -> None:
    """Cut so early, an ordinary instruction could mean something else."""
    with pytest.raises(ValueError, match=r"has 101 tokens .*this model reads 16 .*shorten it: 'go"):
        fit_instruction("go " * 100, count, 16)


def test_ever_new_instructions_take_no_more_memory(tmp_path: Path) -> None:
    """A server's clients may send a new one with each request."""
    tokenizer = Tokenizer(WordLevel({"go": 1, "?": 3}, unk_token="?"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    settings = PromptSettings((), (2,), 0, length=64, max_text_tokens=256)

    def tower(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"words": np.ones((1, arrays["input_ids"].shape[1] + 1, 384), np.float32)}

    states = WordStates(tower, Prompts(tmp_path / "tokenizer.json", settings))
    tracemalloc.start()
    for index in range(300):
        assert states.rows(f"{index} " + "go " * 250).shape == (1, 256, 384)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 16e6
