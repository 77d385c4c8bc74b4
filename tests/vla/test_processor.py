"""Encode and decode are inverse, every input is checked, and files restore all of it."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from example_robot import (
    SENTENCES,
    SPEC,
    make_observation,
    make_processor,
    make_statistics,
    tokenizer,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vla.contract import CameraSpec, ContractMismatchError, VectorSpec
from vla.processing.model_inputs import ModelInputs, normalise_pixels
from vla.processing.normalisation import NORMALISATIONS, AffineNormaliser, VectorStatistics
from vla.processing.processor import Processor, ProcessorConfig, Statistics, collate

EPSILON = float(np.finfo(np.float32).eps)


@st.composite
def statistics(draw):
    """Any statistics of 3 dimensions, with dimensions that never vary among them."""

    def column():
        centre, spread = draw(st.floats(-1e6, 1e6)), draw(st.just(0.0) | st.floats(0, 1e6))
        near, far = sorted((draw(st.floats(0, 1)), draw(st.floats(0, 1))))
        inner, outer = spread * near, spread * far
        return (
            centre,
            spread,
            centre - outer,
            centre + outer,
            centre - inner,
            centre + inner,
        )

    return VectorStatistics(*zip(*(column() for _ in range(3)), strict=True))


@settings(deadline=None)
@given(
    statistics=statistics(),
    normalisation=st.sampled_from(NORMALISATIONS),
    actions=arrays(np.float32, (2, 5, 3), elements=st.floats(-1e6, 1e6, width=32)),
)
def test_decode_is_the_inverse_of_encode(statistics, normalisation, actions):
    """Whatever the statistics, to the rounding of float32."""
    processor = Processor(
        SPEC,
        Statistics(statistics, make_statistics().proprio),
        tokenizer(),
        ProcessorConfig(action_normalisation=normalisation),
    )
    encoded = processor.encode_actions(actions)
    assert torch.isfinite(encoded).all()
    error = np.abs(processor.action.decode(encoded).numpy() - actions)
    offset = np.abs([statistics.mean, statistics.min, statistics.max]).max(0)
    assert (error <= 4 * EPSILON * (np.abs(actions) + offset + 4)).all()


def test_normalisations_by_hand():
    """Each normalisation maps its two anchors where its name says."""
    numbers = VectorStatistics(
        mean=(1.0,) * 3,
        std=(2.0,) * 3,
        min=(-3.0,) * 3,
        max=(5.0,) * 3,
        q01=(-1.0,) * 3,
        q99=(3.0,) * 3,
    )
    expected = {
        "limits": ([-2, -1, 0], [2, 3, 0.1], -1),
        "min_max": ([-3] * 3, [5] * 3, -1),
        "quantile": ([-1] * 3, [3] * 3, -1),
        "mean_std": ([1] * 3, [3] * 3, 0),
    }
    for normalisation, (first, second, image) in expected.items():
        config = ProcessorConfig(action_normalisation=normalisation)
        both = Statistics(numbers, make_statistics().proprio)
        processor = Processor(SPEC, both, tokenizer(), config)
        encoded = processor.encode_actions(np.array([first, second], np.float32))
        torch.testing.assert_close(encoded, torch.tensor([[image] * 3, [1] * 3]).float())


def test_dimension_without_variance_is_shifted_only():
    """It is not divided by zero, and stays what it was in scale."""
    still = VectorStatistics.measure(np.full((10, 3), 7.0))
    config = ProcessorConfig(action_normalisation="mean_std")
    processor = Processor(SPEC, Statistics(still, make_statistics().proprio), tokenizer(), config)
    assert processor.encode_actions(np.array([[7.0, 8.0, 6.5]])).tolist() == [[0, 1, -0.5]]


def test_decode_keeps_gradients_and_returns_float32():
    """Also from bfloat16: commands must not be rounded to 8 bits."""
    processor = make_processor()
    normalised = torch.zeros(1, 3, dtype=torch.bfloat16, requires_grad=True)
    actions = processor.decode_actions(normalised)
    assert actions.dtype == torch.float32
    actions.sum().backward()
    assert normalised.grad is not None
    torch.testing.assert_close(
        normalised.grad.float(), torch.tensor([[2, 2, 0.05]]), rtol=0.01, atol=0
    )


def test_statistics_by_hand_and_through_json():
    """Measured numbers are numpy's, and JSON keeps every bit."""
    rows = np.array([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]])
    measured = VectorStatistics.measure(rows)
    assert measured.mean == (2.0, 1.0)
    assert measured.std == pytest.approx((np.sqrt(8 / 3), 0))
    assert (measured.min, measured.max) == ((0, 1), (4, 1))
    assert measured.q01 == pytest.approx((0.04, 1))
    assert measured.q99 == pytest.approx((3.96, 1))
    both = make_statistics()
    assert Statistics.from_dict(json.loads(json.dumps(both.to_dict()))) == both


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": (0.0, float("nan"), 0.0)}, "mean that is not finite"),
        ({"q99": (float("inf"),) * 3}, "q99 that is not finite"),
        ({"std": (1.0, 1.0)}, "equal length"),
        ({"std": (1.0, -1.0, 1.0)}, "negative std"),
        ({"min": (9.0,) * 3, "max": (1.0,) * 3}, "min above max"),
    ],
)
def test_broken_statistics_are_refused(change, message):
    """Numbers that cannot be statistics never normalise anything."""
    with pytest.raises(ValueError, match=message):
        replace(make_statistics().action, **change)


