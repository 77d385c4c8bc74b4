"""`vla ground`: teach the embedded vision-language model, or any pretrained one, to point.

Draws scenes of every task, makes the embedded model with a tokenizer of all that can be said of
them (or loads `--vlm`), trains it to point at what the words name and to answer questions in words,
and writes a checkpoint that cloning starts from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import cycle, permutations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase
from tyro.conf import OmitArgPrefixes

from policies.grounding.grounder import Grounder, GroundingConfig
from policies.grounding.grounding_set import GroundingSet, Prompt
from policies.run_folder import RunFolder, plain
from scripts.devices import require_device
from scripts.progress import Bar
from scripts.provenance import command_line
from sim.questions import Questioner, all_sentences
from sim.scenes import Scenes, ScenesConfig, make_scenes
from sim.tasks.base import Phrasing
from sim.tasks.registry import find_task, groundable_names, make_task
from vla.checkpoint.folder import fingerprint
from vla.checkpoint.initialisation import load_start
from vla.checkpoint.tower_start import with_tower
from vla.data.rewordings import rewordings
from vla.model.backbone import BackboneConfig
from vla.model.embedded import EmbeddedConfig, embedded_backbone
from vla.model.points import PointsConfig, PointSpec
from vla.model.registry import require_pretrained
from vla.model.vla import VLA, ModelDims, VLAConfig
from vla.policy import VLAPolicy, vlm_policy
from vla.processing.embodiments import Embodiment
from vla.processing.language_tower import LanguageTower, load_tower, require_tower
from vla.processing.normalisation import Statistics
from vla.processing.processor import Processor, ProcessorConfig
from vla.processing.tokenizer import train_tokenizer
from vla.settings import require_numbers

QUESTIONS: Mapping[Phrasing, tuple[str, ...]] = {
    "train": ("where is the {phrase}", "point to the {phrase}", "find the {phrase}"),
    "heldout": ("point to where the {phrase} is",),
}
# Of any two objects, so that no word's meaning depends on the words that it appeared with.
PATHS: Mapping[Phrasing, tuple[str, ...]] = {
    "train": ("from the {object} to the {target}", "the way from the {object} to the {target}"),
    "heldout": ("away from the {object} and over to the {target}",),
}
# Put before a prompt, so that the model does not rely on its first words.
OPENINGS = ("", "please ", "now ", "go and ", "with care ", "first of all ", "robot ")
# What the actor of these tasks reads: centimetres around Fetch's table, and at contact millimetres.
POINTS = PointsConfig(
    (PointSpec("gripper"), PointSpec("object"), PointSpec("target")),
    center_m=(1.3, 0.75, 0.5),
    scale_m=0.2,
    relative=(("gripper", "object"), ("object", "target")),
    relative_gain=16.0,
)


@dataclass(frozen=True)
class GroundConfig:
    """Train a vision-language model to point at what words name.

    Attributes:
        tasks: whose scenes are drawn; by default all that share the robot of the first one.
        frames: how many of each task, in the order of `tasks`; by default what each task asks for.
        keep_pairs_apart: never name the tasks' `unseen_pairs` together, and measure with them.
        scenes: where the scenes are kept.
        out: run folder; the checkpoint is `<out>/grounded`.
        device: where to train.
        image_size: pixels a side.
        start: a checkpoint of the embedded model that knows these points, to go on from; by default
            a new model is made.
        language: a pretrained text model that reads the words for the embedded model: one of
            `vla.processing.language_tower.PACKAGES`, a folder, or a hub id. See docs/words.md.
        language_layer: whose hidden states are read; by default the one that suits it.
        reword: also train on other orders and polite forms of every prompt, made by rules (see
            `vla.data.rewordings`).
        embedded: sizes of the embedded vision-language model.
        vlm: instead of it a pretrained one: hub id, or folder written by `save_pretrained`.
        backbone: how `vlm` is used.
        model: what is built on the vision-language model.
        training: how it is trained.
    """

    tasks: tuple[str, ...] = ()
    frames: tuple[int, ...] = ()
    keep_pairs_apart: bool = False
    scenes: Path = Path("data/scenes")
    out: Path = Path("runs/ground")
    device: Literal["cpu", "cuda"] = "cpu"
    image_size: int = 96
    start: Path | None = None
    language: str | None = None
    language_layer: int | None = None
    reword: bool = False
    embedded: EmbeddedConfig = field(default_factory=EmbeddedConfig)
    vlm: str | None = None
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    model: VLAConfig = field(default_factory=lambda: VLAConfig(points=POINTS))
    training: OmitArgPrefixes[GroundingConfig] = field(default_factory=GroundingConfig)

    def __post_init__(self) -> None:
        require_numbers(self, at_least_1=("frames", "image_size"), any_sign=("language_layer",))
        if self.language_layer is not None and self.language is None:
            raise ValueError("--language-layer is of a language tower: name one with --language")
        if self.vlm is not None and (self.start or self.language):
            raise ValueError("--vlm brings its own words and weights: no --start, no --language")


def prompts_of(name: str, phrasing: Phrasing) -> tuple[Prompt, ...]:
    """Everything that can be asked of a task's scenes in this phrasing.

    Raises:
        ValueError: an instruction's target may move, though policies average it over an episode.
    """
    task = find_task(name).task
    instructions = task.referring_expressions(phrasing)
    # A point that moves would be averaged into a place where it never was.
    if moving := sorted({i.target for i in instructions} - {*task.static_points}):
        raise ValueError(f"targets of {name} must be static points, {moving} are not stated to be")
    said = [Prompt(i.text, i.object, i.target) for i in instructions]
    # Only phrases that say by themselves what is meant, as "red block" does and "object" does not.
    phrases = sorted({*task.object_phrases, *task.place_phrases} - {"object", "target"})
    asked = [Prompt(q.format(phrase=p), p, p) for p in phrases for q in QUESTIONS[phrasing]]
    paths = [
        Prompt(path.format(object=start, target=end), start, end)
        # All ordered pairs, also those that no instruction names.
        for start, end in permutations(phrases, 2)
        for path in PATHS[phrasing]
    ]
    return (*said, *asked, *paths)


def spoken(prompt: Prompt, reword: bool) -> list[Prompt]:
    """A prompt in all the forms that are trained on."""
    texts = [opening + prompt.text for opening in OPENINGS]
    if reword:
        texts += rewordings(prompt.text)
    return [replace(prompt, text=text) for text in dict.fromkeys(texts)]


def told_sentences(tasks: Iterable[str]) -> list[str]:
    """Every prompt of these tasks once, with the openings in turn."""
    told = [prompt.text for name in tasks for prompt in prompts_of(name, "train")]
    return [opening + text for opening, text in zip(cycle(OPENINGS), told, strict=False)]


def grounding_set(
    scenes: Scenes, keep_pairs_apart: bool = False, reword: bool = False
) -> GroundingSet:
    """What is asked of a task's scenes, and what is kept apart to measure with."""
    questioner = Questioner(scenes)
    unseen_pairs = [set(pair) for pair in find_task(scenes.task).task.unseen_pairs]
    trained, apart = [], []
    for prompt in prompts_of(scenes.task, "train"):
        # Sets: a path in the other direction names the pair, too.
        if keep_pairs_apart and {prompt.object, prompt.target} in unseen_pairs:
            apart.append(prompt)
        else:
            trained += spoken(prompt, reword)
    unseen = {"heldout_phrasing": prompts_of(scenes.task, "heldout")}
    return GroundingSet(
        name=scenes.task,
        images=scenes.images,
        proprio=scenes.proprio,
        points=scenes.points,
        image_points=scenes.image_points,
        phrases=scenes.phrases,
        prompts=tuple(trained),
        unseen={**unseen, "unseen_pair": tuple(apart)} if apart else unseen,
        kinds=questioner.kinds,
        ask=questioner.ask,
    )


