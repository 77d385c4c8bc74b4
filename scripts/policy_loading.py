"""Who takes part in a comparison: built-in policies and checkpoints, each with its environment."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from policies.evaluation.baselines import ExpertPolicy, RandomPolicy, ZeroPolicy
from scripts.plan import PlanConfig, make_policy
from sim.tasks.base import Phrasing, Task
from sim.tasks.registry import make_task
from sim.vector import CpuVecEnv
from vla.checkpoint.folder import latest_complete
from vla.contract import Policy, RobotSpec
from vla.execution import make_executor
from vla.lerobot_plugin.foreign import Description, is_lerobot_checkpoint, load_lerobot_policy
from vla.policy import load_policy

BUILT_IN = {
    "expert": "scripted, sees the simulator's state",
    "random": "uniform within the limits",
    "zero": "does nothing",
    "planner:cem": "searches the exact simulator",
    "planner:mppi": "searches the exact simulator",
}


@dataclass(frozen=True)
class Entrant:
    """One policy of a comparison.

    Attributes:
        name: as in the table.
        kind: a key of `BUILT_IN`, or the folder of a checkpoint or of a run.
        policy: loaded from the folder; None where built in, which needs an environment first.
    """

    name: str
    kind: str
    policy: Policy | None = None

    @property
    def run_folder(self) -> Path | None:
        """Where the checkpoint's training wrote, found by its run.json; None for the built-in."""
        folder = Path(self.kind)
        near = (folder, *folder.parents[:2]) if self.policy is not None else ()
        return next((place for place in near if (place / "run.json").is_file()), None)

    @property
    def checkpoint(self) -> Path:
        """The folder that was loaded, of a run its best checkpoint; not for the built-in."""
        return _checkpoint(Path(self.kind))

    @property
    def source(self) -> str:
        """Where the behaviour comes from, for the table."""
        return BUILT_IN.get(self.kind, self.kind)


def read_entrant(
    text: str, device: str, task: str, bf16: bool = False, compiled: bool = False
) -> Entrant:
    """Read `name=kind`, `kind`, `name=folder` or `folder`; a run stands for its best checkpoint.

    A folder may be a checkpoint or a run of ours, or of LeRobot's; a checkpoint of LeRobot's own
    policies has no contract and takes that of the task, as far as its inputs say that it fits. One
    of ours may be followed by `@` and a way of executing chunks, see `vla.execution.executed`; and
    before that, one for several robots, by `#` and which it controls: else the one that fits the
    task. `bf16` lets LeRobot's policies compute in bfloat16, `compiled` compiles ours.

    Raises:
        CheckpointError: the folder holds no readable checkpoint.
        ContractMismatchError: a LeRobot policy is for other cameras, or other sizes; or none of a
            checkpoint's robots fits the task, or more than one.
        ForeignCheckpointError: a LeRobot policy lacks weights or statistics.
        ValueError: neither a built-in policy nor a folder, no such way of executing, or no such
            embodiment.
    """
    text, _, way = text.partition("@")
    name, _, kind = text.rpartition("=")
    kind, _, embodiment = kind.partition("#")
    if kind in BUILT_IN:
        return Entrant(name or kind, kind)
    if not Path(kind).is_dir():
        raise ValueError(
            f"policy {text!r}: {kind!r} is no folder and not built in; "
            f"valid: name=FOLDER[#EMBODIMENT][@WAY], {', '.join(BUILT_IN)}"
        )
    folder = _checkpoint(Path(kind))
    policy: Policy
    if not is_lerobot_checkpoint(folder):
        wanted = embodiment or make_task(task).spec
        ours = load_policy(folder, device, wanted)
        if compiled:
            ours.compile()
        policy = make_executor(ours, way or "chunk")
    elif way or embodiment:
        raise ValueError(
            f"policy {text!r}: LeRobot's policies are for one robot and execute chunks in their "
            "own way"
        )
    else:
        # Imports LeRobot, which comparing our own policies does not need.
        from policies.lerobot.act_acceleration import optimise_inference

        offered = make_task(task, _picture_size(folder)).spec
        policy = load_lerobot_policy(folder, offered, device, bf16, optimise_inference)
    return Entrant(name or Path(kind).name, kind, policy)


