"""Demonstrations for training: LeRobotDataset v3 folders, decoded once, in batches of chunks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from policies.imitation.frame_cache import Frames, open_frames
from policies.imitation.images import TOLERANCE_S
from vla.contract import ObservationBatch
from vla.data.dataset_contract import merge_contracts, read_contract
from vla.processing.normalisation import Statistics

Split = Literal["train", "heldout"]


@dataclass
class DemoBatch:
    """`b` moments of demonstrations and the expert's next `k` actions.

    Attributes:
        images: by camera, uint8 [b, h, w, 3].
        proprio: [b, proprio.dim]; this and the next float32, or float64 where the data set stores
            more than float32 holds, to be rounded after an offset was subtracted.
        actions: [b, k, action.dim]; beyond the episode's end its last action is repeated.
        is_pad: bool [b, k], True where that happened.
        instructions: `b` strings.
        time_s: float32 [b], since the episode began.
        points: by name, float32 [b, 3], world, metres; NaN where one is not known.
    """

    images: dict[str, Tensor]
    proprio: Tensor
    actions: Tensor
    is_pad: Tensor
    instructions: list[str]
    time_s: Tensor
    points: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.instructions)

    def observation(self) -> ObservationBatch:
        """The observation, without the actions; shares memory."""
        return ObservationBatch(
            images=self.images,
            proprio=self.proprio,
            instructions=self.instructions,
            time_s=self.time_s,
        )


class DemoDataset:
    """One or several recorded folders as one source of training batches.

    Whole episodes are set aside, the same ones for the same `seed` and folders.

    Args:
        roots: one folder or several, of one robot.
        chunk_length: actions a sample.
        heldout_fraction: share of each folder's episodes that is set aside: at least one of two or
            more, never all, and none where it is 0.
        seed: decides which.
        weights: share of the drawn samples that each folder gets, in any unit; by default every
            frame is drawn equally often, so that a folder counts as much as it is long.
        episodes: only the first ones of each folder; None takes all.
        without: instructions are left out that name all parts of one of these, parts joined by "+"
            such as "red block+purple zone".
        cameras: names of those that are used; by default all, see `read_contract`.
        tolerance_s: how far a frame may be from the nearest image of its video.

    Attributes:
        spec: the contract that all folders share.
        chunk_length: actions a sample.
        points: by name, float32 [frames, 3], world, metres; NaN where one is not known, as in
            all frames of a folder that does not have it.

    Raises:
        FileNotFoundError: no data set there, or one without a contract.
        ContractMismatchError: the folders' contracts differ.
        ValueError: a data set that is damaged or was interrupted, a share out of range, or weights
            that are not one positive number a folder.
    """

    def __init__(
        self,
        roots: Path | str | Sequence[Path | str],
        chunk_length: int,
        heldout_fraction: float = 0.1,
        seed: int = 0,
        weights: Sequence[float] = (),
        episodes: int | None = None,
        without: Sequence[str] = (),
        cameras: Sequence[str] = (),
        tolerance_s: float = TOLERANCE_S,
    ):
        folders = [Path(roots)] if isinstance(roots, str | Path) else [Path(r) for r in roots]
        if chunk_length < 1 or not folders or not 0.0 <= heldout_fraction < 1.0:
            raise ValueError(
                f"need a folder, chunk_length >= 1 and 0 <= heldout_fraction < 1, got {folders}, "
                f"{chunk_length}, {heldout_fraction}"
            )
        if weights and (len(weights) != len(folders) or not all(0 < w < np.inf for w in weights)):
            raise ValueError(f"need one weight > 0 a folder, got {list(weights)} for {folders}")
        if episodes is not None and episodes < 1:
            raise ValueError(f"episodes start at 1, got {episodes}; None takes all")
        # Contracts first: decoding folders that do not belong together may take hours.
        self.spec = merge_contracts({f"data set {f}": read_contract(f, cameras) for f in folders})
        parts = [open_frames(folder, cameras, tolerance_s) for folder in folders]
        self.chunk_length = chunk_length
        # Not concatenated: images are memory-mapped files that may exceed the memory.
        self._images = [part.images for part in parts]
        self._starts = np.cumsum([0] + [len(part) for part in parts])  # [folders + 1]
        self._proprio = np.concatenate([part.proprio for part in parts])
        self._actions = np.concatenate([part.action for part in parts])
        self._instructions = [text for part in parts for text in part.instructions]
        self.points = _join_points(parts)
        self._number_episodes(parts)
        kept = self._select(episodes, without)
        self._rows = self._split(kept, heldout_fraction, seed)
        self._weights = tuple(weights)
        self._samplers = {
            split: WeightedSampler(split, [len(rows)], [self.shares(split)])
            for split, rows in self._rows.items()
        }

    def shares(self, split: Split) -> np.ndarray | None:
        """How often each of `rows(split)` is drawn, in the weights' unit; None for all alike."""
        if not self._weights:
            return None
        source = self._folder(self._rows[split])
        counts = np.bincount(source, minlength=len(self._weights))
        # A folder's weight over its frames: long folders do not drown short ones.
        return np.divide(self._weights, counts.clip(1))[source]

    def _folder(self, rows: np.ndarray) -> np.ndarray:
        """Which folder each of these frames is from, int64 [b]."""
        return np.searchsorted(self._starts, rows, side="right") - 1

    def _number_episodes(self, parts: Sequence[Frames]) -> None:
        """Count episodes through all folders, and find where each begins and ends."""
        # Recorded numbers may have gaps: the inverse counts 0, 1, 2 without any.
        numbered = [np.unique(part.episode, return_inverse=True)[1] for part in parts]
        counts = [int(numbers.max()) + 1 for numbers in numbered]
        self._first_episodes = np.cumsum([0, *counts])  # [folders + 1]
        shifted = zip(numbered, self._first_episodes[:-1], strict=True)
        # int64 [frames], unique through all folders.
        self._episode = np.concatenate([numbers + first for numbers, first in shifted])
        _, first, lengths = np.unique(self._episode, return_index=True, return_counts=True)
        # Of each frame, the first of its episode and the one behind its last, int64 [frames].
        self._begin = first[self._episode]
        self._end = (first + lengths)[self._episode]

    def _select(self, episodes: int | None, without: Sequence[str]) -> np.ndarray:
        """Which frames are used at all, bool [frames]."""
        left_out = [entry.split("+") for entry in without]
        is_used = {
            # Decided once a distinct text; there are far fewer than frames.
            text: not any(all(part in text for part in entry) for entry in left_out)
            for text in set(self._instructions)
        }
        kept = np.array([is_used[text] for text in self._instructions])
        if episodes is not None:
            # Counted within each folder: of several tasks each gives its first ones.
            first = self._first_episodes[self._folder(np.arange(len(self)))]
            kept &= self._episode - first < episodes
        if not kept.any():
            raise ValueError(f"nothing is left of {episodes} episodes without {list(without)}")
        return kept

    def _split(self, kept: np.ndarray, fraction: float, seed: int) -> dict[Split, np.ndarray]:
        """Frames by split; whole episodes are held out, folder by folder, so task by task."""
        # All episodes are permuted, used or not: leaving some out moves few of the others.
        rng = np.random.default_rng(seed)
        used = np.unique(self._episode[kept])
        heldout: list[int] = []
        for first, end in pairwise(self._first_episodes.tolist()):
            order = first + rng.permutation(end - first)
            order = order[np.isin(order, used)]
            # `fraction > 0` is 1: at least one episode, but never all of them.
            count = min(max(round(fraction * len(order)), fraction > 0), len(order) - 1)
            heldout += order[: max(count, 0)].tolist()
        # By episode: neighbouring frames are nearly equal, and would leak into the measurement.
        is_heldout = np.isin(self._episode, heldout)
        return {
            "train": np.flatnonzero(kept & ~is_heldout),
            "heldout": np.flatnonzero(kept & is_heldout),
        }

    def __len__(self) -> int:
        return len(self._episode)

    def rows(self, split: Split = "train") -> np.ndarray:
        """Frame numbers of a split, int64, ascending; `batch` takes them."""
        return self._rows[split]

    def episodes(self, split: Split = "train") -> list[np.ndarray]:
        """Frame numbers of each whole episode of a split."""
        rows = self._rows[split]
        # Rows ascend, so the number changes only where an episode ends.
        return np.split(rows, np.flatnonzero(np.diff(self._episode[rows])) + 1) if len(rows) else []

    def batch(self, rows: np.ndarray) -> DemoBatch:
        """The samples that begin at these frames (int64 [b])."""
        # [b, k, action.dim] and [b, k]
        actions, is_pad = self._future(rows)
        return DemoBatch(
            images={c.name: self._gather_images(c.name, rows) for c in self.spec.cameras},
            proprio=torch.from_numpy(self._proprio[rows]),
            actions=actions,
            is_pad=is_pad,
            instructions=[self._instructions[row] for row in rows],
            time_s=torch.from_numpy(
                # From the number of control steps, so that every episode begins at 0.
                ((rows - self._begin[rows]) / self.spec.control_rate_hz).astype(np.float32)
            ),
            points=self.points_at(rows),
        )

    def points_at(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Of these frames (int64 [b]) the points, by name [b, 3]; see `points`."""
        return {name: torch.from_numpy(found[rows]) for name, found in self.points.items()}

    def sample(
        self, generator: np.random.Generator | torch.Generator, size: int, split: Split = "train"
    ) -> DemoBatch:
        """The samples that begin at `size` drawn frames; see `draw`."""
        return self.batch(self._rows[split][self.draw(generator, size, split)])

    def draw(
        self, generator: np.random.Generator | torch.Generator, size: int, split: Split = "train"
    ) -> np.ndarray:
        """Positions in `rows(split)`, see `WeightedSampler.draw`."""
        return self._samplers[split].draw(generator, size)

    def statistics(self) -> Statistics:
        """Over the training episodes, in the contract's units."""
        rows = self._rows["train"]
        # Without the held-out ones: their extremes must not shape the normalisation.
        return Statistics.measure(self._actions[rows], self._proprio[rows])

    def fingerprint(self) -> str:
        """SHA-256 of what is trained on, and in which order: equal ones are equal.

        Of the images up to a hundred count, of as many episodes' beginnings: all may be gigabytes.
        """
        found = hashlib.sha256("\n".join(self._instructions).encode())
        first = np.unique(self._begin)
        first = first[:: len(first) // 100 + 1]
        images = [self._gather_images(camera.name, first).numpy() for camera in self.spec.cameras]
        points = [self.points[name] for name in sorted(self.points)]
        for array in (self._proprio, self._actions, self._episode, *images, *points):
            found.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
        return found.hexdigest()

    @property
    def instructions(self) -> list[str]:
        """Every instruction once."""
        return list(dict.fromkeys(self._instructions))

    def chunks(self) -> Tensor:
        """The expert's chunk at every training frame, float32 [n, k, action.dim]."""
        return self._future(self._rows["train"])[0]

    def _future(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Actions [b, k, action.dim] from these frames on, and where they are padding [b, k]."""
        future = rows[:, None] + np.arange(self.chunk_length)  # [b, k]
        last = self._end[rows, None] - 1  # [b, 1]
        actions = self._actions[np.minimum(future, last)]  # [b, k, action.dim]
        return torch.from_numpy(actions), torch.from_numpy(future > last)

    def _gather_images(self, camera: str, rows: np.ndarray) -> Tensor:
        parts = [images[camera] for images in self._images]
        if len(parts) == 1:
            # Indexing copies: only these frames are read from disk, uint8 [b, h, w, 3].
            return torch.from_numpy(parts[0][rows])
        out = np.empty((len(rows), *parts[0].shape[1:]), np.uint8)
        source = self._folder(rows)
        for index, images in enumerate(parts):
            mine = source == index
            out[mine] = images[rows[mine] - self._starts[index]]
        return torch.from_numpy(out)


def _join_points(parts: Sequence[Frames]) -> dict[str, np.ndarray]:
    """The points of all folders, by name [frames, 3]; NaN where a folder does not have one."""
    return {
        name: np.concatenate(
            [part.points.get(name, np.full((len(part), 3), np.nan, np.float32)) for part in parts]
        )
        for name in dict.fromkeys(name for part in parts for name in part.points)
    }


class WeightedSampler:
    """Draws frames by weight from parts that lie one after another.

    Args:
        split: what is drawn from, for messages.
        counts: frames of each part.
        shares: how often each frame of a part is drawn, float64 [count], in one unit for all parts;
            None in every part for all alike.
    """

    def __init__(self, split: Split, counts: Sequence[int], shares: Sequence[np.ndarray | None]):
        self._split, self._count = split, sum(counts)
        weighted = [share for share in shares if share is not None]
        # [frames], the distribution function that `draw` inverts.
        self._cumulative = np.cumsum(np.concatenate(weighted)) if weighted else None
        if self._cumulative is not None and self._count:
            # Exactly 1 at the end, so that a uniform number below 1 always finds a frame.
            self._cumulative /= self._cumulative[-1]

    def draw(self, generator: np.random.Generator | torch.Generator, size: int) -> np.ndarray:
        """Positions among all frames, int64 [size], with replacement.

        The generator's state alone decides what comes, so a checkpoint that holds it resumes
        exactly.

        Raises:
            ValueError: the split is empty.
        """
        if not self._count:
            raise ValueError(
                f"the {self._split} split is empty; record more or change heldout_fraction"
            )
        with_numpy = isinstance(generator, np.random.Generator)
        if self._cumulative is None:
            if with_numpy:
                return generator.integers(self._count, size=size)
            return torch.randint(self._count, (size,), generator=generator).numpy()
        if with_numpy:
            uniform = generator.random(size)
        else:
            # float64: the 24 bits of float32 miss some of tens of millions of frames.
            uniform = torch.rand(size, generator=generator, dtype=torch.float64).numpy()
        return np.searchsorted(self._cumulative, uniform, side="right")