def build(config: GroundConfig, sets: list[GroundingSet]) -> VLAPolicy:
    """The embedded model with its own tokenizer, or a pretrained one."""
    spec = make_task(config.tasks[0], config.image_size).spec
    limits = np.array([spec.action.low, spec.action.high])
    # No actions are known yet: the contract's limits, float64 [2, action.dim], stand in for
    # demonstrations.
    statistics = Statistics.measure(limits, np.concatenate([s.proprio for s in sets]))
    if config.vlm is not None:
        robots = {spec.robot: Embodiment(spec, statistics)}
        return vlm_policy(config.vlm, config.backbone, robots, config.model, ProcessorConfig())
    if config.start is not None:
        start = load_start(config.start)
        start.spec.require_match(spec, f"the start {config.start}", f"task {config.tasks[0]}")
        if config.language is None:
            return start
        tower = load_tower(config.language, config.language_layer)
        return with_tower(start, tower, told_sentences(config.tasks))
    language = _language(config)
    # The prompt has one placeholder for each image token, so the processor must know the count.
    image_tokens = config.embedded.image_tokens(config.image_size)
    conversions = ProcessorConfig(image_tokens_per_camera=image_tokens, max_text_tokens=16)
    processor = Processor(spec, statistics, language, conversions)
    readouts = len(config.model.points) + 1
    backbone = embedded_backbone(config.embedded, language, config.image_size, readouts)
    return VLAPolicy(VLA(backbone, ModelDims.of(processor), config.model), processor)


