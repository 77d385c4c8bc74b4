"""What the processor hands to the model: tensors with one row an observation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

_COLUMNS = ("pixel_values", "input_ids", "attention_mask", "proprio", "present")


@dataclass(frozen=True)
class ModelInputs:
    """What a model sees of `n` observations; every tensor has `n` rows.

    Attributes:
        pixel_values: for the embedded model uint8 [n, cameras, 3, height, width], cameras in
            contract order, which the model normalises with `normalise_pixels`. Bytes, because
            replayed batches are then 4 times smaller; laid out with the colour last, because that
            needs no transposing copy (0.15 against 2.1 ms for 16 x 3 images of 96 px on one core)
            and convolutions are as fast on it. For other models what their image processor makes.
        input_ids: int64 [n, tokens].
        attention_mask: bool [n, tokens], False at padding.
        proprio: [n, proprio.dim], in the contract's units; `RobotNetwork` normalises it.
        present: bool [n, cameras + proprio + action], which cameras and which dimensions of
            proprioception and action the robot has; the rest is padding.
        extra: whatever else the model's own processor makes, under the names that its `forward`
            knows (image_grid_thw, pixel_attention_mask, token_type_ids, ...); of a language tower
            `words`, float32 [n, tokens, width].
        flat: names of those tensors whose images the model wants in one list instead of a list
            for every observation.
    """

    pixel_values: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    proprio: Tensor
    present: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    flat: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.proprio)

    def to(self, device: torch.device | str) -> ModelInputs:
        """The same on another device."""
        return self._with({name: tensor.to(device) for name, tensor in self._tensors().items()})

    def select(self, rows: Tensor | Sequence[int]) -> ModelInputs:
        """A copy of these rows."""
        # On the tensors' device, so that rows may be chosen on the CPU.
        index = torch.as_tensor(rows, dtype=torch.long, device=self.proprio.device)
        return self._with({name: tensor[index] for name, tensor in self._tensors().items()})

    def for_model(self) -> dict[str, Tensor]:
        """Keyword arguments of a transformers model: all but what belongs to the robot."""
        tensors = self._tensors()
        del tensors["proprio"], tensors["present"]
        # Some models compute positions as cumulative sums of the mask: bool would not do.
        tensors["attention_mask"] = self.attention_mask.long()
        # [n, images, ...] to [n * images, ...] for those that the model wants in one list.
        return {n: t.flatten(0, 1) if n in self.flat else t for n, t in tensors.items()}

    @classmethod
    def concatenate(cls, parts: Sequence[ModelInputs]) -> ModelInputs:
        """All rows of all parts; shorter prompts are padded on the right."""
        longest = max(part.input_ids.shape[1] for part in parts)
        columns = [part._padded(longest)._tensors() for part in parts]
        return parts[0]._with({name: torch.cat([c[name] for c in columns]) for name in columns[0]})

    def _padded(self, tokens: int) -> ModelInputs:
        """With prompts of so many tokens, the new ones masked."""
        # Only prompts of the embedded model differ, which have no more than `words` in `extra`.
        more = (0, tokens - self.input_ids.shape[1])
        ids, mask = F.pad(self.input_ids, more), F.pad(self.attention_mask, more)
        extra = self.extra
        if "words" in extra:  # [n, tokens, width]
            extra = {**extra, "words": F.pad(extra["words"], (0, 0, *more))}
        return replace(self, input_ids=ids, attention_mask=mask, extra=extra)

    def _tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in _COLUMNS} | dict(self.extra)

    def _with(self, tensors: dict[str, Tensor]) -> ModelInputs:
        # What is left after the columns is `extra`; `flat` goes along through `replace`.
        columns = {name: tensors.pop(name) for name in _COLUMNS}
        return replace(self, **columns, extra=tensors)


def normalise_pixels(pixel_values: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Bytes 0..255 to -1..1; called inside the model, so that no export can skip it."""
    # (x / 255 - 0.5) / 0.5: mean and std 0.5 for every colour, as SigLIP has it.
    return pixel_values.to(dtype) * (2 / 255) - 1
