"""A checkpoint is whole or not there, and comes back bit for bit."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from example_robot import SPEC, make_observation, make_processor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from vla.checkpoint import folder as checkpoint
from vla.checkpoint.folder import CheckpointError, latest_complete, load_checkpoint, save_checkpoint
from vla.checkpoint.ledger import Ledger
from vla.checkpoint.state_dict_io import flatten_state, restore_state
from vla.processing.processor import collate

WEIGHTS = {
    "layer.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "layer.half": torch.tensor([1.5, -2.25], dtype=torch.bfloat16),
    "steps": torch.tensor(7),
    "flags": torch.tensor([True, False]),
}
FILES = {
    "config.json",
    "contract.json",
    "manifest.json",
    "model.safetensors",
    "processor.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
}


def save(folder: Path, value: float = 0.0, **more) -> Path:
    """A checkpoint that `value_of` can tell from others."""
    return save_checkpoint(
        folder,
        model_config={"width": 3, "value": value},
        weights={**WEIGHTS, "value": torch.tensor([value])},
        processor=make_processor(),
        **more,
    )


def value_of(folder: Path) -> float:
    """What `save` put into a checkpoint that loads."""
    loaded = load_checkpoint(folder)
    assert loaded.model_config["value"] == loaded.weights["value"].item()
    return loaded.model_config["value"]


def names_in(folder: Path) -> set[str]:
    """Everything in a folder, hidden or not."""
    return {path.name for path in folder.iterdir()}


def same(ours, theirs) -> bool:
    """Equal types, values and bits, all the way down."""
    if type(ours) is not type(theirs):
        return False
    if isinstance(ours, torch.Tensor):
        bits, others = (tensor.reshape(-1).view(torch.uint8) for tensor in (ours, theirs))
        kind = (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        return kind and torch.equal(bits, others)
    if isinstance(ours, np.ndarray):
        return ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
    if isinstance(ours, dict):
        keys_match = ours.keys() == theirs.keys()
        return keys_match and all(same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return ours == theirs or (ours != ours and theirs != theirs)


def test_everything_comes_back(tmp_path):
    """Types, bits, contract and processor; nothing but the checkpoint is left behind."""
    folder = save(tmp_path / "run" / "step_000010", 2.5)
    loaded = load_checkpoint(folder)
    assert same(loaded.weights, {**WEIGHTS, "value": torch.tensor([2.5])})
    assert list(loaded.weights) == sorted(loaded.weights)
    assert loaded.model_config == {"width": 3, "value": 2.5}
    assert loaded.spec == SPEC
    assert loaded.processor.to_dict() == make_processor().to_dict()
    assert loaded.training_state is None
    assert names_in(tmp_path / "run") == {"step_000010"}
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert found == FILES


def test_manifest_by_hand(tmp_path):
    """It lists every other file with its size and SHA-256."""
    folder = save(tmp_path / "a")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["format"] == 4
    assert set(manifest["files"]) == FILES - {"manifest.json"}
    for name, entry in manifest["files"].items():
        data = (folder / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def test_tied_and_strided_weights_come_back(tmp_path):
    """Shared memory and views are saved as what they show."""
    shared = torch.arange(12.0).reshape(3, 4)
    weights = {"in": shared, "out": shared, "turned": shared.T, "row": shared[1].expand(2, 4)}
    save_checkpoint(tmp_path / "a", model_config={}, weights=weights, processor=make_processor())
    loaded = load_checkpoint(tmp_path / "a").weights
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


def test_fresh_process_computes_the_same(tmp_path):
    """Weights and processor give a new process identical tensors, bit for bit."""
    save(tmp_path / "a", 1.0)
    observation = make_observation(3, "lift the green block, please")
    batch = collate([observation], SPEC)
    torch.save([batch.images, batch.proprio], tmp_path / "batch.pt")
    program = """if True:
        import sys, torch
        from vla.checkpoint.folder import load_checkpoint
        from vla.contract import ObservationBatch
        loaded = load_checkpoint(sys.argv[1] + "/a")
        images, proprio = torch.load(sys.argv[1] + "/batch.pt")
        text = ["lift the green block, please"]
        batch = ObservationBatch(images, proprio, text, torch.zeros(1))
        inputs = loaded.processor.encode_observation(batch)
        actions = loaded.processor.decode_actions(torch.tensor([[0.1, -0.2, 0.3]]))
        torch.save([loaded.weights, vars(inputs), actions], sys.argv[1] + "/result.pt")
    """
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    processor = make_processor()
    weights, inputs, actions = torch.load(tmp_path / "result.pt")
    assert same(weights, load_checkpoint(tmp_path / "a").weights)
    assert same(inputs, vars(processor.encode_observation(batch)))
    assert same(actions, processor.decode_actions(torch.tensor([[0.1, -0.2, 0.3]])))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damaged_byte_is_detected(tmp_path, data):
    """In any file but the manifest; there it is detected, or was white space."""
    folder = tmp_path / "a"
    if not folder.exists():
        save(folder, training_state={"x": torch.ones(3)})
    name = data.draw(st.sampled_from(sorted(FILES | {"training_state.safetensors"})))
    original = (folder / name).read_bytes()
    position = data.draw(st.integers(0, len(original) - 1))
    damaged = bytearray(original)
    damaged[position] ^= data.draw(st.integers(1, 255))
    (folder / name).write_bytes(damaged)
    try:
        if name == "manifest.json" and original[position : position + 1].isspace():
            return
        with pytest.raises(CheckpointError, match=r"damaged|missing|lacks|format"):
            load_checkpoint(folder)
    finally:
        (folder / name).write_bytes(original)


@pytest.mark.parametrize("name", sorted(FILES))
def test_truncated_or_missing_file_is_named(tmp_path, name):
    """And `latest_complete` goes back to the one before."""
    save(tmp_path / "step_1")
    folder = save(tmp_path / "step_2")
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-3])
    with pytest.raises(CheckpointError, match=f"{name}.* damaged|damaged: {name} "):
        load_checkpoint(folder)
    assert latest_complete(tmp_path) == tmp_path / "step_1"
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(folder)
    assert latest_complete(tmp_path) == tmp_path / "step_1"


def test_unknown_format_is_refused(tmp_path):
    """With both versions."""
    folder = save(tmp_path / "step_1")
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"format": 4', '"format": 99'))
    with pytest.raises(CheckpointError, match="has format 99, this version reads up to 4"):
        load_checkpoint(folder)
    assert latest_complete(tmp_path) is None


def test_missing_checkpoint_lists_those_nearby(tmp_path):
    """Beside it, inside it, or says that there is none."""
    with pytest.raises(CheckpointError, match=f"no checkpoint .*nor any in {tmp_path}"):
        load_checkpoint(tmp_path / "no" / "run" / "step_3")
    save(tmp_path / "run" / "step_1")
    save(tmp_path / "run" / "step_2")
    for asked in (tmp_path / "run" / "step_3", tmp_path / "run"):
        with pytest.raises(CheckpointError, match=r"those nearby: .*step_1, .*step_2$"):
            load_checkpoint(asked)


def test_an_exported_policy_is_no_checkpoint(tmp_path):
    """It has a manifest, too: it is called what it is, and is not offered as one nearby."""
    (tmp_path / "exported").mkdir()
    manifest = tmp_path / "exported" / "manifest.json"
    manifest.write_text('{"format": 1, "kind": "exported policy", "files": {}}')
    with pytest.raises(CheckpointError, match="no checkpoint, it is an exported policy"):
        load_checkpoint(tmp_path / "exported")
    with pytest.raises(CheckpointError, match="nor any in"):
        load_checkpoint(tmp_path / "step_3")


def test_latest_is_the_highest_number(tmp_path):
    """By number, not by spelling or time; other names are not steps."""
    assert latest_complete(tmp_path / "nothing") is None
    for name in ("step_20", "step_100", "step_9", "best"):
        save(tmp_path / name)
    (tmp_path / "step_500").mkdir()
    assert latest_complete(tmp_path) == tmp_path / "step_100"


class Killed(BaseException):
    """Stands for a kill: nothing that runs after it counts."""


def killed(*_args, **_kwargs):
    """Any function at which the process dies."""
    raise Killed


def test_a_kill_at_any_moment_leaves_a_complete_checkpoint(tmp_path, monkeypatch):
    """At every call that changes the disk, without any clean-up: old or new loads, never none."""
    folder = save(tmp_path / "step_1", 1.0)
    seen = set()
    moments = (
        [(checkpoint, "_write_json", n) for n in range(3)]
        + [(checkpoint, "_write_tensors", n) for n in range(2)]
        + [(os, "fsync", n) for n in (0, 4, 11)]
        + [
            (os, "rename", 0),
            (os, "rename", 1),
            (checkpoint.shutil, "rmtree", 0),
            (checkpoint.shutil, "rmtree", 1),
        ]
    )
    for module, name, count in moments:
        calls = iter(range(1000))
        original = getattr(module, name)

        def until_killed(*args, _calls=calls, _count=count, _original=original, **kwargs):
            return killed() if next(_calls) >= _count else _original(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(module, name, until_killed)
            if name != "rmtree":
                patch.setattr(checkpoint.shutil, "rmtree", lambda *_a, **_k: None)
            with pytest.raises(Killed):
                save(folder, 2.0, training_state={"x": torch.ones(2)})
        survivor = value_of(folder)
        seen.add((name, count, survivor))
        assert survivor in (1.0, 2.0)
        assert latest_complete(tmp_path) == folder
        save(folder, 1.0)
        assert names_in(tmp_path) == {"step_1"}, "the next save must sweep up what a kill left"
    # Before the second rename it is the old one, after it the new one.
    assert ("rename", 1, 1.0) in seen
    assert ("fsync", 11, 2.0) in seen
    assert ("rmtree", 1, 2.0) in seen
    assert all(value == 1.0 for name, _, value in seen if name.startswith("_write"))


@pytest.mark.parametrize("kind", ["os", "rust"])
def test_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch, kind):
    """The message says so, and what was there before still loads."""
    folder = save(tmp_path / "step_1", 1.0)

    def full(*_args):
        # tokenizers and safetensors report it so, without an OSError.
        text = "No space left on device (os error 28)"
        raise OSError(errno.ENOSPC, "full") if kind == "os" else Exception(text)

    monkeypatch.setattr(checkpoint, "_write_tensors", full)
    for target in (folder, tmp_path / "step_2"):
        with pytest.raises(
            CheckpointError, match=r"the disk is full: .*MB are free now\); free more"
        ):
            save(target, 2.0)
    assert names_in(tmp_path) == {"step_1"}
    assert value_of(folder) == 1.0


def test_plain_errors_leave_nothing_and_keep_their_type(tmp_path):
    """A configuration that is no JSON, a state that cannot be saved, an unwritable place."""
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_checkpoint(
            tmp_path / "a", model_config={"x": {1}}, weights={}, processor=make_processor()
        )
    with pytest.raises(TypeError, match="state/model/1 is a Linear, which cannot be saved"):
        save(tmp_path / "a", training_state={"model": [1, nn.Linear(1, 1)]})
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"was not written: .*Not a directory"):
        save(tmp_path / "file" / "a")
    assert names_in(tmp_path) == {"file"}


def test_something_else_is_never_replaced(tmp_path):
    """Only checkpoints and empty folders are."""
    (tmp_path / "home").mkdir()
    save(tmp_path / "home")
    shutil.rmtree(tmp_path / "home")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="holds something else"):
        save(tmp_path / "home")
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years of work"
    assert names_in(tmp_path) == {"home"}


plain = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.integers(0, 5).map(lambda n: torch.arange(n, dtype=torch.int16))
    | st.floats(width=32).map(lambda x: torch.tensor(x))
    | st.integers(0, 5).map(lambda n: np.arange(n, dtype=np.uint32))
)
nested = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(nested)
def test_any_state_survives_flattening(state):
    """Types, keys, order and bits, through real JSON text."""
    tensors, structure = flatten_state(state)
    restored = restore_state(tensors, json.loads(json.dumps(structure)))
    assert same(restored, state)


@pytest.mark.parametrize("bad", [{1.5: 0}, {(1,): 0}, {1, 2}, np.float32(1), object()])
def test_state_that_cannot_be_saved_is_refused(bad):
    """With its place, instead of a pickle."""
    with pytest.raises(TypeError, match=r"state/a/0 is a \w+, which cannot be saved"):
        flatten_state({"a": [bad]})


def make_training():
    """A model, its optimizer with two groups, and a schedule."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    groups = [
        {"params": model[0].parameters(), "lr": 1e-2, "weight_decay": 0.1},
        {"params": model[2].parameters(), "lr": 3e-3},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), amsgrad=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    return model, optimizer, schedule