def test_missing_statistics_are_refused():
    """No value passes through without normalisation."""
    with pytest.raises(ValueError, match="proprio is to be normalised by 'mean_std', which needs"):
        Processor(SPEC, None, tokenizer())
    Processor(SPEC, None, tokenizer(), ProcessorConfig(proprio_normalisation="limits"))
    data = make_statistics().to_dict()
    del data["action"]["q99"]
    with pytest.raises(ValueError, match=r"statistics lack \['q99'\]"):
        Statistics.from_dict(data)
    with pytest.raises(ValueError, match=r"statistics lack \['proprio'\]"):
        Statistics.from_dict({"action": asdict(make_statistics().action)})
    with pytest.raises(ValueError, match="n >= 1"):
        VectorStatistics.measure(np.empty((0, 3)))


def test_statistics_of_another_robot_are_refused():
    """The number of dimensions must be the contract's."""
    swapped = Statistics(make_statistics().proprio, make_statistics().action)
    with pytest.raises(ContractMismatchError, match="statistics of proprio have 3 dimensions"):
        Processor(SPEC, swapped, tokenizer())


def test_infinite_limits_are_refused():
    """Limits that do not exist cannot normalise."""
    endless = replace(SPEC, action=replace(SPEC.action, high=(2, float("inf"), 0.1)))
    with pytest.raises(ValueError, match=r"action has no finite limits in \['y'\]"):
        Processor(endless, make_statistics(), tokenizer())


def test_actions_are_checked():
    """Shape and finiteness, with the dimension's name."""
    processor = make_processor()
    with pytest.raises(ContractMismatchError, match=r"action is not finite in \['y'\]"):
        processor.encode_actions(np.array([[0, np.nan, 0], [0, np.inf, 0]]))
    with pytest.raises(ContractMismatchError, match="contract says"):
        processor.encode_actions(np.zeros((2, 4)))
    with pytest.raises(ContractMismatchError, match="contract says"):
        processor.decode_actions(torch.zeros(2, 4))


