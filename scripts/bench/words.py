"""How well policies understand Tabletop's instructions in other words.

    python -m scripts.bench.words --policies clone=runs/Tabletop/clone/best

plays the same development states with every variant of `word_variants.json`: synonyms that no
training instruction has, other orders, politeness, typing errors, distractors. With `--scenes
data/scenes` nothing is simulated: on the last frames that `vla ground` drew, which it holds out,
the block and the place that the policy points at are compared with those that the words name. That
takes a minute, and a checkpoint that has learned to point but not yet to act will do.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
import tyro
from torch import Tensor

from policies.evaluation.statistics import paired_difference, wilson_interval
from policies.grounding.grounding_set import observe
from policies.rollout import rollout
from scripts.bench.word_variants import AS_TOLD, VARIANTS, reword
from scripts.initial_states import choose_seeds
from scripts.policy_loading import Candidate, make_env, policy_for, read_policy
from scripts.results_table import percent
from sim.scenes import Scenes
from sim.tasks.registry import make_task
from sim.tasks.tabletop import INSTRUCTIONS, Tabletop
from sim.tasks.tabletop_scene import BLOCKS, ZONES
from vla.contract import ObservationBatch, Policy
from vla.policy import VLAPolicy
from vla.settings import require_numbers

_TASK = "Tabletop"
_BATCH = 50  # frames that are looked at together
Outcomes = dict[str, dict[str, np.ndarray]]
"""Policy → variant → bool [n], all in the same order of states or frames."""


@dataclass(frozen=True)
class BenchWordsConfig:
    """What is compared, and on what.

    Attributes:
        policies: each `name=checkpoint folder`; the others are compared with the first.
        variants: by default all; "as told" is always among them.
        episodes: initial states of the development range, the same for all.
        num_envs: environments stepped together.
        scenes: a folder that `vla ground` drew scenes into: measure on those what is pointed at.
        frames: of the last ones of the scenes, one instruction each.
        out: folder for words.md and words.json.
    """

    policies: tuple[str, ...]
    variants: tuple[str, ...] = ()
    episodes: int = 100
    num_envs: int = 16
    scenes: Path | None = None
    frames: int = 300
    out: Path = Path("runs/words")

    def __post_init__(self) -> None:
        require_numbers(self, at_least_1=("episodes", "num_envs", "frames"))
        if not self.policies:
            raise ValueError("need at least one of --policies")
        for name in self.variants:
            reword(name, "lift the red block", 0)  # refuses a name that is none


class Reworded:
    """A policy that is told Tabletop's instructions in other words; a `Policy`.

    Args:
        policy: is told them.
        variant: see `reword`; an instruction gets the same words at every step.
    """

    def __init__(self, policy: Policy, variant: str) -> None:
        self.spec = policy.spec
        self._policy, self._variant = policy, variant

    def reset(self, indices: Sequence[int]) -> None:
        """As the policy."""
        self._policy.reset(indices)

    def act(self, observation: ObservationBatch) -> Tensor:
        """The policy's chunk for the other words."""
        # By the instruction itself, so that policies are told the same whatever their order.
        texts = [reword(self._variant, told, _seed(told)) for told in observation.instructions]
        other = ObservationBatch(observation.images, observation.proprio, texts, observation.time_s)
        return self._policy.act(other)


def main(config: BenchWordsConfig) -> int:
    """Measure, print the table, write it."""
    candidates = [read_policy(text, "cpu", _TASK) for text in config.policies]
    names = (AS_TOLD, *(n for n in config.variants or VARIANTS if n != AS_TOLD))
    config.out.mkdir(parents=True, exist_ok=True)
    measure = _success if config.scenes is None else _choices
    outcomes: Outcomes = {}
    for candidate in candidates:
        outcomes[candidate.name] = {}
        judge = measure(config, candidate)
        for name in names:
            outcomes[candidate.name][name] = found = judge(name)
            print(f"{candidate.name}, {name}: {100 * found.mean():.1f}%", flush=True)
    table = as_table(outcomes)
    print(table)
    (config.out / "words.md").write_text(table, encoding="utf-8")
    lists = {p: {v: o.tolist() for v, o in every.items()} for p, every in outcomes.items()}
    report = json.dumps({"config": asdict(config), "outcomes": lists}, default=str)
    (config.out / "words.json").write_text(report + "\n", encoding="utf-8")
    return 0


