"""Questions and answers: labels, loss and correctness agree."""

from __future__ import annotations

import pytest
import torch
from example_robot import SENTENCES, make_observation, make_processor

from vla.model.embedded import EmbeddedConfig, embedded_backbone
from vla.model.vla import VLA, ModelDims, VLAConfig
from vla.model.vqa import answer_is_correct, answer_loss, with_answers
from vla.processing.model_inputs import ModelInputs
from vla.processing.processor import Processor, collate

ANSWERS = ["red", "on the left <loc10><loc20>"]


@pytest.fixture(scope="module")
def made() -> tuple[VLA, Processor, ModelInputs]:
    """A tiny model and the prompts of two questions."""
    torch.manual_seed(0)
    processor = make_processor(image_size_px=(24, 24), image_tokens_per_camera=4)
    config = EmbeddedConfig(width=32, vision_layers=1, text_layers=1, heads=2, patch_size=12)
    backbone = embedded_backbone(config, processor.language, 24)
    model = VLA(backbone, ModelDims.of(processor), VLAConfig())
    observations = [make_observation(instruction=text) for text in SENTENCES[:2]]
    inputs = processor.encode_observation(collate(observations, processor.spec))
    return model.eval(), processor, inputs


def test_only_answers_are_labelled(made: tuple[VLA, Processor, ModelInputs]) -> None:
    """Labels spell the answers and their end; the prompt before them is unchanged."""
    _, processor, inputs = made
    grown, labels = with_answers(processor, inputs, ANSWERS)
    for row, text in enumerate(ANSWERS):
        spelled = labels[row][labels[row] >= 0]
        assert spelled[-1] == processor.prompts.eos_token_id
        assert processor.prompts.tokenizer.decode(spelled[:-1]).replace(" ", "") == text.replace(
            " ", ""
        )
        length = int(inputs.attention_mask[row].sum())
        assert torch.equal(grown.input_ids[row, :length], inputs.input_ids[row, :length])
        assert int(grown.attention_mask[row].sum()) == length + len(spelled)


def test_answers_that_are_overfitted_are_correct(made: tuple[VLA, Processor, ModelInputs]) -> None:
    """Wrong before learning, exact after it."""
    model, processor, inputs = made
    grown, labels = with_answers(processor, inputs, ANSWERS)
    assert not answer_is_correct(model, grown, labels).any()
    optimizer = torch.optim.Adam(model.backbone.parameters(), lr=3e-3)
    for _ in range(60):
        loss = answer_loss(model, grown, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert answer_is_correct(model, grown, labels, tolerance_bins=0).all()


def test_a_location_may_be_off_by_some_bins(made: tuple[VLA, Processor, ModelInputs]) -> None:
    """What was learned as <loc10><loc20> is right for a neighbour, and no other word is."""
    model, processor, inputs = made
    grown, _ = with_answers(processor, inputs, ANSWERS)
    for answers, right in (
        (["red", "on the left <loc12><loc18>"], [True, True]),
        (["green", "on the left <loc13><loc20>"], [False, False]),
    ):
        _, labels = with_answers(processor, inputs, answers)
        assert answer_is_correct(model, grown, labels).tolist() == right
