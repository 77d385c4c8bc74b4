"""One folder that is a policy: written all or not at all, and checked byte by byte when read.

    config.json               the model's configuration
    model.safetensors         its weights
    contract.json             the robot it controls
    processor.json            conversions, and the robot's statistics
    embodiments.json          for several robots instead: contract and statistics of each, by name
    tokenizer/                the embedded model's
    language_tower.json       instead of it: which pretrained text model reads its words
    vlm_processor/            or another model's own
    README.md                 what it is, for readers
    ledger.json               what was spent on these weights, by name
    training_state.json       with training_state.safetensors: optimizer, random numbers, step
    <other>.json              for other programs
    manifest.json             format version, size and SHA-256 of every file above

A folder is complete once it has its final name: everything is written and flushed to disk under a
hidden name beside it, then renamed. An older folder of that name first moves to a hidden name too,
where `load_checkpoint` finds it should a crash fall between the two renames.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import load_file, save_file
from torch import Tensor
from vla_runtime.atomic_folder import describe_files, digest, flush, hidden, partial_folder, sync

from vla.checkpoint.ledger import Ledger
from vla.checkpoint.state_dict_io import flatten_state, restore_state
from vla.checkpoint.upgrade import upgrade_config, upgrade_weights
from vla.contract import RobotSpec
from vla.processing.embodiments import Embodiments
from vla.processing.processor import Processor

FORMAT_VERSION = 4
_LEROBOT_FORMAT = 2  # since which config.json has the names that LeRobot reads
_MANIFEST = "manifest.json"
_WEIGHTS = "model.safetensors"
_STATE = "training_state"
_LEDGER = "ledger.json"
# The number at the end of a checkpoint's name, such as step_000300.
_STEP = re.compile(r"\d+$")
_NEEDED = ("config.json", _WEIGHTS, "processor.json")
# The first for one robot, the second for several: a checkpoint holds exactly one of them.
_ROBOTS = ("contract.json", "embodiments.json")


class Conversions(Protocol):
    """What a checkpoint holds beside a model: at least a contract."""

    def save(self, folder: Path) -> None:
        """Write its files into an existing folder."""
        ...


class CheckpointError(RuntimeError):
    """A checkpoint is missing, incomplete, damaged or cannot be written."""


@dataclass(frozen=True)
class Checkpoint:
    """What `load_checkpoint` read.

    Attributes:
        folder: where it was asked for.
        model_config: as it was saved, tuples become lists.
        weights: sorted by parameter name, on the CPU.
        embodiments: with contracts, statistics and tokenizer.
        training_state: None when none was saved or it was not asked for.
        ledger: what was spent on the weights; empty where it is unknown.
    """

    folder: Path
    model_config: dict[str, Any]
    weights: dict[str, Tensor]
    embodiments: Embodiments
    training_state: dict[str, Any] | None = None
    ledger: Ledger = field(default_factory=Ledger)

    @property
    def processor(self) -> Processor:
        """Of the only robot that it controls.

        Raises:
            ValueError: it controls several.
        """
        return self.embodiments[self.embodiments.choose(None)]

    @property
    def spec(self) -> RobotSpec:
        """The contract of the only robot that it controls."""
        return self.processor.spec


def save_checkpoint(
    folder: Path | str,
    *,
    model_config: dict[str, Any],
    weights: dict[str, Tensor],
    processor: Conversions,
    card: str | None = None,
    training_state: dict[str, Any] | None = None,
    ledger: Mapping[str, int] | None = None,
    documents: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint, replacing one of the same name; returns the folder.

    Args:
        folder: its final name; parents are made.
        model_config: plain data for JSON.
        weights: a state dict; tied weights may share memory.
        processor: brings contract, statistics and tokenizer, of one robot or of several.
        card: text of README.md; None writes none.
        training_state: nested data as `flatten_state` accepts, for an exact resume.
        ledger: amounts by name, see `Ledger`; none are not written.
        documents: file name → plain data, for JSON files that other programs read.

    Raises:
        CheckpointError: the disk is full or not writable; what was there before is untouched.
        TypeError: the configuration or the training state holds something that is not plain data.
    """
    folder = Path(folder)
    try:
        with partial_folder(folder) as partial:
            _write_json(partial / "config.json", model_config)
            _write_tensors(partial / _WEIGHTS, weights)
            processor.save(partial)
            if card is not None:
                (partial / "README.md").write_text(card, encoding="utf-8")
            for name, data in (documents or {}).items():
                _write_json(partial / name, data)
            if ledger:
                _write_json(partial / _LEDGER, dict(ledger))
            if training_state is not None:
                tensors, structure = flatten_state(training_state)
                _write_json(partial / f"{_STATE}.json", structure)
                _write_tensors(partial / f"{_STATE}.safetensors", tensors)
            # Last, so that it lists every file; then on disk before the rename makes the name
            # valid.
            manifest = {"format": FORMAT_VERSION, "files": describe_files(partial)}
            _write_json(partial / _MANIFEST, manifest)
            flush(partial)
            _put_in_place(partial, folder)
    except Exception as error:
        if (code := _system_errno(error)) is not None:
            raise CheckpointError(_explain_write(folder, code, error)) from error
        raise
    return folder


