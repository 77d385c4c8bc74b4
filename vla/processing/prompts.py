"""Instructions and images to the tensors that a vision-language model reads.

The embedded model has a tokenizer of its own and takes bytes. Every other model comes with its own
transformers processor, which alone knows the format of its prompts and images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoProcessor, PreTrainedTokenizerBase, ProcessorMixin
from vla_runtime.instructions import fit_instruction, prompt_width

from vla.processing.language_tower import LanguageTower, has_tower, read_tower
from vla.processing.tokenizer import load_tokenizer
from vla.processing.tower_prompts import TowerPrompts

LONGEST_TEXT = 256
"""Most tokens of an instruction for the embedded model: pages of text are cut, not read."""

_CACHED_INSTRUCTIONS = 4096
_TOKENIZER, _PROCESSOR = "tokenizer", "vlm_processor"
_NOT_INPUTS = {"labels"}  # what a processor may add for training on text
_MARK = "INSTRUCTION"  # stands for one in a template


class EmbeddedPrompts:
    """Prompts of the embedded model: positions for every image, the instruction, the end token.

    Args:
        tokenizer: any fast tokenizer that has the image token, an end and a padding token.
        image_token: reserves the position of an image token.
        image_tokens: how many of them all images take.
        max_text_tokens: tokens that every prompt has for its instruction, the end token included;
            a longer one makes the prompts of its batch longer.
        padding: "fixed" or "longest".

    Raises:
        ValueError: the tokenizer lacks a token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        image_token: str,
        image_tokens: int,
        max_text_tokens: int,
        padding: str,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_text_tokens, self.padding = max_text_tokens, padding
        self.image_token_id = self._token_id("image token", image_token)
        self.pad_token_id = self._token_id("padding token", tokenizer.pad_token)
        self.eos_token_id = self._token_id("end token", tokenizer.eos_token)
        self.image_prompt = torch.tensor([self.image_token_id] * image_tokens)
        self._forget()

    @property
    def length(self) -> int:
        """Tokens of a prompt with padding "fixed", unless its instruction needs more."""
        return len(self.image_prompt) + self.max_text_tokens

    def texts(self, instructions: Sequence[str]) -> dict[str, Tensor]:
        """input_ids int64 [n, tokens] and attention_mask bool [n, tokens], padded on the right.

        An instruction beyond `LONGEST_TEXT` is cut, with a warning.
        """
        # Dropped as a whole: a simple bound on memory.
        if len(self._rows) + len(set(instructions)) > _CACHED_INSTRUCTIONS:
            self._forget()
        if new := [text for text in dict.fromkeys(instructions) if text not in self._rows]:
            self._remember(new)
        rows = torch.tensor([self._rows[text] for text in instructions], dtype=torch.long)  # [n]
        lengths = self._lengths[rows]
        # "longest" cuts the columns that are padding in every row.
        longest = int(lengths.max()) if len(lengths) else self.length
        width = prompt_width(self.length, longest) if self.padding == "fixed" else longest
        mask = torch.arange(width) < lengths[:, None]  # [n, width]
        return {"input_ids": self._prompts[rows, :width], "attention_mask": mask}

    def tokens(self, instruction: str) -> list[int]:
        """The instruction's tokens and the end token."""
        # split_special_tokens: an instruction that says "<image>" must not become an image.
        words = self.tokenizer.encode(
            instruction, add_special_tokens=False, split_special_tokens=True
        )
        return [*words, self.eos_token_id]

    def images(self, images: Tensor) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """The bytes as they are; none is flat."""
        return {"pixel_values": images}, ()

    def save(self, folder: Path) -> None:
        """Write the tokenizer."""
        self.tokenizer.save_pretrained(str(folder / _TOKENIZER))

    def _forget(self) -> None:
        # Few distinct instructions, many calls: each is tokenised once, then rows are indexed.
        self._rows: dict[str, int] = {}
        # As wide as the longest that may come: a thousand rows are two megabytes.
        width = prompt_width(self.length, len(self.image_prompt) + LONGEST_TEXT)
        self._prompts = torch.empty(0, width, dtype=torch.long)
        self._lengths = torch.empty(0, dtype=torch.long)

    def _remember(self, instructions: Sequence[str]) -> None:
        prompts = torch.full((len(instructions), self._prompts.shape[1]), self.pad_token_id)
        prompts[:, : len(self.image_prompt)] = self.image_prompt
        lengths = torch.empty(len(instructions), dtype=torch.long)
        for row, instruction in enumerate(instructions):
            if len(text := self.tokens(instruction)) > LONGEST_TEXT:
                fitting = fit_instruction(
                    instruction, lambda words: len(self.tokens(words)), LONGEST_TEXT
                )
                text = self.tokens(fitting)
            lengths[row] = end = len(self.image_prompt) + len(text)
            prompts[row, len(self.image_prompt) : end] = torch.tensor(text)
        for instruction in instructions:
            self._rows[instruction] = len(self._rows)
        self._prompts = torch.cat([self._prompts, prompts])
        self._lengths = torch.cat([self._lengths, lengths])

    def _token_id(self, role: str, token: Any) -> int:
        vocabulary = self.tokenizer.get_vocab()
        if token not in vocabulary:
            raise ValueError(f"the tokenizer has no {role} {token!r}")
        return vocabulary[token]


