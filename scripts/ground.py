"""`vla ground`: teach the embedded vision-language model, or any pretrained one, where things are.

Draws scenes of every task, makes the embedded model with a tokenizer of all that can be said of
them (or loads `--vlm`), trains it to point at what the words name and to answer questions in words,
and writes a checkpoint that cloning starts from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tyro.conf import OmitArgPrefixes

from policies.grounding.grounder import Grounder, GroundingConfig
from policies.grounding.grounding_set import GroundingSet, Prompt
from policies.run_folder import RunFolder, plain
from scripts.progress import Bar
from scripts.provenance import command_line
from sim.questions import Questioner, all_sentences
from sim.scenes import Scenes, ScenesConfig, make_scenes
from sim.tasks.base import Phrasing
from sim.tasks.registry import TASKS, make_task
from sim.tasks.tabletop import INSTRUCTIONS, UNSEEN_PAIRS, Tabletop
from sim.tasks.tabletop_scene import BLOCKS, ZONES
from vla.model.backbone import BackboneConfig
from vla.model.embedded import EmbeddedConfig, embedded_backbone
from vla.model.vla import VLA, ModelDims, VLAConfig
from vla.policy import VLAPolicy, vlm_policy
from vla.processing.embodiments import Embodiment
from vla.processing.normalisation import Statistics
from vla.processing.processor import Processor, ProcessorConfig
from vla.processing.tokenizer import train_tokenizer

QUESTIONS: Mapping[Phrasing, tuple[str, ...]] = {
    "train": ("where is the {phrase}", "point to the {phrase}", "find the {phrase}"),
    "heldout": ("point to where the {phrase} is",),
}
# Any two things, so that no word's meaning hangs on the words that it was told with.
PATHS: Mapping[Phrasing, tuple[str, ...]] = {
    "train": ("from the {object} to the {target}", "the way from the {object} to the {target}"),
    "heldout": ("away from the {object} and over to the {target}",),
}
# Before what is asked for, so that its first words are not taken for its meaning.
OPENINGS = ("", "please ", "now ", "go and ", "with care ", "first of all ", "robot ")


@dataclass(frozen=True)
class GroundConfig:
    """Train a vision-language model to point at what words name.

    Attributes:
        tasks: whose scenes are drawn.
        frames: pictures of each task, in the order of `tasks`.
        keep_pairs_apart: never tell the colours of `UNSEEN_PAIRS` together, and measure with them.
        scenes: where the pictures are kept.
        out: run folder; the checkpoint is `<out>/grounded`.
        device: "cpu" or "cuda".
        image_size: pixels a side.
        embedded: sizes of the embedded vision-language model.
        vlm: instead of it a pretrained one: hub id, or folder written by `save_pretrained`.
        backbone: how `vlm` is used.
        model: what is built on the vision-language model.
        training: how it is trained.
    """

    tasks: tuple[str, ...] = (
        "FetchPush",
        "FetchPickAndPlace",
        "Tabletop",
        "FetchReach",
        "FetchSlide",
    )
    frames: tuple[int, ...] = (8000, 20000, 14000, 2500, 3000)
    keep_pairs_apart: bool = False
    scenes: Path = Path("data/scenes")
    out: Path = Path("runs/ground")
    device: str = "cpu"
    image_size: int = 96
    embedded: EmbeddedConfig = field(default_factory=EmbeddedConfig)
    vlm: str | None = None
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    model: VLAConfig = field(default_factory=VLAConfig)
    training: OmitArgPrefixes[GroundingConfig] = field(default_factory=GroundingConfig)


def prompts_of(name: str, phrasing: Phrasing) -> tuple[Prompt, ...]:
    """Everything that can be asked of a task's scenes in this phrasing."""
    templates = TASKS[name].templates[phrasing]
    if issubclass(TASKS[name], Tabletop):
        said = [
            Prompt(
                template.format(object=i.block, zone=i.zone),
                i.block,
                i.zone or f"above the {i.block}",
            )
            for i in INSTRUCTIONS
            for template in templates
            if ("{zone}" in template) == (i.zone is not None)
        ]
        phrases = sorted({p.object for p in said} | {p.target for p in said})
    else:
        moved = "target" if name == "FetchReach" else "object"
        said = [Prompt(template, moved, "target") for template in templates]
        phrases = []
    asked = [Prompt(q.format(phrase=p), p, p) for p in phrases for q in QUESTIONS[phrasing]]
    paths = [
        Prompt(path.format(object=start, target=end), start, end)
        for start, end in permutations(sorted({*BLOCKS, *ZONES} & {*phrases}), 2)
        for path in PATHS[phrasing]
    ]
    return (*said, *asked, *paths)