def test_observation_by_hand():
    """Every tensor of the model's inputs from two known observations."""
    processor = make_processor(image_tokens_per_camera=2, max_text_tokens=10)
    observations = [make_observation(0, SENTENCES[0]), make_observation(1, SENTENCES[1])]
    inputs = processor.encode_observation(collate(observations, SPEC))
    assert len(inputs) == 2
    assert inputs.pixel_values.shape == (2, 2, 3, 12, 16)
    for row, observation in enumerate(observations):
        for index, camera in enumerate(SPEC.cameras):
            image = inputs.pixel_values[row, index].permute(1, 2, 0).numpy()
            assert (image == observation.images[camera.name]).all()
        proprio = make_statistics().proprio
        expected = (observation.proprio - np.array(proprio.mean)) / np.array(proprio.std)
        normalised = processor.proprio(inputs.proprio)[row]
        np.testing.assert_allclose(normalised, expected, rtol=1e-5)
        # Two cameras of two places, the words, the end token, padding.
        words = observation.instruction.split()
        ids = inputs.input_ids[row].tolist()
        assert ids[:4] == [tokenizer().convert_tokens_to_ids("<image>")] * 4
        end = 4 + len(words)
        assert tokenizer().decode(ids[4:end]) == observation.instruction
        assert ids[end:] == [tokenizer().eos_token_id] + [0] * (14 - end - 1)
        assert inputs.attention_mask[row].tolist() == [True] * (end + 1) + [False] * (13 - end)
    assert inputs.input_ids.dtype == torch.int64
    assert inputs.attention_mask.dtype == torch.bool
    assert inputs.proprio.dtype == torch.float32


def test_cameras_come_in_contract_order():
    """Whatever the order of the dictionary that brings them."""
    batch = collate([make_observation()], SPEC)
    expected = make_processor().encode_observation(batch)
    batch.images = dict(reversed(batch.images.items()))
    again = make_processor().encode_observation(batch)
    assert torch.equal(again.pixel_values, expected.pixel_values)
    assert not torch.equal(again.pixel_values[:, 0], again.pixel_values[:, 1])


def test_instruction_cannot_smuggle_in_images():
    """An instruction that spells the image token stays text."""
    processor = make_processor()
    ids, mask = processor.prompts.texts(["look at the <image>"]).values()
    assert (ids[mask] == processor.prompts.image_token_id).sum() == 2 * 16


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from([*SENTENCES, "", "lift"]), min_size=1), min_size=1))
def test_remembered_instructions_equal_fresh_ones(calls):
    """What was asked before never changes an answer."""
    remembering = make_processor(padding="longest")
    for instructions in calls:
        ids, mask = remembering.prompts.texts(instructions).values()
        fresh = make_processor(padding="longest").prompts.texts(instructions)
        assert torch.equal(ids, fresh["input_ids"])
        assert torch.equal(mask, fresh["attention_mask"])


def test_each_distinct_instruction_is_tokenised_once(monkeypatch):
    """Few instructions meet many calls; very many do not fill the memory."""
    processor = make_processor()
    calls = []
    original = type(tokenizer()).encode
    monkeypatch.setattr(
        type(tokenizer()), "encode", lambda *a, **k: calls.append(a[1]) or original(*a, **k)
    )
    for _ in range(3):
        processor.prompts.texts([SENTENCES[0], SENTENCES[1], SENTENCES[0]])
    assert calls == [SENTENCES[0], SENTENCES[1]]
    monkeypatch.setattr("vla.processing.prompts._CACHED_INSTRUCTIONS", 3)
    ids = processor.prompts.texts([SENTENCES[2], SENTENCES[0]])["input_ids"]
    assert calls[2:] == [SENTENCES[2], SENTENCES[0]]
    fresh = make_processor().prompts.texts([SENTENCES[2], SENTENCES[0]])
    assert torch.equal(ids, fresh["input_ids"])