def train(training, generator: np.random.Generator, steps: int) -> list[float]:
    """Losses on random batches from three kinds of random generators."""
    model, optimizer, schedule = training
    losses = []
    for _ in range(steps):
        inputs = torch.randn(8, 4) + random.random() + generator.random()
        loss = ((model(inputs) - inputs.sum(1, keepdim=True)) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def test_training_resumes_exactly(tmp_path):
    """Train 3, save, train 4; or load into new objects and train the same 4, bit for bit."""
    training = make_training()
    random.seed(1)
    # MT19937's state holds an array of uint32, unlike the default generator's.
    generator = np.random.Generator(np.random.MT19937(1))
    train(training, generator, 3)
    state = {
        "step": 3,
        "optimizer": training[1].state_dict(),
        "schedule": training[2].state_dict(),
        "random": {
            "torch": torch.get_rng_state(),
            "numpy": generator.bit_generator.state,
            "default": np.random.default_rng(5).bit_generator.state,
            "python": random.getstate(),
        },
    }
    save_checkpoint(
        tmp_path / "step_3",
        model_config={},
        weights=training[0].state_dict(),
        processor=make_processor(),
        training_state=state,
    )
    loaded = load_checkpoint(tmp_path / "step_3", with_training_state=True)
    assert loaded.training_state is not None
    assert same(loaded.training_state, state)
    assert load_checkpoint(tmp_path / "step_3").training_state is None
    expected = train(training, generator, 4)

    resumed = make_training()
    resumed[0].load_state_dict(loaded.weights)
    resumed[1].load_state_dict(loaded.training_state["optimizer"])
    resumed[2].load_state_dict(loaded.training_state["schedule"])
    torch.set_rng_state(loaded.training_state["random"]["torch"])
    again = np.random.Generator(np.random.MT19937())
    again.bit_generator.state = loaded.training_state["random"]["numpy"]
    random.setstate(loaded.training_state["random"]["python"])
    assert train(resumed, again, 4) == expected
    assert same(resumed[1].state_dict(), training[1].state_dict())


def test_grounding_alone_teaches_no_acting() -> None:
    """What `vla export` warns of."""
    ledger = Ledger({"grounding_frames": 9})
    assert not ledger.taught_to_act
    ledger.spend(demonstration_episodes=1)
    assert ledger.taught_to_act
    assert Ledger({"collection_steps": 5}).taught_to_act