def _picture_size(folder: Path) -> int:
    """Pixels a side that a LeRobot policy was trained on; the task's usual ones if it is blind."""
    sizes = [height for height, _ in Description.read(folder).pictures.values()]
    return sizes[0] if sizes else 96


def _checkpoint(folder: Path) -> Path:
    """A checkpoint itself, or of a run its best one, else its latest."""
    if (folder / "manifest.json").is_file() or is_lerobot_checkpoint(folder):
        return folder
    if (last := folder / "checkpoints" / "last" / "pretrained_model").is_dir():  # of lerobot-train
        return last
    best = folder / "best"
    return best if best.is_dir() else latest_complete(folder) or folder


def require_comparable(entrants: Sequence[Entrant], task: str, reference: str) -> None:
    """Refuse what cannot be compared, before anything runs.

    Raises:
        ContractMismatchError: a checkpoint is for another robot than the task's.
        ValueError: names repeat, or the reference is unknown.
    """
    names = [entrant.name for entrant in entrants]
    if len(set(names)) != len(names):
        raise ValueError(f"policies need different names (name=...): {names}")
    if reference not in names:
        raise ValueError(f"reference {reference!r} is none of {names}")
    for entrant in entrants:
        if entrant.policy is None:
            continue
        spec = entrant.policy.spec
        offered = make_task(task, image_size(spec)).spec
        cameras = {camera.name: camera for camera in offered.cameras}
        seen = tuple(cameras[c.name] for c in spec.cameras if c.name in cameras)
        offered = dataclasses.replace(offered, cameras=seen)
        spec.require_match(offered, f"checkpoint {entrant.kind}", f"task {task}")


def make_env(
    entrant: Entrant,
    task: str,
    num_envs: int,
    num_workers: int | None,
    phrasing: Phrasing,
    swap_instructions: bool = False,
) -> CpuVecEnv:
    """An environment that draws what the entrant looks at, and nothing for those that do not."""
    make = SwappedVecEnv if swap_instructions else CpuVecEnv
    if entrant.policy is None:
        # A planner searches for one robot at a time: a single environment wastes no search on
        # episodes that have already ended.
        count = 1 if entrant.kind.startswith("planner:") else num_envs
        return make(task, count, num_workers, render=False, phrasing=phrasing)
    spec = entrant.policy.spec
    return make(
        task,
        num_envs,
        num_workers,
        image_size=image_size(spec),
        cameras=[camera.name for camera in spec.cameras],
        phrasing=phrasing,
    )


def make_built_in(kind: str, env: CpuVecEnv, seed: int) -> Policy:
    """A policy of `BUILT_IN` for this environment."""
    if kind == "expert":
        return ExpertPolicy(env.expert_actions, env.spec)
    if kind == "random":
        return RandomPolicy(env.spec, seed=seed)
    if kind == "zero":
        return ZeroPolicy(env.spec)
    planner = cast(Literal["cem", "mppi"], kind.removeprefix("planner:"))
    return make_policy(PlanConfig(task=env.task.name, planner=planner, seed=seed), env)


def image_size(spec: RobotSpec) -> int:
    """Pixels a side that a policy was trained on."""
    return spec.cameras[0].height


class SwappedVecEnv(CpuVecEnv):
    """Tells each actor the words of another episode; success stays that of the true goal."""

    def reset(self, indices: Sequence[int], seeds: Sequence[int]) -> None:
        """Begin the episodes of these seeds under other words, in training phrasing."""
        super().reset(indices, seeds)
        self.set_instructions(indices, [other_instruction(self.task, seed) for seed in seeds])


def other_instruction(task: Task, seed: int) -> str:
    """The words of the next seed whose episode asks for something else.

    Raises:
        ValueError: the task only ever asks for one thing.
    """
    data = task.make_data()
    own = task.reset(data, seed).labels
    for other_seed in range(seed + 1, seed + 100):
        other = task.reset(data, other_seed)
        if other.labels != own:
            return other.instruction
    raise ValueError(f"{task.name} asks for one thing only: there is no instruction to swap")
