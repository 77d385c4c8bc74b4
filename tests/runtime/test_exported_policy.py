"""The loader of exported policies on one made by hand: what it decides, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from toy_policy import LENGTH, SPEC, observe, write_toy
from vla_runtime.contract import ContractMismatchError, InpaintingPolicy
from vla_runtime.exported.folder import (
    ExportedFolderError,
    new_exported_folder,
    read_exported,
    write_manifest,
)
from vla_runtime.exported.policy import ExportedPolicy
from vla_runtime.loading import load_policy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete folder; tests that change something copy it."""
    return write_toy(tmp_path_factory.mktemp("exported") / "toy")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """To damage."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_memory_goes_in_and_comes_out(folder: Path) -> None:
    """Decisions count since the episode began; the old memory is a value that stays."""
    policy = load_policy(str(folder))
    assert isinstance(policy, InpaintingPolicy)
    assert policy.chunk_length == LENGTH
    begin = policy.initial_state()
    first, after = policy.decide(observe(), begin)
    second, _ = policy.decide(observe(), after)
    again, _ = policy.decide(observe(), begin)
    assert first.actions[:, 0].tolist() == [0.5, 1.5, 2.5]
    assert second.actions[:, 0].tolist() == [1.5, 2.5, 3.5]
    assert np.array_equal(first.actions, again.actions)
    assert first.actions.dtype == np.float32


def test_another_instruction_begins_anew(folder: Path) -> None:
    """What is remembered was about another object."""
    policy = ExportedPolicy(folder)
    _, state = policy.decide(observe(), policy.initial_state())
    moved, state = policy.decide(observe(instruction="go right"), state)
    assert moved.actions[0, 0] == 0.5
    assert policy.decide(observe(instruction="go right"), state)[0].actions[0, 0] == 1.5


def test_inpainting_keeps_what_runs_meanwhile(folder: Path) -> None:
    """Steps of weight 1 are the target's, the others the graph's; the memory goes on."""
    policy = ExportedPolicy(folder)
    target = np.array([[1.0], [2.0], [3.0]], dtype=np.float32)
    weight = np.array([1.0, 0.5, 0.0])
    chunk, state = policy.inpaint(observe(), policy.initial_state(), target, weight)
    assert chunk.actions[:, 0].tolist() == [1.0, 1.0, 1.5]
    assert state.tensors["seen"].item() == 1.0
    for wrong, share in ((target[:2], weight), (target, weight + 1), (target * np.nan, weight)):
        with pytest.raises(ContractMismatchError):
            policy.inpaint(observe(), policy.initial_state(), wrong, share)


def test_a_provider_that_is_not_there_is_an_error(folder: Path) -> None:
    """ONNX Runtime alone would go on with the CPU, and only warn."""
    with (
        pytest.warns(UserWarning, match="TensorrtExecutionProvider"),
        pytest.raises(ValueError, match=r"cannot use TensorrtEx.* installed with it: .*CPUExec"),
    ):
        ExportedPolicy(folder, providers=("TensorrtExecutionProvider", "CPUExecutionProvider"))
    options = {"arena_extend_strategy": "kSameAsRequested"}
    ExportedPolicy(folder, providers=[("CPUExecutionProvider", options)])


def test_tokens_end_where_the_graph_says(tmp_path: Path) -> None:
    """Two tokens, then the end; the chunk is what all of them stand for."""
    policy = ExportedPolicy(write_toy(tmp_path / "toy", tokens=True))
    assert policy.tokens(observe(), policy.initial_state()).tolist() == [1, 2, -1, -1]
    assert policy.decide(observe(), policy.initial_state())[0].actions[0, 0] == 1 + 2 - 1 - 1
    assert not policy.can_inpaint
    with pytest.raises(TypeError, match="'token' cannot complete a chunk"):
        policy.inpaint(observe(), policy.initial_state(), np.zeros((3, 1)), np.zeros(3))


def test_prompts_are_laid_out_as_described(folder: Path) -> None:
    """Prefix, words, suffix, padding."""
    policy = ExportedPolicy(folder)
    ids, mask = policy.prompt("go left")
    assert ids.tolist() == [[4, 4, 5, 6, 2, 0]]
    assert mask.tolist() == [[True] * 5 + [False]]
    with pytest.raises(ValueError, match="has 5 tokens with its end token, this model reads 4"):
        policy.prompt("go left go left")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"images": {}}, r"has cameras \[\], contract has \['top'\]"),
        ({"proprio": np.zeros(2, np.float32)}, "contract says 1"),
        ({"proprio": np.full(1, np.nan, np.float32)}, r"proprio is not finite in \['x'\]"),
    ],
)
def test_wrong_observations_are_refused(folder: Path, changes: dict, match: str) -> None:
    """Before anything is computed."""
    policy, good = ExportedPolicy(folder), observe()
    fields = {"images": good.images, "proprio": good.proprio, "instruction": "go", **changes}
    with pytest.raises(ContractMismatchError, match=match):
        policy.decide(type(good)(**fields), policy.initial_state())


def test_commands_that_are_not_finite_are_refused(folder: Path) -> None:
    """Here through a memory that holds NaN."""
    policy = ExportedPolicy(folder)
    _, state = policy.decide(observe(), policy.initial_state())
    state.tensors["seen"][:] = np.nan  # type: ignore[index]
    with pytest.raises(ContractMismatchError, match=r"not finite in \['x'\]"):
        policy.decide(observe(), state)
    with pytest.raises(TypeError, match="memory of another policy"):
        policy.decide(observe(), None)


def test_any_flipped_byte_is_refused(copy: Path) -> None:
    """Every byte of the manifest, and many of every other file."""
    rng = np.random.default_rng(0)
    read_exported(copy)
    for path in sorted(path for path in copy.rglob("*") if path.is_file()):
        content = path.read_bytes()
        every = range(len(content))
        chosen = every if path.name == "manifest.json" else rng.choice(every, min(40, len(every)))
        for index in map(int, chosen):
            damaged = bytearray(content)
            damaged[index] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            with pytest.raises(ExportedFolderError):
                read_exported(copy)
        path.write_bytes(content)
    read_exported(copy)


@pytest.mark.parametrize("name", ["encode.onnx", "contract.json", "tokenizer/tokenizer.json"])
def test_missing_files_are_named(copy: Path, name: str) -> None:
    """Through the loader of any source."""
    (copy / name).unlink()
    with pytest.raises(ExportedFolderError, match=f"is incomplete: {name} is missing"):
        load_policy(str(copy))


def test_surplus_files_are_named(copy: Path) -> None:
    """Except hidden ones, which file managers and downloads leave behind."""
    (copy / ".cache").mkdir()
    (copy / ".cache" / "lock").touch()
    read_exported(copy)
    (copy / "more.onnx").touch()
    with pytest.raises(ExportedFolderError, match=r"files that are not of it: \['more.onnx'\]"):
        read_exported(copy)


def test_a_link_to_nothing_is_a_missing_file(copy: Path) -> None:
    """As after a copy of links without what they point at."""
    (copy / "encode.onnx").unlink()
    (copy / "encode.onnx").symlink_to(copy / "nowhere")
    with pytest.raises(ExportedFolderError, match=r"encode\.onnx is missing"):
        read_exported(copy)


def test_another_format_says_what_to_do(copy: Path) -> None:
    """And a manifest of something else is not taken for one of ours."""
    manifest = json.loads((copy / "manifest.json").read_text())
    for changes, match in (
        ({"format": 2}, "has format 2.*reads 1"),
        ({"format": True}, "has format True.*reads 1"),
        ({"format": "1"}, "has format '1'.*reads 1"),
        ({"kind": "x"}, "says 'x'"),
    ):
        text = json.dumps({**manifest, **changes}, indent=1) + "\n"
        (copy / "manifest.json").write_text(text)
        with pytest.raises(ExportedFolderError, match=match):
            read_exported(copy)


def test_files_with_fitting_hashes_may_be_wrong(copy: Path) -> None:
    """Whoever writes a new manifest around a policy.json that is none gets a clear error."""
    (copy / "policy.json").write_text("[]")
    write_manifest(copy)
    with pytest.raises(ExportedFolderError, match="not readable"):
        read_exported(copy)


def test_what_is_no_exported_policy_is_explained(tmp_path: Path) -> None:
    """No folder, and a folder of something else."""
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_policy(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="there is no policy ''"):
        load_policy("")
    with pytest.raises(ValueError, match="write one with `vla export CHECKPOINT --out FOLDER`"):
        load_policy(str(tmp_path))
    with pytest.raises(ValueError, match=r"http://robot:8000 is no policy server: .* ws://HOST"):
        load_policy("http://robot:8000")


def test_where_no_folder_can_be_is_said(tmp_path: Path) -> None:
    """In the words of the given path, not of the hidden folder beside it."""
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OSError, match=rf"cannot write {tmp_path}/file/push: Not a directory"),
        new_exported_folder(tmp_path / "file" / "push"),
    ):
        pass


def test_nothing_that_exists_is_replaced(folder: Path, tmp_path: Path) -> None:
    """Whatever it is; found out before the graphs are made."""
    (link := tmp_path / "link").symlink_to("nowhere")
    for there in (folder, link):
        with (
            pytest.raises(FileExistsError, match="exists: name a new folder"),
            new_exported_folder(there),
        ):
            pytest.fail("the graphs were made")


def test_a_name_that_is_no_text_is_refused(copy: Path) -> None:
    """ONNX Runtime takes names of files as UTF-8 alone; found out before the graphs are made."""
    odd = copy.rename(os.fsdecode(os.fsencode(copy.parent) + b"/n\xff"))
    with pytest.raises(ExportedFolderError, match=r"n\\udcff' is no UTF-8, .* choose another name"):
        load_policy(str(odd))
    with pytest.raises(ExportedFolderError, match="no UTF-8"), new_exported_folder(odd / "new"):
        pytest.fail("the graphs were made")


def test_an_interrupted_export_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the folder nor what was written of it."""
    monkeypatch.setattr("toy_policy.write_description", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_toy(tmp_path / "toy")
    assert not list(tmp_path.iterdir())


def test_the_loader_imports_no_torch(folder: Path) -> None:
    """In a process of its own: neither torch nor transformers, and it decides."""
    program = (
        "import sys; from vla_runtime.loading import load_policy; "
        f"p = load_policy({str(folder)!r}); p.initial_state(); "
        "print([n for n in ('torch', 'transformers', 'vla', 'sim') if n in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
    assert SPEC.robot == "toy"
