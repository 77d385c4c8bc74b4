"""The folder of an exported policy: written all or not at all, and checked byte by byte when read.

    contract.json     the robot it controls
    policy.json       how the graphs become a policy, see `PolicyDescription`
    <name>.onnx       the graphs; large weights lie beside them in files of their own
    tokenizer/        tokenizer.json, for policies that read words
    README.md         what it is, for readers
    manifest.json     format version, size and SHA-256 of every file above

The manifest is compared as it was written, so that no byte of the folder can change unseen.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vla_runtime.atomic_folder import describe_files, digest, hidden, new_folder
from vla_runtime.contract import RobotSpec
from vla_runtime.exported.lerobot_settings import LeRobotSettings

FORMAT_VERSION = 1
_KIND = "exported policy"
_MANIFEST, _CONTRACT, _POLICY = "manifest.json", "contract.json", "policy.json"


class ExportedFolderError(ValueError):
    """An exported policy is missing, incomplete, damaged, or of another format."""


@dataclass(frozen=True)
class StateTensor:
    """One tensor of a policy's memory: zeros where an episode begins.

    The first graph has an input `state.<name>` and an output `next.<name>`, each with one more
    axis in front, for rows.

    Attributes:
        shape: without rows.
        dtype: numpy's name.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class PromptSettings:
    """How an instruction becomes tokens: `prefix`, its own, `suffix`, then padding.

    Attributes:
        prefix: tokens before the words, such as positions of images.
        suffix: tokens after them.
        pad: the token of padding.
        length: tokens of a prompt; a longer instruction makes it longer.
        max_text_tokens: longest instruction, `suffix` included; see `fit_instruction`.
        padding_side: "right" or "left".
        before: text that is joined to the words before they become tokens.
        after: the same behind them.
        padding_visible: the mask is True at padding, too.
        refused: texts that the model reads as more than words; no instruction may hold one.
    """

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    pad: int
    length: int
    max_text_tokens: int
    padding_side: str = "right"
    before: str = ""
    after: str = ""
    padding_visible: bool = False
    refused: tuple[str, ...] = ()


@dataclass(frozen=True)
class PolicyDescription:
    """policy.json.

    Attributes:
        head: kind of action head, for readers.
        chunk_length: control steps a chunk.
        graphs: names; each lies in `<name>.onnx`. `encode` comes first, then `act`, or `step` and
            `decode`, and where the head can complete a chunk `inpaint`; last the language tower
            `words`, where there is one, which runs once for each instruction.
        tokens: of the longest sequence, where there is `step`; else 0.
        prompt: how words become tokens; None for a policy that reads none.
        state: memory by name.
        source: what was exported: `fingerprint` of the checkpoint and `embodiment`.
        parity: how it was compared with the policy that it was made from, and what differed.
        lerobot: what LeRobot does around its policy; None for one of ours.
    """

    head: str
    chunk_length: int
    graphs: tuple[str, ...]
    tokens: int = 0
    prompt: PromptSettings | None = None
    state: dict[str, StateTensor] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    parity: dict[str, Any] = field(default_factory=dict)
    lerobot: LeRobotSettings | None = None

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PolicyDescription:
        """Rebuild from `dataclasses.asdict`, also after JSON."""
        fields = dict(data)
        if (prompt := fields["prompt"]) is not None:
            lists = {name: tuple(prompt[name]) for name in ("prefix", "suffix", "refused")}
            fields["prompt"] = PromptSettings(**{**prompt, **lists})
        fields["graphs"] = tuple(fields["graphs"])
        if (lerobot := fields["lerobot"]) is not None:
            fields["lerobot"] = LeRobotSettings.from_dict(lerobot)
        fields["state"] = {
            name: StateTensor(tuple(tensor["shape"]), tensor["dtype"])
            for name, tensor in fields["state"].items()
        }
        return cls(**fields)


@contextmanager
def new_exported_folder(folder: Path) -> Iterator[Path]:
    """Yields a hidden folder to write into; it gets manifest and final name at the end.

    Raises:
        ExportedFolderError: ONNX Runtime opens no folder of that name.
        FileExistsError: there is something of that name; it is never replaced.
        OSError: it cannot be written; nothing is left of it.
    """
    _require_utf8(folder)
    with new_folder(folder) as partial:
        yield partial
        write_manifest(partial)


def write_description(folder: Path, spec: RobotSpec, description: PolicyDescription) -> None:
    """Write contract.json and policy.json."""
    for name, data in ((_CONTRACT, spec.to_dict()), (_POLICY, asdict(description))):
        (folder / name).write_text(_to_json(data), encoding="utf-8")


