"""One folder that is a policy: written all or not at all, and checked byte by byte when read.

    config.json               the model's configuration
    model.safetensors         its weights
    contract.json             the robot it controls          } written by the processor
    processor.json            conversions and statistics     }
    tokenizer/                                               }
    training_state.json       with training_state.safetensors: optimizer, random numbers, step
    manifest.json             format version, size and SHA-256 of every file above

A folder is complete once it has its final name: everything is written and flushed to disk under a
hidden name beside it, then renamed. An older folder of that name first moves to a hidden name too,
where `load_checkpoint` finds it should a crash fall between the two renames.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vla.contract import RobotSpec
from vla.processor import Processor

FORMAT_VERSION = 1
_MANIFEST = "manifest.json"
_NEEDED = ("config.json", "model.safetensors", "contract.json", "processor.json")


class CheckpointError(RuntimeError):
    """A checkpoint is missing, incomplete, damaged or cannot be written."""


@dataclass(frozen=True)
class Checkpoint:
    """What `load_checkpoint` read.

    Attributes:
        folder: where it was asked for.
        model_config: as it was saved, tuples become lists.
        weights: by parameter name, on the CPU.
        processor: with contract, statistics and tokenizer.
        training_state: None when none was saved or it was not asked for.
    """

    folder: Path
    model_config: dict[str, Any]
    weights: dict[str, Tensor]
    processor: Processor
    training_state: dict[str, Any] | None = None

    @property
    def spec(self) -> RobotSpec:
        """The contract of the robot that it controls."""
        return self.processor.spec


def save_checkpoint(
    folder: Path | str,
    *,
    model_config: dict[str, Any],
    weights: dict[str, Tensor],
    processor: Processor,
    training_state: dict[str, Any] | None = None,
) -> Path:
    """Write a checkpoint, replacing one of the same name; returns the folder.

    Args:
        folder: its final name; parents are made.
        model_config: plain data for JSON.
        weights: a state dict; tied weights may share memory.
        processor: brings contract, statistics and tokenizer.
        training_state: nested data as `flatten_state` accepts, for an exact resume.

    Raises:
        CheckpointError: the disk is full or not writable; what was there before is untouched.
        TypeError: the configuration or the training state holds something that is not plain data.
    """
    folder = Path(folder)
    partial = _hidden(folder, "partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write_json(partial / "config.json", model_config)
        _write_tensors(partial / "model.safetensors", weights)
        processor.save(partial)
        if training_state is not None:
            tensors, structure = flatten_state(training_state)
            _write_json(partial / "training_state.json", structure)
            _write_tensors(partial / "training_state.safetensors", tensors)
        files = {name: _fingerprint(partial / name) for name in _list_files(partial)}
        _write_json(partial / _MANIFEST, {"format": FORMAT_VERSION, "files": files})
        _flush(partial)
        _put_in_place(partial, folder)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError | SafetensorError):
            raise CheckpointError(_explain_write(folder, error)) from error
        raise
    return folder


def load_checkpoint(folder: Path | str, *, with_training_state: bool = False) -> Checkpoint:
    """Read a checkpoint after comparing every file with the manifest.

    Raises:
        CheckpointError: missing (lists those nearby), incomplete, damaged, or of another format.
    """
    folder = Path(folder)
    place = _find(folder)
    files = _read_manifest(place)
    if missing := [name for name in _NEEDED if name not in files]:
        raise CheckpointError(f"checkpoint {folder} lacks {missing} in its manifest")
    for name, expected in files.items():
        _verify(place, name, expected)
    state = None
    if with_training_state and "training_state.json" in files:
        tensors = load_file(place / "training_state.safetensors")
        state = restore_state(tensors, _read_json(place / "training_state.json"))
    return Checkpoint(
        folder=folder,
        model_config=_read_json(place / "config.json"),
        weights=load_file(place / "model.safetensors"),
        processor=Processor.load(place),
        training_state=state,
    )


def latest_complete(run_folder: Path | str) -> Path | None:
    """The complete checkpoint with the highest number at the end of its name, such as step_000300.

    Complete means a manifest of this format and every file in its size; the bytes are compared
    when it is loaded. None where there is no such folder.
    """
    numbered = [
        (int(m[0]), f) for f in _list_checkpoints(run_folder) if (m := _STEP.search(f.name))
    ]
    for _, folder in sorted(numbered, reverse=True):
        place = _find(folder)
        try:
            files = _read_manifest(place)
        except CheckpointError:
            continue
        sizes = {name: entry["bytes"] for name, entry in files.items()}
        if all(_size(place / name) == size for name, size in sizes.items()):
            return folder
    return None


def flatten_state(state: Any) -> tuple[dict[str, Tensor], Any]:
    """Split nested data into tensors and JSON data; `restore_state` is the exact inverse.

    Accepts dicts with str or int keys, lists, tuples, tensors, numpy arrays, str, int, float, bool
    and None: state dicts of optimizers and schedulers, states of random generators.

    Raises:
        TypeError: naming the place of anything else.
    """
    tensors: dict[str, Tensor] = {}

    def flatten(path: str, value: Any) -> Any:
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, Tensor | np.ndarray):
            # The number in front keeps equal paths apart: {"a": {"b": x}, "a/b": y}.
            name = f"{len(tensors)}:{path}"
            is_tensor = isinstance(value, Tensor)
            tensors[name] = value.detach() if is_tensor else torch.from_numpy(value.copy())
            return {"tensor" if is_tensor else "array": name}
        if isinstance(value, list):
            return [flatten(f"{path}/{i}", item) for i, item in enumerate(value)]
        if isinstance(value, tuple):
            return {"tuple": [flatten(f"{path}/{i}", item) for i, item in enumerate(value)]}
        if isinstance(value, dict) and all(type(key) in (str, int) for key in value):
            return {"dict": [[k, flatten(f"{path}/{k}", item)] for k, item in value.items()]}
        raise TypeError(
            f"state{path} is a {type(value).__name__}, which cannot be saved: use tensors, arrays, "
            "plain values, lists, tuples and dicts with str or int keys"
        )

    return tensors, flatten("", state)


def restore_state(tensors: dict[str, Tensor], structure: Any) -> Any:
    """Exact inverse of `flatten_state`."""
    if isinstance(structure, list):
        return [restore_state(tensors, item) for item in structure]
    if not isinstance(structure, dict):
        return structure
    ((kind, content),) = structure.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "array":
        return tensors[content].numpy()
    if kind == "tuple":
        return tuple(restore_state(tensors, item) for item in content)
    return {key: restore_state(tensors, item) for key, item in content}


_STEP = re.compile(r"\d+$")


def _hidden(folder: Path, role: str) -> Path:
    return folder.with_name(f".{folder.name}.{role}")


def _put_in_place(partial: Path, folder: Path) -> None:
    previous = _hidden(folder, "previous")
    if folder.exists():
        if not (folder / _MANIFEST).is_file() and any(folder.iterdir()):
            raise CheckpointError(f"{folder} holds something else; choose another folder")
        shutil.rmtree(previous, ignore_errors=True)
        os.rename(folder, previous)
    os.rename(partial, folder)
    _sync(folder.parent)
    shutil.rmtree(previous, ignore_errors=True)


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    # safetensors refuses shared memory (tied weights) and odd strides: each gets its own copy.
    own = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
    save_file(own, path)
    path.chmod(0o644)  # safetensors makes it private, which breaks serving by another user


def _list_files(folder: Path) -> list[str]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": digest, "bytes": path.stat().st_size}


def _flush(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _explain_write(folder: Path, error: Exception) -> str:
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    # safetensors reports the system's error only as text.
    if full or "StorageFull" in str(error) or "code: 28" in str(error):
        free = shutil.disk_usage(_nearest(folder)).free / 1e6
        return (
            f"the disk is full ({free:.0f} MB free): checkpoint {folder} was not written and "
            "nothing is left of it; free some space or choose another folder, then continue"
        )
    return f"checkpoint {folder} was not written: {error}"


def _nearest(folder: Path) -> Path:
    return next(path for path in folder.absolute().parents if path.exists())


def _find(folder: Path) -> Path:
    """Where the checkpoint lies: under its name, or beside it after a crash between renames."""
    if folder.exists():
        return folder
    if (previous := _hidden(folder, "previous")).exists():
        return previous
    raise CheckpointError(f"there is no checkpoint {folder}; {_nearby(folder)}")


def _list_checkpoints(run_folder: Path | str) -> list[Path]:
    """Folders with a manifest, by the name that `load_checkpoint` knows them by."""
    run_folder = Path(run_folder)
    names = {
        re.sub(r"^\.(.+)\.previous$", r"\1", manifest.parent.name)
        for manifest in run_folder.glob(f"*/{_MANIFEST}")
        if not manifest.parent.name.endswith(".partial")
    }
    return sorted(run_folder / name for name in names)


def _nearby(folder: Path) -> str:
    for place in (folder, folder.parent):
        if found := _list_checkpoints(place):
            return f"those nearby: {', '.join(map(str, found))}"
    return f"nor any in {_nearest(folder)}"


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    if not (folder / _MANIFEST).is_file():
        raise CheckpointError(f"{folder} is no checkpoint: no {_MANIFEST}; {_nearby(folder)}")
    try:
        manifest = _read_json(folder / _MANIFEST)
        version, files = manifest["format"], manifest["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / _MANIFEST} is damaged: {error!r}") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"checkpoint {folder} has format {version}, this version reads {FORMAT_VERSION}: load "
            "it with the version that wrote it, or update"
        )
    return files


def _verify(folder: Path, name: str, expected: dict[str, Any]) -> None:
    path = folder / name
    if (size := _size(path)) is None:
        raise CheckpointError(f"checkpoint {folder} is incomplete: {name} is missing")
    if size != expected["bytes"]:
        raise CheckpointError(
            f"checkpoint {folder} is damaged: {name} has {size} bytes instead of "
            f"{expected['bytes']}; copy it again or use another one"
        )
    if _fingerprint(path)["sha256"] != expected["sha256"]:
        raise CheckpointError(
            f"checkpoint {folder} is damaged: the SHA-256 of {name} is not the manifest's; copy it "
            "again or use another one"
        )
