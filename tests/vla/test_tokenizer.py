"""The embedded tokenizer writes any text, always in the same way."""

from __future__ import annotations

import subprocess
import sys

import pytest
from example_robot import SENTENCES, tokenizer
from hypothesis import given
from hypothesis import strategies as st

from vla.processing.tokenizer import (
    LOCATION_BINS,
    SMALLEST_VOCABULARY,
    SPECIAL_TOKENS,
    load_tokenizer,
    location_token,
    train_tokenizer,
)


def encode(text: str) -> list[int]:
    """As the processor encodes an instruction."""
    return tokenizer().encode(text, add_special_tokens=False, split_special_tokens=True)


def test_special_tokens_have_the_first_ids():
    """Models rely on these numbers, padding on 0."""
    ids = tokenizer().convert_tokens_to_ids(list(SPECIAL_TOKENS))
    assert ids == list(range(4 + LOCATION_BINS))
    roles = (tokenizer().pad_token_id, tokenizer().bos_token_id, tokenizer().eos_token_id)
    assert roles == (0, 1, 2)


def test_there_is_no_unknown_token():
    """Every text has tokens."""
    assert tokenizer().unk_token is None


@given(st.text())
def test_any_text_can_be_written_and_read_back(text):
    """Any text, up to case and outer white space."""
    normalised = tokenizer().backend_tokenizer.normalizer.normalize_str(text)
    ids = encode(text)
    assert tokenizer().decode(ids) == normalised
    # Not even a text that spells a special token becomes one.
    assert all(index >= len(SPECIAL_TOKENS) for index in ids)


@pytest.mark.parametrize("token", ["<image>", "<loc07>", "<eos>"])
def test_text_that_spells_a_special_token_stays_text(token):
    """Only who builds a prompt can write a special token."""
    assert len(encode(token)) > 1
    assert tokenizer().encode(token, add_special_tokens=False) == [
        tokenizer().convert_tokens_to_ids(token)
    ]


def test_trained_words_are_one_token_wherever_they_stand():
    """Case, place and outer white space do not change the tokens of a word."""
    alone, inside = encode("push"), encode("please push")
    assert len(alone) == 1
    assert inside[-1:] == alone
    assert encode("  Push The RED Block to the blue zone\n") == encode(SENTENCES[0])
    assert len(encode(SENTENCES[0])) == len(SENTENCES[0].split())


def test_equal_sentences_give_equal_files_in_any_process_and_order(tmp_path):
    """Saved, trained elsewhere in another order, or loaded and saved again."""
    program = (
        "import sys; from vla.processing.tokenizer import train_tokenizer; "
        f"train_tokenizer({list(reversed(SENTENCES))}, 512).save_pretrained(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "theirs")], check=True)
    train_tokenizer(SENTENCES, 512).save_pretrained(tmp_path / "ours")
    load_tokenizer(tmp_path / "ours").save_pretrained(tmp_path / "again")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        ours = (tmp_path / "ours" / name).read_bytes()
        assert ours == (tmp_path / "theirs" / name).read_bytes()
        assert ours == (tmp_path / "again" / name).read_bytes()


def test_loaded_tokenizer_writes_the_same_tokens(tmp_path):
    """With the same roles."""
    tokenizer().save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    text = "Push the héllo ☃ <image>"
    assert loaded.encode(text, add_special_tokens=False) == tokenizer().encode(
        text, add_special_tokens=False
    )
    assert (loaded.pad_token_id, loaded.eos_token_id) == (0, 2)
    assert len(loaded) == len(tokenizer())


def test_refusals(tmp_path):
    """Each says what is valid."""
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json is missing"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="no sentence"):
        train_tokenizer([])
    with pytest.raises(ValueError, match=str(SMALLEST_VOCABULARY)):
        train_tokenizer(SENTENCES, SMALLEST_VOCABULARY - 1)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        location_token(1.01)


def test_vocabulary_keeps_its_limit():
    """Small embedded models have no room for more."""
    assert len(train_tokenizer(SENTENCES, SMALLEST_VOCABULARY + 5)) == SMALLEST_VOCABULARY + 5


@given(st.floats(0, 1))
def test_location_is_off_by_half_a_bin_at_most(fraction):
    """The token's number is that of the bin around it."""
    centre = (int(location_token(fraction)[4:-1]) + 0.5) / LOCATION_BINS
    assert abs(centre - fraction) <= 0.5 / LOCATION_BINS


def test_location_bins_by_hand():
    """The edges and the middle."""
    assert [location_token(f) for f in (0, 0.5, 1)] == ["<loc00>", "<loc32>", "<loc63>"]