def load_checkpoint(folder: Path | str, *, with_training_state: bool = False) -> Checkpoint:
    """Read a checkpoint after comparing every file with the manifest.

    Raises:
        CheckpointError: missing (lists those nearby), incomplete, damaged, or of another format.
    """
    folder = Path(folder)
    place = _find(folder)
    version, files = _read_manifest(place)
    # Cheap checks before the hashes, which read every byte.
    if missing := [name for name in _NEEDED if name not in files]:
        raise CheckpointError(f"checkpoint {folder} lacks {missing} in its manifest")
    # A file that the manifest does not know must not decide what robot this is.
    if sum(name in files or (place / name).exists() for name in _ROBOTS) != 1:
        raise CheckpointError(f"checkpoint {folder} must hold exactly one of {[*_ROBOTS]}")
    for name, expected in files.items():
        _verify(place, name, expected)
    # The optimizer's state is up to twice the weights: read only on request.
    state = _read_training_state(place, files) if with_training_state else None
    model_config, weights = _read_json(place / "config.json"), load_file(place / _WEIGHTS)
    if version < FORMAT_VERSION:
        model_config = upgrade_config(model_config, version)
        weights = upgrade_weights(weights, version)
    return Checkpoint(
        folder=folder,
        model_config=model_config,
        # safetensors returns them in another order each time.
        weights=dict(sorted(weights.items())),
        embodiments=Embodiments.load(place),
        training_state=state,
        ledger=Ledger(_read_json(place / _LEDGER) if _LEDGER in files else None),
    )


def load_training_state(folder: Path | str) -> dict[str, Any] | None:
    """The training state of a checkpoint; None where none was saved.

    Raises:
        CheckpointError: missing, incomplete, damaged, or of another format.
    """
    place = _find(Path(folder))
    _, files = _read_manifest(place)
    for name in files:
        if name.startswith(_STATE):
            _verify(place, name, files[name])
    return _read_training_state(place, files)


def _read_training_state(place: Path, files: Mapping[str, Any]) -> dict[str, Any] | None:
    if f"{_STATE}.json" not in files:
        return None
    tensors = load_file(place / f"{_STATE}.safetensors")
    return restore_state(tensors, _read_json(place / f"{_STATE}.json"))


def fingerprint(folder: Path | str) -> str:
    """SHA-256 of a checkpoint's manifest, and so of all its files: equal ones are equal.

    Raises:
        CheckpointError: there is no checkpoint.
    """
    place = _find(Path(folder))
    _read_manifest(place)
    return digest(place / _MANIFEST)