def grounding_set(scenes: Scenes, keep_pairs_apart: bool = False) -> GroundingSet:
    """What is asked of a task's scenes, and what is kept apart to measure with."""
    questioner = Questioner(scenes)
    told, apart = [], []
    for prompt in prompts_of(scenes.task, "train"):
        if keep_pairs_apart and {prompt.object, prompt.target} in map(set, UNSEEN_PAIRS):
            apart.append(prompt)
        else:
            told += [replace(prompt, text=opening + prompt.text) for opening in OPENINGS]
    unseen = {"heldout_phrasing": prompts_of(scenes.task, "heldout")}
    return GroundingSet(
        name=scenes.task,
        images=scenes.images,
        proprio=scenes.proprio,
        points=scenes.points,
        pictures=scenes.pictures,
        phrases=scenes.phrases,
        prompts=tuple(told),
        unseen={**unseen, "unseen_pair": tuple(apart)} if apart else unseen,
        kinds=questioner.kinds,
        ask=questioner.ask,
    )


def build(config: GroundConfig, sets: list[GroundingSet]) -> VLAPolicy:
    """The embedded model with its own tokenizer, or a pretrained one."""
    spec = make_task(config.tasks[0], config.image_size).spec
    limits = np.array([spec.action.low, spec.action.high])
    statistics = Statistics.measure(limits, np.concatenate([s.proprio for s in sets]))
    if config.vlm is not None:
        robots = {spec.robot: Embodiment(spec, statistics)}
        return vlm_policy(config.vlm, config.backbone, robots, config.model, ProcessorConfig())
    # It knows the words of all tasks and phrasings.
    sentences = {
        opening + p.text
        for name in TASKS
        for phrasing in ("train", "heldout")
        for p in prompts_of(name, phrasing)
        for opening in OPENINGS
    } | all_sentences(["block", "puck", "target", "gripper", *BLOCKS, *ZONES])
    tokenizer = train_tokenizer(sentences)
    image_tokens = config.embedded.image_tokens(config.image_size)
    conversions = ProcessorConfig(image_tokens_per_camera=image_tokens, max_text_tokens=16)
    processor = Processor(spec, statistics, tokenizer, conversions)
    backbone = embedded_backbone(config.embedded, tokenizer, config.image_size)
    return VLAPolicy(VLA(backbone, ModelDims.of(processor), config.model), processor)


def _origin(config: GroundConfig) -> dict[str, Any]:
    """What decides the result beside the policy, the frames and the training."""
    kept = ("tasks", "frames", "keep_pairs_apart", "image_size", "embedded", "vlm", "backbone")
    return {"command": "ground", **{name: plain(getattr(config, name)) for name in kept}}


def main(config: GroundConfig) -> int:
    """Draw, train, save."""
    torch.manual_seed(config.training.seed)
    folder = RunFolder(config.out, config, command_line("ground", config), _origin(config))
    if len(config.tasks) != len(config.frames):
        raise ValueError(f"one frame count a task: {config.tasks} and {config.frames}")
    sets = []
    for task, frames in zip(config.tasks, config.frames, strict=True):
        print(f"scenes of {task}: {frames}", flush=True)
        scenes = ScenesConfig((task,), frames, config.scenes, config.image_size)
        sets.append(grounding_set(make_scenes(scenes)[0], config.keep_pairs_apart))
    policy = build(config, sets)
    policy.model.to(config.device)
    # A pretrained model can talk already; it learns to point.
    training = config.training if config.vlm is None else replace(config.training, questions=0)
    grounder = Grounder(policy, sets, training, folder)
    with Bar("ground", config.training.updates) as bar:

        def show(update: int, values: dict[str, float]) -> None:
            bar.update(update, values)
            for name in [name for name in values if name.endswith(("_cm", "_accuracy"))]:
                print(f"{name} {values[name]:.2f}")

        saved = grounder.run(show)
    folder.close()
    print(f"grounded: {saved}")
    return 0