class ForeignPrompts:
    """Inputs made by a pretrained model's own processor.

    All images have one size, so a prompt depends on its instruction alone: it is made once with
    blank images and kept. Prompts are padded on the left, so that the readouts which the backbone
    appends follow the last word at once, as an answer would.

    Args:
        processor: of an image-text model, or of a vision tower with a text encoder.
        cameras: images an observation.
        size_px: height and width of the images.
        max_text_tokens: for an image-text model the longest instruction; for a text encoder its
            whole input, special tokens included.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        cameras: int,
        size_px: tuple[int, int],
        max_text_tokens: int,
    ) -> None:
        self.processor, self.max_text_tokens = processor, max_text_tokens
        self.image_token_id: int | None = getattr(processor, "image_token_id", None)
        self.tokenizer: Any = getattr(processor, "tokenizer")  # noqa: B009  no typed attribute
        self._image_processor: Callable[..., Any] = getattr(processor, "image_processor")  # noqa: B009
        # A prompt depends on the number and size of images, not on what they show.
        self._blank = torch.zeros(cameras, 3, *size_px, dtype=torch.uint8)
        # Two rows tell lists of observations from lists of images.
        probe = self._process(torch.stack([self._blank, self._blank]))
        self._image_names = frozenset(probe)
        self._flat = tuple(name for name, tensor in probe.items() if len(tensor) != 2)
        # Cached for each instance: the prompts depend on cameras and limits as well.
        self._row = lru_cache(_CACHED_INSTRUCTIONS)(
            self._prompt if self.image_token_id is not None else self._text
        )
        self.length = max_text_tokens
        if self.image_token_id is not None:
            ids = self._tokens("")["input_ids"]
            # The processor itself knows how many tokens it makes of an image: counted in a prompt.
            self.image_tokens_per_camera = int((ids == self.image_token_id).sum()) // cameras
            self.length += ids.shape[1]

    @property
    def pads_visibly(self) -> bool:
        """Whether a text encoder attends to padding, as SigLIP learned to."""
        # Its tokenizer says so by naming no mask.
        towers = self.image_token_id is None
        return towers and "attention_mask" not in self.tokenizer.model_input_names

    def unpadded(self, instruction: str) -> list[int]:
        """The tokens of a prompt of any length."""
        if self.image_token_id is None:
            return self.tokenizer(instruction)["input_ids"]
        return self._tokens(instruction)["input_ids"][0].tolist()

    def around(self) -> tuple[tuple[str, str], ...]:
        """Texts that may be joined to an instruction, before and after it, between special tokens.

        The first is the template's, the others what a processor may put there itself.
        """
        nothing = (("", ""), ("", "\n"))
        if self.image_token_id is None or not getattr(self.processor, "chat_template", None):
            return nothing
        before, after = self._text_of(_MARK).split(_MARK)
        for token in self.tokenizer.get_added_vocab():
            before, after = before.split(token)[-1], after.split(token)[0]
        return ((before, after), *nothing)

    def texts(self, instructions: Sequence[str]) -> dict[str, Tensor]:
        """Prompts [n, length]: input_ids, attention_mask and what else the model reads.

        An instruction that is longer than the model's limit is cut, with a warning.

        Raises:
            ValueError: an instruction contains a special token, or the limit is too low for
                ordinary ones.
        """
        rows = [self._row(instruction) for instruction in instructions]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def images(self, images: Tensor) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """What the image processor makes of bytes [n, cameras, 3, h, w], and which of it is flat.

        All tensors have n rows; the flat ones are lists of images or patches over all rows.
        """
        made, count = self._process(images), len(images)
        return {
            name: tensor.unflatten(0, (count, -1)) if name in self._flat else tensor
            for name, tensor in made.items()
        }, self._flat

    def save(self, folder: Path) -> None:
        """Write the processor's files."""
        self.processor.save_pretrained(str(folder / _PROCESSOR))

    def _process(self, images: Tensor) -> dict[str, Tensor]:
        made = self._image_processor(images=[list(row) for row in images], return_tensors="pt")
        return {name: value for name, value in made.items() if isinstance(value, Tensor)}

    def _tokens(self, instruction: str) -> dict[str, Tensor]:
        # With the blank images, since some processors make no image tokens without images.
        process: Any = self.processor
        text = self._text_of(instruction)
        made = process(text=[text], images=[list(self._blank)], return_tensors="pt")
        return {n: t for n, t in made.items() if n not in self._image_names | _NOT_INPUTS}

    def _text_of(self, instruction: str) -> str:
        """What the processor is given, with one token an image."""
        cameras = len(self._blank)
        if (template := getattr(self.processor, "chat_template", None)) is None:
            return getattr(self.processor, "image_token") * cameras + instruction  # noqa: B009
        content = [{"type": "image"}] * cameras + [{"type": "text", "text": instruction}]
        # As text: the processor still has to expand every image into its tokens.
        return self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=template,
            add_generation_prompt=True,
            tokenize=False,
        )

    def _prompt(self, instruction: str) -> dict[str, Tensor]:
        self._refuse_special(instruction)
        # `length` is the empty prompt and `max_text_tokens`, so what is counted is what the words
        # add.
        empty = self.length - self.max_text_tokens
        fitting = fit_instruction(
            instruction,
            lambda text: self._tokens(text)["input_ids"].shape[1] - empty,
            self.max_text_tokens,
        )
        made = self._tokens(fitting)
        free = self.length - made["input_ids"].shape[1]
        pad = {"input_ids": self.tokenizer.pad_token_id or 0}
        # Padding on the left; masks and token types are 0 there.
        row = {name: F.pad(t, (free, 0), value=pad.get(name, 0)) for name, t in made.items()}
        return row | {"attention_mask": row["attention_mask"].bool()}

    def _text(self, instruction: str) -> dict[str, Tensor]:
        self._refuse_special(instruction)
        # Not truncated by the tokenizer, which would do so in silence and within a word.
        fitting = fit_instruction(
            instruction, lambda text: len(self.unpadded(text)), self.max_text_tokens
        )
        made = self.tokenizer(
            [fitting],
            padding="max_length",
            max_length=self.max_text_tokens,
            return_attention_mask=True,
            return_tensors="pt",
        )
        ids, mask = made["input_ids"], made["attention_mask"].bool()
        if self.pads_visibly:
            mask = torch.ones_like(mask)
        return {"input_ids": ids, "attention_mask": mask}

    def _refuse_special(self, instruction: str) -> None:
        special = [token for token in self.tokenizer.all_special_tokens if token in instruction]
        if special:
            raise ValueError(
                f"the model reads {special} as more than words: say {instruction!r} without"
            )


Prompts = EmbeddedPrompts | TowerPrompts | ForeignPrompts

Language = PreTrainedTokenizerBase | LanguageTower | ProcessorMixin
"""What makes prompts: the embedded model's tokenizer or tower, or another model's own processor."""


def load_language(folder: Path) -> Language:
    """Read what `save` wrote; no code of the model's author runs.

    All of it lies in this folder, apart from the weights of a language tower.

    Raises:
        FileNotFoundError: the folder holds none.
        LanguageTowerError: a tower is not installed, or is not the one that was saved.
    """
    if has_tower(folder):
        return read_tower(folder)
    if not (folder / _PROCESSOR).is_dir():
        return load_tokenizer(folder / _TOKENIZER)
    return AutoProcessor.from_pretrained(
        str(folder / _PROCESSOR), local_files_only=True, trust_remote_code=False
    )