def require_current(folder: Path) -> None:
    """Refuse a checkpoint of an older format, for programs that read its files themselves.

    Raises:
        CheckpointError: not a checkpoint, or an older format; names the command that converts it.
    """
    version, _ = _read_manifest(_find(folder))
    if version < _LEROBOT_FORMAT:
        raise CheckpointError(
            f"checkpoint {folder} has format {version}; LeRobot reads those from "
            f"{_LEROBOT_FORMAT} on: "
            f"convert it with `vla convert --checkpoint {shlex.quote(str(folder))} "
            "--out NEW_FOLDER`"
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
            _, files = _read_manifest(place)
        except CheckpointError:
            continue
        # Sizes find what a crash or a broken copy cut short, without reading gigabytes.
        if all(_size(place / name) == size for name, (_, size) in files.items()):
            return folder
    return None


def _put_in_place(partial: Path, folder: Path) -> None:
    previous = hidden(folder, "previous")
    if folder.exists():
        # Never replace a folder that we did not write: it may be the user's own data.
        if not (folder / _MANIFEST).is_file() and any(folder.iterdir()):
            raise CheckpointError(f"{folder} holds something else; choose another folder")
        shutil.rmtree(previous, ignore_errors=True)
        # A non-empty folder cannot be replaced in one step, hence two renames; `_find` knows both
        # names.
        os.rename(folder, previous)
    os.rename(partial, folder)
    # The rename itself is on disk only once the parent folder is.
    sync(folder.parent)
    shutil.rmtree(previous, ignore_errors=True)


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    # safetensors refuses shared memory (tied weights) and odd strides: each gets its own copy.
    own = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
    save_file(own, path)
    path.chmod(0o644)  # safetensors makes it private, which breaks serving by another user


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _system_errno(error: BaseException) -> int | None:
    """The system's error number, also from safetensors and tokenizers, which give it as text."""
    if isinstance(error, OSError):
        return error.errno or 0
    # Both are written in Rust, which ends its messages like this.
    number = re.search(r"\(os error (\d+)\)", str(error))
    return int(number[1]) if number else None


def _explain_write(folder: Path, code: int, error: BaseException) -> str:
    if code in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(_nearest(folder)).free / 1e6
        return (
            f"the disk is full: checkpoint {folder} was not written and nothing is left of it "
            f"({free:.0f} MB are free now); free more or choose another folder, then continue"
        )
    return f"checkpoint {folder} was not written: {error}"


def _nearest(folder: Path) -> Path:
    return next(path for path in folder.absolute().parents if path.exists())


def _find(folder: Path) -> Path:
    """Where the checkpoint lies: under its name, or beside it after a crash between renames."""
    if folder.exists():
        return folder
    if (previous := hidden(folder, "previous")).exists():
        return previous
    raise CheckpointError(f"there is no checkpoint {folder}; {_nearby(folder)}")


def _list_checkpoints(run_folder: Path | str) -> list[Path]:
    """Folders with a manifest, by the name that `load_checkpoint` knows them by."""
    run_folder = Path(run_folder)
    # Folders under their hidden name, from a crash between the renames, count; unfinished ones do
    # not.
    names = {
        re.sub(r"^\.(.+)\.previous$", r"\1", manifest.parent.name)
        for manifest in run_folder.glob(f"*/{_MANIFEST}")
        if not manifest.parent.name.endswith(".partial") and (manifest.parent / _WEIGHTS).is_file()
    }
    return sorted(run_folder / name for name in names)


def _nearby(folder: Path) -> str:
    for place in (folder, folder.parent):
        if found := _list_checkpoints(place):
            return f"those nearby: {', '.join(map(str, found))}"
    return f"nor any in {_nearest(folder)}"


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _read_manifest(folder: Path) -> tuple[int, dict[str, tuple[str, int]]]:
    """Format version, and SHA-256 and size by file name."""
    if not (folder / _MANIFEST).is_file():
        raise CheckpointError(f"{folder} is no checkpoint: no {_MANIFEST}; {_nearby(folder)}")
    try:
        manifest = _read_json(folder / _MANIFEST)
        if (kind := manifest.get("kind")) is not None:
            raise CheckpointError(f"{folder} is no checkpoint, it is an {kind}")
        if (version := manifest["format"]) not in range(1, FORMAT_VERSION + 1):
            raise CheckpointError(
                f"checkpoint {folder} has format {version}, this version reads up to "
                f"{FORMAT_VERSION}: load it with the version that wrote it, or update"
            )
        return version, {name: (f["sha256"], f["bytes"]) for name, f in manifest["files"].items()}
    # Whatever a damaged JSON file may hold: broken text, a list, a missing entry.
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / _MANIFEST} is damaged: {error!r}") from error


def _verify(folder: Path, name: str, expected: tuple[str, int]) -> None:
    path = folder / name
    if (size := _size(path)) is None:
        raise CheckpointError(f"checkpoint {folder} is incomplete: {name} is missing")
    if (digest(path), size) != expected:
        raise CheckpointError(
            f"checkpoint {folder} is damaged: {name} ({size} of {expected[1]} bytes) does not have "
            "the manifest's SHA-256; copy it again or use another one"
        )
