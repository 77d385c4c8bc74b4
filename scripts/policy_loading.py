"""From a flag's text to policies: built-in ones and checkpoints, each with its world."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from vla_runtime.execution import read_number

from policies.evaluation.baselines import ExpertPolicy, RandomPolicy, ZeroPolicy
from policies.evaluation.row_by_row import RowByRow
from scripts.plan import PlanConfig, make_policy
from sim.tasks.base import Phrasing
from sim.tasks.registry import make_task
from sim.vector import CpuVecEnv
from vla.contract import Policy, RobotSpec
from vla.deploy.torch_policy import find_checkpoint
from vla.execution import make_executor
from vla.lerobot_plugin.foreign import Description, is_lerobot_checkpoint, load_lerobot_policy
from vla.policy import load_policy

BUILT_IN = {
    "expert": "scripted, reads the simulator's state",
    "random": "uniform within the limits",
    "zero": "does nothing",
    "planner:cem": "searches the exact simulator",
    "planner:mppi": "searches the exact simulator",
}


@dataclass(frozen=True)
class Candidate:
    """One policy of a comparison.

    Attributes:
        name: as in the table.
        kind: a key of `BUILT_IN`, or the folder of a checkpoint or of a run.
        make: the loaded policy at the beginning of its first episode, as often as it is called, on
            weights that are shared; None where built in, which needs an environment first.
        spec: the loaded policy's contract; None where built in.
        ledger: what was spent on a checkpoint's weights, by name; nothing on what is built in, and
            None where it is not known.
    """

    name: str
    kind: str
    make: Callable[[], Policy] | None = None
    spec: RobotSpec | None = None
    ledger: dict[str, int] | None = None

    @property
    def run_folder(self) -> Path | None:
        """Where the checkpoint's training wrote, found by its run.json; None for the built-in."""
        folder = Path(self.kind)
        # A checkpoint lies at most two folders below its run.
        near = (folder, *folder.parents[:2]) if self.make is not None else ()
        return next((place for place in near if (place / "run.json").is_file()), None)

    @property
    def source(self) -> str:
        """Where the behaviour comes from, for the table."""
        return BUILT_IN.get(self.kind, self.kind)


@dataclass(frozen=True)
class PolicyText:
    """The parts of `name=kind`, or `name=folder#embodiment@execution`; "" where a part is missing.

    Attributes:
        kind: a key of `BUILT_IN`, or a folder.
    """

    name: str
    kind: str
    embodiment: str = ""
    execution: str = ""

    @classmethod
    def parse(cls, text: str) -> PolicyText:
        """Read it. A folder that exists is a folder, whatever characters its name holds.

        Raises:
            ValueError: neither a built-in policy nor a folder; the message has what is valid.
        """
        name, equals, rest = text.partition("=")
        # The name ends at the first "="; but a path may hold one too, and have no name before it.
        for title, words in (("", text), (name, rest)) if equals else (("", text),):
            if words in BUILT_IN:
                return cls(title or words, words)
            for folder, embodiment, execution in _folders(words):
                return cls(title or folder.resolve().name, str(folder), embodiment, execution)
        raise ValueError(
            f"policy {text!r}: {rest if equals else text!r} is no folder and not built in; "
            f"valid: NAME=FOLDER[#EMBODIMENT][@EXECUTION], {', '.join(BUILT_IN)}"
        )


def _folders(words: str) -> Iterator[tuple[Path, str, str]]:
    """Folders that the text may begin with, the longest first, and what follows each."""
    # Longest first: a folder whose own name has "#" or "@" wins over a shorter one.
    ends = [len(words), *(i for i in range(len(words) - 1, 0, -1) if words[i] in "#@")]
    for end in ends:
        if end and Path(words[:end]).is_dir():
            follows, embodiment, execution = words[end:], "", ""
            if follows.startswith("@"):
                execution = follows[1:]
            elif follows:
                embodiment, _, execution = follows[1:].partition("@")
            yield Path(words[:end]), embodiment, execution


def read_policy(
    text: str, device: str, task: str, bf16: bool = False, compiled: bool = False
) -> Candidate:
    """Load what the text names, see `PolicyText`; a run stands for its best checkpoint.

    A folder may be a checkpoint or a run of ours, or of LeRobot's; a checkpoint of LeRobot's own
    policies has no contract and takes that of the task, as far as its inputs say that it fits. One
    of ours may be followed by `@` and how its chunks are executed, see `make_executor`, LeRobot's
    by `@receding:STEPS` alone; before that, one of ours for several robots by `#` and which it
    controls: else the one that fits the task.

    Args:
        text: of the policy.
        device: where it computes.
        task: that it is to play.
        bf16: checkpoints compute in bfloat16 instead of float32.
        compiled: compile our checkpoints.

    Raises:
        CheckpointError: the folder holds no readable checkpoint.
        ContractMismatchError: a LeRobot policy is for other cameras, or other sizes; or none of a
            checkpoint's robots fits the task, or more than one.
        ForeignCheckpointError: a LeRobot policy lacks weights or statistics.
        ValueError: neither a built-in policy nor a folder, no such execution, or no such
            embodiment.
    """
    words = PolicyText.parse(text)
    if words.kind in BUILT_IN:
        return Candidate(words.name, words.kind, ledger={})
    folder = find_checkpoint(Path(words.kind))
    if is_lerobot_checkpoint(folder):
        steps = _lerobot_steps(text, words)
        # LeRobot stores shapes but no units or rate: the task's contract supplies these.
        offered = make_task(task, _image_size_px(folder)).spec
        # Imports LeRobot, which comparing our own policies does not need.
        from policies.lerobot.act_acceleration import optimise_inference

        theirs = load_lerobot_policy(folder, offered, device, bf16, optimise_inference, steps)
        return Candidate(words.name, words.kind, theirs.fresh, theirs.spec)
    ours = load_policy(folder, device, words.embodiment or make_task(task).spec, bf16)
    # Before `make`: copies share the compiled network.
    if compiled:
        ours.compile()

    def make() -> Policy:
        # A policy's memory is a value beside its weights: a shallow copy shares these alone.
        return make_executor(copy.copy(ours), words.execution or "chunk")

    make()  # an execution that does not exist is refused before other policies are played
    # An empty ledger means that nothing was recorded, hence None.
    return Candidate(words.name, words.kind, make, ours.spec, ours.ledger.amounts or None)