def _language(config: GroundConfig) -> PreTrainedTokenizerBase | LanguageTower:
    """What reads the words: a pretrained tower, or a tokenizer of all that can be said."""
    if config.language is not None:
        return load_tower(config.language, config.language_layer)
    # Its vocabulary has the words of all tasks and phrasings.
    known = (*dict.fromkeys((*groundable_names(), *config.tasks)),)
    tasks = [find_task(name).task for name in known]
    nouns = {task.noun(p) for task in tasks for p in task.object_phrases} | {
        task.noun(p) for task in tasks for p in task.place_phrases
    }
    # Of all registered tasks, not only those that are drawn: cloning another task needs its words.
    sentences = {
        opening + p.text
        for name in known
        for phrasing in ("train", "heldout")
        for p in prompts_of(name, phrasing)
        for opening in OPENINGS
    } | all_sentences(["gripper", *nouns])
    return train_tokenizer(sentences)


def resolve(config: GroundConfig) -> GroundConfig:
    """The settings with their tasks and frame counts filled in; everything is checked.

    Raises:
        ContractMismatchError: tasks of different robots, whose scenes one model cannot share.
        ValueError: an unknown task, or not one frame count a task.
    """
    tried = config.tasks or groundable_names()
    specs = {name: make_task(name, config.image_size).spec for name in tried}
    first, *others = specs
    # Tasks that were named must agree; by default those of other robots are left out.
    if config.tasks:
        for name in others:
            specs[first].require_match(specs[name], f"task {first}", f"task {name}")
    # Tasks of other packages may have robots of their own.
    names = tuple(name for name in specs if not specs[first].differences(specs[name]))
    frames = config.frames or tuple(find_task(name).task.grounding_frames for name in names)
    if len(names) != len(frames):
        raise ValueError(f"one frame count a task: {names} and {frames}")
    return replace(config, tasks=names, frames=frames)


def _scenes_configs(config: GroundConfig) -> list[ScenesConfig]:
    """What is drawn of each task; made, and so checked, before anything is drawn."""
    return [
        ScenesConfig((name,), count, config.scenes, config.image_size)
        for name, count in zip(config.tasks, config.frames, strict=True)
    ]


def _origin(config: GroundConfig) -> dict[str, Any]:
    """What decides the result beside the policy, the frames and the training."""
    kept = ("tasks", "frames", "keep_pairs_apart", "image_size", "embedded", "vlm", "backbone")
    # By content: a start that was trained anew is another one, one that was moved is not.
    start = None if config.start is None else fingerprint(config.start)
    words = {"start": start, "reword": config.reword}
    return {"command": "ground", **words, **{name: plain(getattr(config, name)) for name in kept}}


def main(config: GroundConfig) -> int:
    """Draw, train, save."""
    require_device(config.device)
    torch.manual_seed(config.training.seed)
    config = resolve(config)
    drawn = _scenes_configs(config)
    # Refused before minutes of drawing: models that there are not, a folder that cannot be written.
    if config.vlm is not None:
        require_pretrained(config.vlm, config.backbone)
    if config.language is not None:
        require_tower(config.language)
    folder = RunFolder(config.out, config, command_line("ground", config), _origin(config))
    sets = []
    for scenes in drawn:
        print(f"scenes of {scenes.tasks[0]}: {scenes.frames_per_task}", flush=True)
        sets.append(grounding_set(make_scenes(scenes)[0], config.keep_pairs_apart, config.reword))
    policy = build(config, sets)
    policy.model.to(config.device)
    training = config.training
    # These have no words of their own to answer in; a pretrained model answers already.
    if config.vlm is not None or isinstance(policy.processor.language, LanguageTower):
        training = replace(training, questions=0)
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