def test_bad_observations_are_refused_by_name():
    """Not a number, a missing camera, a wrong shape or type."""
    processor = make_processor()
    good = collate([make_observation(0), make_observation(1)], SPEC)
    processor.encode_observation(good)
    proprio = good.proprio.clone()
    proprio[1, 3] = torch.nan
    with pytest.raises(ContractMismatchError, match=r"proprio is not finite in \['width'\]"):
        processor.encode_observation(replace(good, proprio=proprio))
    with pytest.raises(ContractMismatchError, match=r"contract says \[..., 4\]"):
        processor.encode_observation(replace(good, proprio=proprio[:, :3]))
    front, wrist = good.images["front"], good.images["wrist"]
    for images, message in [
        ({"front": front}, r"cameras \['front'\], contract has \['front', 'wrist'\]"),
        ({"front": front, "wrist": wrist[:, :10]}, "'wrist' is torch.uint8 (2, 10, 16, 3)"),
        ({"front": front.float(), "wrist": wrist}, "'front' is torch.float32"),
        ({"front": front[:1], "wrist": wrist}, "'front' is torch.uint8 (1, 12, 16, 3)"),
    ]:
        pattern = message if "contract has" in message else re.escape(message)
        with pytest.raises(ContractMismatchError, match=pattern):
            processor.encode_observation(replace(good, images=images))
    with pytest.raises(ContractMismatchError, match=r"proprio is not finite in \['width'\]"):
        collate([replace(make_observation(), proprio=proprio[1].numpy())], SPEC)


def test_cameras_of_different_sizes_need_a_common_one():
    """Then images are resized, and a plain one keeps its colour."""
    cameras = (CameraSpec("front", 12, 16), CameraSpec("wrist", 24, 32))
    spec = replace(SPEC, cameras=cameras)
    with pytest.raises(ValueError, match="set image_size_px"):
        Processor(spec, make_statistics(), tokenizer())
    config = ProcessorConfig(image_size_px=(12, 16))
    processor = Processor(spec, make_statistics(), tokenizer(), config)
    observation = make_observation()
    # Blocks of 2 x 2 equal pixels away from the left half's edge: halving gives each half's colour.
    wrist = np.zeros((24, 32, 3), np.uint8)
    wrist[:, 16:] = (10, 200, 255)
    images = {"front": observation.images["front"], "wrist": wrist}
    inputs = processor.encode_observation(collate([replace(observation, images=images)], spec))
    assert inputs.pixel_values.dtype == torch.uint8
    assert (inputs.pixel_values[0, 0].permute(1, 2, 0).numpy() == images["front"]).all()
    assert (inputs.pixel_values[0, 1, :, :, :7] == 0).all()
    right = inputs.pixel_values[0, 1, :, :, 9:]
    assert (right == torch.tensor([10, 200, 255], dtype=torch.uint8)[:, None, None]).all()


def test_a_robot_without_a_camera_is_refused():
    """Alone or among others: there would be nothing to see."""
    with pytest.raises(ValueError, match="'example' has no camera"):
        Processor(replace(SPEC, cameras=()), make_statistics(), tokenizer())


def test_pixels_become_minus_one_to_one():
    """By hand, also in bfloat16."""
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8)
    torch.testing.assert_close(normalise_pixels(pixels), torch.tensor([-1.0, -0.6, 1.0]))
    assert normalise_pixels(pixels, torch.bfloat16).dtype == torch.bfloat16


def test_model_inputs_select_concatenate_and_move():
    """Rows keep belonging together."""
    batch = collate([make_observation(i, SENTENCES[i]) for i in range(3)], SPEC)
    inputs = make_processor().encode_observation(batch)
    again = ModelInputs.concatenate([inputs.select([0]), inputs.select(torch.tensor([1, 2]))])
    for name in ("pixel_values", "input_ids", "attention_mask", "proprio"):
        assert torch.equal(getattr(again, name), getattr(inputs, name))
        assert getattr(inputs.to("meta"), name).device.type == "meta"
    short = make_processor(padding="longest").encode_observation(batch)
    both = ModelInputs.concatenate([inputs, short])
    assert torch.equal(both.attention_mask[3:], inputs.attention_mask)
    assert torch.equal(both.input_ids[3:], inputs.input_ids)  # padding is 0 here