def _lerobot_steps(text: str, words: PolicyText) -> int | None:
    """How many steps of its chunks a LeRobot policy is to execute; None for its own number."""
    if words.embodiment:
        raise ValueError(f"policy {text!r}: LeRobot's policies are for one robot, without a name")
    name, _, steps = words.execution.partition(":")
    if not name:
        return None
    if name != "receding":
        raise ValueError(
            f"policy {text!r}: LeRobot's policies execute chunks as they were saved, or "
            "@receding:STEPS"
        )
    try:
        return read_number(int, steps)
    except ValueError as error:
        raise ValueError(f"policy {text!r}: {error}") from error


def _image_size_px(folder: Path) -> int:
    """Of the images a LeRobot policy was trained on; the task's usual ones if it has no camera."""
    sizes = [height for height, _ in Description.read(folder).images.values()]
    return sizes[0] if sizes else 96


def read_run(folder: Path) -> dict[str, Any]:
    """What a training wrote about itself: `config` and, if it is known, `command`.

    Raises:
        ValueError: run.json is damaged.
    """
    file = folder / "run.json"
    try:
        run = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not readable as JSON: {error}") from error
    if not isinstance(run, dict) or not isinstance(run.get("config"), dict):
        raise ValueError(f"{file} holds no configuration")
    return run


def require_comparable(candidates: Sequence[Candidate], task: str, reference: str) -> None:
    """Refuse what cannot be compared, before anything runs.

    Raises:
        ContractMismatchError: a checkpoint is for another robot than the task's.
        ValueError: names repeat, or the reference is unknown.
    """
    names = [candidate.name for candidate in candidates]
    if len(set(names)) != len(names):
        raise ValueError(f"policies need different names (name=...): {names}")
    if reference not in names:
        raise ValueError(f"reference {reference!r} is none of {names}")
    for candidate in candidates:
        if (spec := candidate.spec) is None:
            continue
        # Tasks render at any size, so the policy's own is taken; cameras it does not use are left
        # out.
        offered = make_task(task, image_size_px(spec)).spec
        cameras = {camera.name: camera for camera in offered.cameras}
        used = tuple(cameras[c.name] for c in spec.cameras if c.name in cameras)
        offered = dataclasses.replace(offered, cameras=used)
        spec.require_match(offered, f"checkpoint {candidate.kind}", f"task {task}")


def make_env(
    candidate: Candidate,
    task: str,
    num_envs: int,
    num_workers: int | None,
    phrasing: Phrasing,
    swap_instructions: bool = False,
) -> CpuVecEnv:
    """An environment that draws what the candidate looks at, and nothing if that is nothing."""
    # Rendering costs more than physics: only the cameras that the policy looks at are drawn.
    settings: dict[str, Any] = {"phrasing": phrasing, "swap_instructions": swap_instructions}
    if (spec := candidate.spec) is None:
        return CpuVecEnv(task, num_envs, num_workers, render=False, **settings)
    cameras = [camera.name for camera in spec.cameras]
    size_px = image_size_px(spec)
    return CpuVecEnv(task, num_envs, num_workers, size_px, cameras, bool(cameras), **settings)


def policy_for(candidate: Candidate, env: CpuVecEnv, seed: int) -> Policy:
    """What acts in this environment; a checkpoint decides in each row by itself."""
    if candidate.make is None or candidate.spec is None:
        return make_built_in(candidate.kind, env, seed)
    return RowByRow(candidate.make, candidate.spec, seed)


def make_built_in(
    kind: str, env: CpuVecEnv, seed: int, execute_steps: int = PlanConfig.execute_steps
) -> Policy:
    """A policy of `BUILT_IN` for this environment; a planner executes so many steps of a plan."""
    if kind == "expert":
        return ExpertPolicy(env.expert_actions, env.spec)
    if kind == "random":
        return RandomPolicy(env.spec, seed=seed)
    if kind == "zero":
        return ZeroPolicy(env.spec)
    # The pattern `planner:` has been checked against `BUILT_IN`; the type checker cannot know.
    planner = cast(Literal["cem", "mppi"], kind.removeprefix("planner:"))
    plan = PlanConfig(env.task.name, planner, execute_steps=execute_steps, seed=seed)
    return make_policy(plan, env)


def image_size_px(spec: RobotSpec) -> int:
    """Pixels a side that a policy was trained on; any will do for one without cameras."""
    return spec.cameras[0].height if spec.cameras else 96
