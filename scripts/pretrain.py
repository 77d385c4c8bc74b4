"""`vla pretrain`: clone demonstrations, starting from the grounded model or from any other VLM."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from tyro.conf import OmitArgPrefixes

from policies.checkpoints import Checkpoints
from policies.imitation.bc import Cloner
from policies.imitation.config import CloningConfig
from policies.imitation.demonstrations import Demonstrations
from policies.imitation.images import TOLERANCE_S
from policies.run_folder import RunFolder, plain
from scripts.choice import read_choice
from scripts.devices import require_device
from scripts.progress import Bar
from scripts.provenance import command_line
from sim.seeds import SELECTION
from sim.tasks.registry import short_name
from sim.vector import CpuVecEnv
from vla.checkpoint.folder import fingerprint
from vla.checkpoint.initialisation import (
    GROUNDED,
    default_head,
    encode_chunks,
    load_start,
    scratch_policy,
    start_policy,
)
from vla.contract import ContractMismatchError
from vla.model.backbone import BackboneConfig
from vla.model.embedded import EmbeddedConfig
from vla.model.heads.base import HeadConfig
from vla.model.heads.registry import HEADS
from vla.model.points import PointsConfig
from vla.model.registry import require_pretrained
from vla.model.vla import VLAConfig
from vla.policy import VLAPolicy, vlm_policy
from vla.processing.language_tower import load_tower, require_tower
from vla.processing.processor import ProcessorConfig
from vla.settings import require_numbers

_SCRATCH_READOUT = 64  # of a model that has no points to act by


@dataclass(frozen=True)
class PretrainConfig:
    """Clone demonstrations into a policy.

    Attributes:
        task: registry name of the task in which checkpoints are evaluated and the best is chosen;
            None for data of a robot that is not simulated here: the held-out loss chooses.
        data: LeRobotDataset v3 folders, ours or others'; by default `data/<task>`.
        weights: share of the samples that each data folder gets, in any unit; by default every
            frame is drawn equally often.
        embodiments: name of each data folder's robot; folders of one name are of one robot, and
            one policy learns to control them all. By default the robot that the data set names.
        paraphrases: JSON file {"recorded instruction": ["other words", ...]}; every sample gets one
            of the phrasings.
        reword: other orders, polite forms and typing errors of all phrasings, made by rules (see
            `vla.data.rewordings`), are phrasings too.
        episodes: use only so many, the first ones of each data folder; None uses all.
        without: leave out instructions that name all parts of one of these, with the parts joined
            by "+", such as "red block+purple zone".
        points: names of things whose positions the data have (docs/embodiments.md); the model that
            "scratch" makes estimates them, and learns that too where they are known.
        cameras: names of the cameras that are used; by default all, which have to be RGB: an
            infrared or depth camera is left out by naming the others.
        tolerance_s: seconds by which a frame's time may differ from that of its video image.
        start: checkpoint whose vision-language model and pointer are used; "scratch" makes a new
            small model for the data's own robots, which learns to see from the demonstrations
            alone.
        embedded: sizes of the model that "scratch" makes.
        language: a pretrained text model that reads the words for the model that "scratch" makes:
            one of `vla.processing.language_tower.PACKAGES`, a folder, or a hub id; a checkpoint
            brings its own. See docs/words.md.
        language_layer: whose hidden states are read; by default the one that suits it.
        vlm: instead of `start`, a pretrained vision-language model: hub id, or folder written by
            `save_pretrained`. It has not learned to point, so perception is trained.
        backbone: how `vlm` is used.
        conversions: how observations and actions are converted for `vlm` and "scratch".
        head: action head, one of gaussian, token, fast, l1 and flow, and settings of it that are
            off their defaults: `gaussian:hidden=512,dropout=0.2`, `flow:expert.width=256`;
            `gaussian:help` shows them all. A start with another head gets an untrained one. None
            takes gaussian for a start that knows points, and flow, which attends to the whole
            prompt, for one that does not and for a new model.
        chunk_length: control steps a chunk.
        out: run folder; by default `runs/<task>/clone`, without a task named after the first data
            folder. Its best checkpoint is `<out>/best`.
        device: where to train.
        num_envs: environments stepped together when a checkpoint is evaluated. They decide in one
            batch, about four times as fast as one by one; another number rounds otherwise and can
            change single outcomes, hence which of two equally good checkpoints is chosen. `vla
            evaluate`, whose scores are reported, decides one by one.
        selection_episodes: initial states that choose the checkpoint.
        training: how to clone.
    """

    task: str | None = "FetchPush"
    data: tuple[Path, ...] = ()
    weights: tuple[float, ...] = ()
    embodiments: tuple[str, ...] = ()
    paraphrases: Path | None = None
    reword: bool = False
    episodes: int | None = None
    without: tuple[str, ...] = ()
    points: tuple[str, ...] = ()
    cameras: tuple[str, ...] = ()
    tolerance_s: float = TOLERANCE_S
    # The checkpoint that ships with the package.
    start: Literal["scratch"] | Path = GROUNDED
    embedded: EmbeddedConfig = field(default_factory=lambda: EmbeddedConfig(grid=2, text_layers=2))
    language: str | None = None
    language_layer: int | None = None
    vlm: str | None = None
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    conversions: ProcessorConfig = field(default_factory=ProcessorConfig)
    head: str | None = None
    chunk_length: int = 5
    out: Path | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    num_envs: int = 50
    selection_episodes: int = 50
    training: OmitArgPrefixes[CloningConfig] = field(default_factory=CloningConfig)

    def __post_init__(self) -> None:
        if self.task is None and not self.data:
            raise ValueError("no task and no data: name the folders with --data")
        if self.language is not None and (self.vlm is not None or self.start != "scratch"):
            raise ValueError(
                "--language makes a new model, with --start scratch; to give a language tower to "
                "one that has learned to point: `vla ground --start CHECKPOINT --language NAME`"
            )
        if self.points and (self.vlm is not None or self.start != "scratch"):
            raise ValueError(
                "--points are of a new model, with --start scratch; a checkpoint keeps the points "
                "that it knows, and learns them with --perception trained where the data have them"
            )
        if self.vlm is not None and self.start != GROUNDED:
            raise ValueError(
                f"--vlm brings its own weights, and --start {self.start} would not be read: give "
                "one of them"
            )
        counts = ("episodes", "chunk_length", "num_envs", "selection_episodes")
        require_numbers(self, at_least_1=counts, above_0=("weights",), any_sign=("language_layer",))
        if self.language_layer is not None and self.language is None:
            raise ValueError("--language-layer is of a language tower: name one with --language")


def main(config: PretrainConfig) -> int:
    """Clone, say how well, and where the policy lies."""
    clone(config)
    return 0


def clone(config: PretrainConfig) -> Checkpoints:
    """Train, or resume, and say how well; the run's checkpoints."""
    require_device(config.device)
    # The absolute path's: `.` has no name of its own.
    recorded = None if config.task is not None else Path(os.path.abspath(config.data[0])).name
    name = recorded or short_name(str(config.task))
    out = config.out or Path("runs") / name / "clone"
    # Before data are decoded, which may take hours: models and a head that there are not, and an
    # `--out` that cannot be written.
    if config.vlm is not None:
        require_pretrained(config.vlm, config.backbone)
    if config.language is not None:
        require_tower(config.language)
    folder = RunFolder(out, config, command_line("pretrain", config), _origin(config))
    head = None if config.head is None else read_head(config.head)
    data = Demonstrations(
        config.data or (Path("data") / name,),
        config.chunk_length,
        seed=config.training.seed,
        weights=config.weights,
        names=config.embodiments,
        paraphrases=config.paraphrases,
        reword=config.reword,
        episodes=config.episodes,
        without=config.without,
        cameras=config.cameras,
        tolerance_s=config.tolerance_s,
    )
    # Before `_start`: a new head draws its weights from torch's default generator.
    torch.manual_seed(config.training.seed)
    policy, training = _start(config, data, head)
    cloner = Cloner(policy, data, training, folder)
    with _selection(config) as env, Bar("clone", training.updates) as bar:
        # States apart from demonstrations and from evaluation, see `sim/seeds.py`.
        seeds = SELECTION.seeds(config.selection_episodes)
        best = cloner.run(env, seeds, bar.update)
    folder.close()
    print(f"clone: {_judgement(config, cloner)}: {best}")
    return cloner.checkpoints