def test_no_rows_are_no_error():
    """An environment batch of which nobody is active."""
    batch = collate([make_observation()], SPEC).select([])
    inputs = make_processor().encode_observation(batch)
    assert inputs.pixel_values.shape == (0, 2, 3, 12, 16)
    assert inputs.input_ids.shape == (0, 2 * 16 + 64)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_commands_keep_to_the_limits(normalisation, caplog):
    """Whatever a head gives: clipped and said once a dimension; NaN is refused by name."""
    processor = make_processor(action_normalisation=normalisation)
    low, high = torch.tensor(SPEC.action.low), torch.tensor(SPEC.action.high)
    for sign, limit in ((1e4, high), (-1e4, low)):
        for _ in range(2):
            assert torch.equal(processor.decode_actions(torch.full((2, 3), sign))[0], limit)
    assert len(caplog.records) == 3
    assert all(name in caplog.text for name in SPEC.action.names)
    broken = torch.zeros(2, 3)
    broken[1, 1] = torch.nan
    with pytest.raises(ContractMismatchError, match=f"action.*{SPEC.action.names[1]}"):
        processor.decode_actions(broken)


def test_large_numbers_keep_their_difference():
    """A counter of 16,777,217 is not the one before: subtracted first, rounded later."""
    spec = VectorSpec(("tick", "x"), ("1", "m"), (-math.inf, -1.0), (math.inf, 1.0))
    first = 16_777_216
    rows = np.array([[first + i, 0.1 * i] for i in range(5)], dtype=np.float64)
    statistics = VectorStatistics.measure(rows)
    for normalisation in ("min_max", "mean_std"):
        encode = AffineNormaliser("proprio", spec, statistics, normalisation).encode
        steps = encode(rows)[:, 0].diff()
        assert torch.allclose(steps, steps[:1].expand(4))
        assert float(steps[0]) == pytest.approx(
            {"min_max": 0.5, "mean_std": 0.5**0.5}[normalisation]
        )


@pytest.mark.parametrize(
    "config",
    [
        {},
        {
            "action_normalisation": "quantile",
            "proprio_normalisation": "min_max",
            "image_size_px": (8, 8),
            "image_tokens_per_camera": 3,
            "max_text_tokens": 14,
            "padding": "longest",
        },
    ],
)
def test_saved_processor_is_the_same(tmp_path, config):
    """Equal data, equal tensors in both directions, equal files when saved again."""
    processor = make_processor(**config)
    batch = collate([make_observation(0), make_observation(1, "unseen words")], SPEC)
    expected = processor.encode_observation(batch)
    (tmp_path / "one").mkdir()
    processor.save(tmp_path / "one")
    loaded = Processor.load(tmp_path / "one")
    assert loaded.spec == SPEC
    assert loaded.config == processor.config
    assert loaded.statistics == processor.statistics
    inputs = loaded.encode_observation(batch)
    for name in ("pixel_values", "input_ids", "attention_mask", "proprio"):
        assert torch.equal(getattr(inputs, name), getattr(expected, name))
    actions = np.random.default_rng(3).normal(size=(5, 3)).astype(np.float32)
    encoded = loaded.encode_actions(actions)
    assert torch.equal(encoded, processor.encode_actions(actions))
    assert torch.equal(loaded.decode_actions(encoded), processor.decode_actions(encoded))
    (tmp_path / "two").mkdir()
    loaded.save(tmp_path / "two")
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.json")]
    assert len(files) == 4
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"action_normalisation": "zscore"}, "'zscore' is not one of"),
        ({"padding": "none"}, "'none' is not 'fixed' or 'longest'"),
        ({"max_text_tokens": 0}, "max_text_tokens must be at least 1"),
        ({"image_token": "<photo>"}, "no image token '<photo>'"),
    ],
)
def test_wrong_configuration_is_refused(config, message):
    """With the valid choices."""
    with pytest.raises(ValueError, match=message):
        make_processor(**config)
