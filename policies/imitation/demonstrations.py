"""Demonstrations of one robot or of several, as one source of training samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from policies.imitation.dataset import DemoBatch, DemoDataset, WeightedSampler
from policies.imitation.images import TOLERANCE_S
from vla.contract import ContractMismatchError
from vla.data.dataset_contract import read_contract
from vla.data.paraphrases import Paraphrases, read_phrasings
from vla.model.points import PointsConfig
from vla.processing.embodiments import Embodiment


class Demonstrations:
    """Recorded folders, grouped by robot; each group is a `DemoDataset`, one embodiment.

    Args:
        roots: folders, of one robot or of several.
        chunk_length: actions a sample.
        heldout_fraction: share of each folder's episodes that is set aside.
        seed: decides which.
        weights: share of the drawn samples that each folder gets, in any unit and through all
            robots; by default every frame is drawn equally often.
        names: the embodiment of each folder; by default its contract's robot.
        paraphrases: a JSON file, see `Paraphrases.read`; None trains on what was recorded.
        reword: train on `rewordings` of all phrasings, too.
        episodes: see `DemoDataset`.
        without: see `DemoDataset`.
        cameras: see `DemoDataset`.
        tolerance_s: see `DemoDataset`.

    Attributes:
        robots: embodiment → its demonstrations, in the folders' order.
        paraphrases: of their instructions.

    Raises:
        FileNotFoundError: no data set or no paraphrases there, or a data set without a contract.
        ContractMismatchError: folders of one embodiment have contracts that differ.
        ValueError: names or weights that are not one a folder, or what `DemoDataset` refuses.
    """

    def __init__(
        self,
        roots: Sequence[Path],
        chunk_length: int,
        heldout_fraction: float = 0.1,
        seed: int = 0,
        weights: Sequence[float] = (),
        names: Sequence[str] = (),
        paraphrases: Path | None = None,
        reword: bool = False,
        episodes: int | None = None,
        without: Sequence[str] = (),
        cameras: Sequence[str] = (),
        tolerance_s: float = TOLERANCE_S,
    ):
        for what, given in (("weight", weights), ("embodiment", names)):
            if given and len(given) != len(roots):
                listed = [str(root) for root in roots]
                raise ValueError(f"need one {what} a folder, got {list(given)} for {listed}")
        # All that can be refused at once is, before the first folder is decoded.
        if paraphrases is not None:
            read_phrasings(paraphrases)
        specs = [read_contract(root, cameras) for root in roots]
        names = names or [spec.robot for spec in specs]
        self.robots: dict[str, DemoDataset] = {}
        # Each name once, in the order of the folders, which decides the order of the frames.
        for name in dict.fromkeys(names):
            # All folders of one robot share one contract and its statistics.
            indices = [index for index, other in enumerate(names) if other == name]
            folders, shares = [roots[i] for i in indices], [weights[i] for i in indices if weights]
            try:
                data = DemoDataset(
                    folders,
                    chunk_length,
                    heldout_fraction,
                    seed,
                    shares,
                    episodes,
                    without,
                    cameras,
                    tolerance_s,
                )
            except ContractMismatchError as error:
                raise ContractMismatchError(
                    f"{error}\nif these are different robots, name them apart: --embodiments, one "
                    f"name a folder (all of these are {name!r} now)"
                ) from error
            self.robots[name] = data
        recorded = dict.fromkeys(text for d in self.robots.values() for text in d.instructions)
        self.paraphrases = Paraphrases.read(paraphrases, recorded) if paraphrases else Paraphrases()
        if reword:
            self.paraphrases = self.paraphrases.reworded(recorded)
        self.instructions = self.paraphrases.every(recorded)
        parts = self.robots.values()
        # Weights through all robots: shares of each are weight over frames, in one unit.
        counts = [len(data.rows("train")) for data in parts]
        # [robots + 1], where the frames of each robot begin.
        self._starts = np.cumsum([0, *counts])
        self._sampler = WeightedSampler("train", counts, [data.shares("train") for data in parts])

    def embodiments(self) -> dict[str, Embodiment]:
        """Contract and statistics of each robot."""
        return {name: Embodiment(d.spec, d.statistics()) for name, d in self.robots.items()}

    def chunks(self) -> dict[str, Tensor]:
        """Of each robot the expert's chunk at every training frame, [n, k, action.dim]."""
        return {name: data.chunks() for name, data in self.robots.items()}

    @property
    def point_names(self) -> tuple[str, ...]:
        """Of all points that have a position in any of the data."""
        return (*dict.fromkeys(name for data in self.robots.values() for name in data.points),)

    def points(self, names: Sequence[str]) -> PointsConfig:
        """These points for a new model, with the origin and the unit of the training frames.

        Raises:
            ValueError: a name that the data do not have, or one whose position is never known.
        """
        if unknown := [name for name in names if name not in self.point_names]:
            raise ValueError(
                f"the data have no positions of {unknown}; they have: "
                f"{', '.join(self.point_names) or 'none'}. A position is a column points.NAME of "
                "three numbers (docs/embodiments.md#positions-of-things)"
            )
        found = {}
        for name in names:
            having = [data for data in self.robots.values() if name in data.points]
            positions = np.concatenate([data.points[name][data.rows("train")] for data in having])
            found[name] = positions[np.isfinite(positions).all(1)]
        if never := [name for name, positions in found.items() if not len(positions)]:
            raise ValueError(f"the position of {never} is not known in any training frame")
        return PointsConfig.measured(found)

    def draw(self, generator: torch.Generator, size: int) -> np.ndarray:
        """Positions in the training frames of all robots, one robot after another; by weight."""
        return self._sampler.draw(generator, size)

    def sample(self, generator: torch.Generator, size: int) -> dict[str, DemoBatch]:
        """`size` samples by weight in any of their phrasings, apart by robot; none is empty."""
        # Robots differ in shapes and cameras, so a batch is split into one for each.
        positions, batches = self.draw(generator, size), {}
        # [size], the robot of each position
        source = np.searchsorted(self._starts, positions, side="right") - 1
        for index, (name, data) in enumerate(self.robots.items()):
            if len(mine := positions[source == index]):
                batch = data.batch(data.rows("train")[mine - self._starts[index]])
                # After the frames and always in this order: a resumed run draws the same.
                batch.instructions = self.paraphrases.draw(batch.instructions, generator)
                batches[name] = batch
        return batches
