"""Instructions of any ordinary length are read; padding and cutting say what they do."""

from __future__ import annotations

import torch
from example_robot import SENTENCES, SPEC, make_observation, make_processor, tokenizer

from vla.processing.processor import collate
from vla.processing.prompts import LONGEST_TEXT


def test_padding_longest_is_fixed_padding_cut_short():
    """Both write the same prompts; the longest of the batch has no padding."""
    batch = collate([make_observation(0, SENTENCES[1]), make_observation(1, SENTENCES[2])], SPEC)
    fixed = make_processor().encode_observation(batch)
    longest = make_processor(padding="longest").encode_observation(batch)
    width = longest.input_ids.shape[1]
    assert width == 2 * 16 + len(SENTENCES[2].split()) + 1
    assert fixed.input_ids.shape[1] == make_processor().prompts.length == 2 * 16 + 64
    assert torch.equal(fixed.input_ids[:, :width], longest.input_ids)
    assert not fixed.attention_mask[:, width:].any()
    assert longest.attention_mask.sum(1).tolist() == fixed.attention_mask.sum(1).tolist()


def test_a_longer_instruction_makes_the_prompts_of_its_batch_longer():
    """In steps of 16; the usual length is that of all that fit, and no token is lost."""
    prompts = make_processor(max_text_tokens=9).prompts
    assert prompts.texts([SENTENCES[0]])["input_ids"].shape == (1, prompts.length)
    long = " ".join(SENTENCES)
    usual, both = prompts.texts([SENTENCES[0]])["input_ids"], prompts.texts([SENTENCES[0], long])
    needed = 32 + len(prompts.tokens(long))
    assert both["input_ids"].shape[1] % 16 == 0
    assert needed <= both["input_ids"].shape[1] < needed + 16
    assert torch.equal(both["input_ids"][:1, : prompts.length], usual)
    ids = both["input_ids"][1][both["attention_mask"][1]]
    assert ids[32:].tolist() == prompts.tokens(long)


def test_only_pages_of_text_are_cut(caplog):
    """Behind a whole word, with the end token, and with one warning that shows what is left."""
    prompts = make_processor().prompts
    words = "lift it " * 200
    for _ in range(2):
        made = prompts.texts([words])
    kept = tokenizer().decode(made["input_ids"][0][made["attention_mask"][0]][32:-1])
    assert words.startswith(kept)
    assert int(made["attention_mask"].sum()) <= 32 + LONGEST_TEXT
    assert len(prompts.tokens(f"{kept} lift it")) > LONGEST_TEXT
    (record,) = caplog.records
    assert "is cut to its first" in record.getMessage()