def write_manifest(folder: Path) -> None:
    """Write manifest.json, which lists all other files."""
    files = {name: f for name, f in describe_files(folder).items() if name != _MANIFEST}
    manifest = {"format": FORMAT_VERSION, "kind": _KIND, "files": files}
    (folder / _MANIFEST).write_text(_to_json(manifest), encoding="utf-8")


def is_exported(folder: Path) -> bool:
    """Whether this is the folder of an exported policy, complete or not."""
    return any((folder / name).is_file() for name in (_POLICY, "encode.onnx"))


def is_lerobot(folder: Path) -> bool:
    """Whether an exported policy is one of LeRobot's; whoever opens it verifies the folder."""
    try:
        return _read_json(folder / _POLICY)["lerobot"] is not None
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_exported(folder: Path) -> tuple[RobotSpec, PolicyDescription]:
    """Contract and description, after every file has been compared with the manifest.

    Raises:
        ExportedFolderError: missing, incomplete, damaged, of another format, or with files that
            are not of it.
    """
    _require_utf8(folder)
    _verify(folder)
    try:
        contract, policy = (_read_json(folder / name) for name in (_CONTRACT, _POLICY))
        description = PolicyDescription.from_dict(policy)
        spec = RobotSpec.from_dict(contract)
    # Whatever a file with a fitting hash may hold: it is not ours.
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportedFolderError(f"exported policy {folder} is not readable: {error!r}") from error
    if missing := [name for name in description.graphs if not (folder / f"{name}.onnx").is_file()]:
        raise ExportedFolderError(f"exported policy {folder} lacks the graphs {missing}")
    return spec, description


def fingerprint(folder: Path) -> str:
    """SHA-256 of the manifest, and so of all files: equal ones are equal."""
    return digest(folder / _MANIFEST)


def _require_utf8(folder: Path) -> None:
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise ExportedFolderError(
            f"the name of {str(folder)!r} is no UTF-8, and ONNX Runtime opens no other: choose "
            "another name"
        ) from error


def _verify(folder: Path) -> None:
    if not (folder / _MANIFEST).is_file():
        unfinished = hidden(folder, "partial").exists()
        raise ExportedFolderError(
            f"{folder} is no exported policy: "
            + (
                "its export did not finish, export it again"
                if unfinished
                else f"no {_MANIFEST}; copy it again with all its files, or export it again"
            )
        )
    files = _read_manifest(folder)
    found = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() or path.is_symlink()
    } - {_MANIFEST}
    if surplus := sorted(name for name in found - set(files) if not _is_hidden(name)):
        raise ExportedFolderError(
            f"exported policy {folder} holds files that are not of it: {surplus}; move them away"
        )
    for name, expected in files.items():
        if name not in found or not (folder / name).is_file():  # or a link to nothing
            raise ExportedFolderError(f"exported policy {folder} is incomplete: {name} is missing")
        path = folder / name
        if expected != {"sha256": digest(path), "bytes": path.stat().st_size}:
            raise ExportedFolderError(
                f"exported policy {folder} is damaged: {name} does not have the manifest's "
                "SHA-256; copy it again or export it again"
            )


def _is_hidden(name: str) -> bool:
    # What file managers and download tools leave behind; no graph can refer to it unseen, since
    # the graphs are hashed.
    return any(part.startswith(".") for part in name.split("/"))


def _read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / _MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
        manifest = json.loads(text)
        version, kind, files = manifest["format"], manifest["kind"], manifest["files"]
    # Whatever a damaged JSON file may hold: broken text, a list, a missing entry.
    except (ValueError, KeyError, TypeError) as error:
        raise ExportedFolderError(f"{path} is damaged: {error!r}") from error
    if kind != _KIND:
        raise ExportedFolderError(f"{folder} is no exported policy: {_MANIFEST} says {kind!r}")
    if type(version) is not int or version != FORMAT_VERSION:  # True and 1.0 equal 1
        raise ExportedFolderError(
            f"exported policy {folder} has format {version!r}, this version of vla-runtime reads "
            f"{FORMAT_VERSION}: export it again, or install the version that wrote it"
        )
    # As it was written and not only of equal meaning: the manifest has no hash of its own.
    if text != _to_json(manifest) or not isinstance(files, dict):
        raise ExportedFolderError(f"{path} is damaged: not as `vla export` writes it")
    return files


def _to_json(data: Any) -> str:
    return json.dumps(data, indent=1) + "\n"


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
