"""A language tower for a model that has learned words of its own already.

Nothing has to be trained for it. Wherever a told sentence has a token of the model's own, the tower
has hidden states of the same letters: ridge regression from these to the embedding of that token
gives the projection. So told words arrive as they did, and others where the tower sees them near.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla.model.embedded import EmbeddedBackbone
from vla.policy import VLAPolicy
from vla.processing.embodiments import Embodiment, Embodiments
from vla.processing.language_tower import LanguageTower
from vla.processing.prompts import EmbeddedPrompts

_RIDGE = 1.0
"""Penalty of weights, in mean variances of a dimension of the hidden states (docs/words.md)."""


def with_tower(start: VLAPolicy, tower: LanguageTower, sentences: Sequence[str]) -> VLAPolicy:
    """`start` with a language tower in the place of its own words; its model is changed in place.

    Args:
        start: of the embedded model, with words of its own.
        tower: reads the words from now on.
        sentences: told ones, from which the projection is fitted.

    Raises:
        ValueError: `start` is another model, or has a tower already; or there is no sentence.
    """
    backbone, prompts = start.model.backbone, start.processor.prompts
    if not isinstance(backbone, EmbeddedBackbone) or not isinstance(prompts, EmbeddedPrompts):
        raise ValueError(
            "a language tower replaces the embedded model's own words, which this lacks"
        )
    table = backbone.language_model.get_input_embeddings().weight.detach()
    states, ids = aligned_tokens(tower, prompts, sentences)
    # Each token of the model's own counts the same, however often it is said.
    projection = ridge(states, table[ids].cpu(), 1 / torch.bincount(ids)[ids])
    made = backbone.with_tower(projection)
    old = start.embodiments.processors
    robots = {name: Embodiment(p.spec, p.statistics) for name, p in old.items()}
    # Explicit, since a policy keeps the size of its images whatever its cameras deliver.
    config = replace(start.processor.config, image_size_px=start.processor.image_size_px)
    conversions = Embodiments.make(robots, tower, config)
    start.model.backbone = made.to(table.device)
    first = next(iter(robots))
    return VLAPolicy(start.model, conversions, first, start.ledger)


def aligned_tokens(
    tower: LanguageTower, prompts: EmbeddedPrompts, sentences: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Normalised hidden states float32 [m, width], and the model's own token of each, int64 [m].

    That is the one with which it shares most letters; the mean of a sentence stands for its end.
    """
    states, ids = [], []
    for sentence in dict.fromkeys(sentences):
        own, other = (
            dict[str, Any](t(sentence, add_special_tokens=False, return_offsets_mapping=True))
            for t in (prompts.tokenizer, tower.tokenizer)
        )
        if not other["input_ids"]:
            continue
        read = tower.states(torch.tensor([other["input_ids"]]))[0]
        states.append(F.layer_norm(read, read.shape[-1:]))
        for span in other["offset_mapping"]:
            shared = [_shared(sentence, span, mine) for mine in own["offset_mapping"]]
            ids.append(own["input_ids"][shared.index(max(shared))])
        ids.append(prompts.eos_token_id)
    if not states:
        raise ValueError("no sentence to fit the projection of a language tower to")
    return torch.cat(states), torch.tensor(ids)


def ridge(inputs: Tensor, outputs: Tensor, weights: Tensor) -> nn.Linear:
    """The linear map of least weighted squared error and small weights.

    Args:
        inputs: [m, in].
        outputs: [m, out].
        weights: [m].
    """
    share = (weights / weights.sum())[:, None]
    centre, target = (inputs * share).sum(0), (outputs * share).sum(0)
    x, y = inputs - centre, outputs - target
    covariance = x.T @ (x * share)  # [in, in]
    penalty = _RIDGE * covariance.diagonal().mean() * torch.eye(len(covariance))
    weight = torch.linalg.solve(covariance + penalty, x.T @ (y * share)).T  # [out, in]
    linear = nn.Linear(inputs.shape[1], outputs.shape[1])
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(target - weight @ centre)
    return linear


def _shared(sentence: str, one: tuple[int, int], other: tuple[int, int]) -> int:
    """Letters that two spans share; many tokenizers count the space before a word to it."""
    return len(sentence[max(one[0], other[0]) : max(0, min(one[1], other[1]))].strip())