def as_table(outcomes: Outcomes) -> str:
    """Markdown: a row a variant, the rate of each policy, and how much it is above the first's."""
    first, *others = outcomes
    heads = ["instruction", first, *(h for name in others for h in (name, f"{name} - {first}"))]
    lines = [heads, ["---"] * len(heads)]
    for variant, reference in outcomes[first].items():
        cells = [variant, _rate(reference)]
        for name in others:
            ours = outcomes[name][variant]
            cells += [_rate(ours), percent(paired_difference(ours, reference).difference, "+")]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _success(config: BenchWordsConfig, candidate: Candidate) -> Callable[[str], np.ndarray]:
    """Success at the end of every episode, by variant."""
    seeds = choose_seeds(_TASK, "development", config.episodes)

    def judge(variant: str) -> np.ndarray:
        with make_env(candidate, _TASK, min(config.num_envs, len(seeds)), None, "train") as env:
            policy = policy_for(candidate, env, 0)
            return rollout(env, Reworded(policy, variant), seeds).success_at_end

    return judge


def _choices(config: BenchWordsConfig, candidate: Candidate) -> Callable[[str], np.ndarray]:
    """Whether block and place that are pointed at are those that the words name, by variant."""
    assert config.scenes is not None
    scenes, task = Scenes.open(config.scenes / _TASK), make_task(_TASK)
    policy = candidate.make() if candidate.make is not None else None
    if not isinstance(policy, VLAPolicy) or not {"object", "target"} <= {*_points(policy)}:
        raise ValueError(f"{candidate.name} points at no object and target: leave out --scenes")
    assert isinstance(task, Tabletop)
    rows = np.arange(len(scenes.images))[-config.frames :]
    drawn = np.random.default_rng(0).integers(len(INSTRUCTIONS), size=len(rows))
    asked = [INSTRUCTIONS[index] for index in drawn]
    told = [task.say(instruction, int(row)) for instruction, row in zip(asked, rows, strict=True)]
    places = [*ZONES, *map(_lift_goal, BLOCKS)]

    def judge(variant: str) -> np.ndarray:
        texts = [reword(variant, text, int(row)) for text, row in zip(told, rows, strict=True)]
        found = _pointed_at(policy, scenes, rows, texts)  # [n, points, 3]
        blocks, targets = (
            _nearest(scenes, rows, found[:, _points(policy).index(point)], known)
            for point, known in (("object", BLOCKS), ("target", places))
        )
        named = [(i.block, i.zone or _lift_goal(i.block)) for i in asked]
        return np.array(
            [tuple(pair) == name for *pair, name in zip(blocks, targets, named, strict=True)]
        )

    return judge


def _points(policy: VLAPolicy) -> tuple[str, ...]:
    return policy.model.config.points.names


def _lift_goal(block: str) -> str:
    return f"lift goal of the {block}"


@torch.no_grad()
def _pointed_at(
    policy: VLAPolicy, scenes: Scenes, rows: np.ndarray, texts: Sequence[str]
) -> np.ndarray:
    """Where each point is seen, [n, points, 3], world, metres."""
    policy.model.eval()
    config, parts = policy.model.config.points, []
    for part in np.split(np.arange(len(rows)), range(_BATCH, len(rows), _BATCH)):
        frames = rows[part]
        seen = scenes.images[frames], scenes.proprio[frames], [texts[int(index)] for index in part]
        inputs = policy.processor.encode_observation(observe(policy.spec, *seen))
        pointing, _ = policy.network.point(inputs)
        assert pointing is not None
        parts.append(pointing.world * config.scale_m + torch.tensor(config.center_m))
    return torch.cat(parts).numpy()


def _nearest(
    scenes: Scenes, rows: np.ndarray, points: np.ndarray, known: Sequence[str]
) -> list[str]:
    """Which of these things of its frame lies nearest to each point [n, 3]."""
    columns = [scenes.phrases.index(name) for name in known]
    away = np.linalg.norm(scenes.points[rows][:, columns] - points[:, None], axis=-1)  # [n, known]
    return [known[int(index)] for index in away.argmin(1)]


def _seed(told: str) -> int:
    # Not `hash`, which differs between processes.
    return crc32(told.encode())


def _rate(outcomes: np.ndarray) -> str:
    return percent(wilson_interval(int(outcomes.sum()), len(outcomes)))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(BenchWordsConfig)))