def _judgement(config: PretrainConfig, cloner: Cloner) -> str:
    """What chose the best checkpoint."""
    score = cloner.checkpoints.best_score
    if config.task is not None:
        return f"success {score:.2f} on {config.selection_episodes}"
    if cloner.holds_out:
        # Checkpoints are ranked by a score, higher is better: a loss counts negatively.
        return f"loss {-score:.4f} on held-out episodes"
    return "the last checkpoint, since a single episode leaves none to hold out"


def _origin(config: PretrainConfig) -> dict[str, Any]:
    """What decides the result beside the policy, the demonstrations and the training."""
    kept = ("task", "weights", "embodiments", "episodes", "without", "backbone", "conversions")
    kept = (*kept, "language", "language_layer")
    # By content: a start that was trained anew is another one, one that was moved is not.
    start = fingerprint(config.start) if isinstance(config.start, Path) else config.start
    start = start if config.vlm is None else config.vlm
    return {
        "command": "pretrain",
        "start": start,
        **{name: plain(getattr(config, name)) for name in kept},
    }


def _start(
    config: PretrainConfig, data: Demonstrations, head: HeadConfig | None
) -> tuple[VLAPolicy, CloningConfig]:
    """What is trained, and how."""
    if config.vlm is None and isinstance(config.start, Path):
        start = load_start(config.start, config.device)
        # A frozen perception cannot adapt to another view; refused before minutes of cloning.
        if config.training.perception == "frozen":
            _require_known_cameras(start, data)
        return start_policy(start, data.embodiments(), data.chunks(), head), config.training
    # Neither has been grounded: frozen, it would give the head nothing to act by.
    robots, points = data.embodiments(), PointsConfig()
    if config.points:
        points = data.points(config.points)
    made = VLAConfig(config.chunk_length, points=points)
    if config.vlm is None:
        made = replace(made, readout_dim=_SCRATCH_READOUT)
        training = config.training.from_scratch()
        tower = None
        if config.language is not None:
            tower = load_tower(config.language, config.language_layer)
        policy = scratch_policy(
            robots, data.instructions, config.embedded, made, config.conversions, tower
        )
    else:
        training = replace(config.training, perception="trained")
        policy = vlm_policy(config.vlm, config.backbone, robots, made, config.conversions)
    policy.model.to(config.device)
    # Tokenised action heads fit their codes to the demonstrations' chunks, hence only now.
    chunks = encode_chunks(policy.embodiments, data.chunks())
    # One that attends to all tokens, also where there are points: those are yet to be learned.
    policy.model.replace_actor(chunks, head or default_head(PointsConfig()))
    return policy, training


def read_head(text: str) -> HeadConfig:
    """Settings of a head, see `read_choice`."""
    configs = {name: kind.config for name, kind in HEADS.items()}
    return read_choice("action head", "--head", text, configs)


def _require_known_cameras(start: VLAPolicy, data: Demonstrations) -> None:
    """Refuse cameras that a frozen perception was not trained on."""
    processors = start.embodiments.processors.values()
    known = [[camera.name for camera in p.spec.cameras] for p in processors]
    for name, robot in data.robots.items():
        # Names in their order: the model receives cameras by position.
        if (given := [camera.name for camera in robot.spec.cameras]) not in known:
            raise ContractMismatchError(
                f"the demonstrations of {name} have the cameras {given}, the start has learned to "
                f"see {' or '.join(map(str, known))}: record those, or let it learn to see with "
                "--perception trained"
            )


def _selection(config: PretrainConfig) -> AbstractContextManager[CpuVecEnv | None]:
    """Where checkpoints are tried."""
    if config.task is None:
        return nullcontext()
    # No more environments than episodes: the others would be stepped for nothing.
    return CpuVecEnv(config.task, min(config.num_envs, config.selection_episodes))
