"""The robots that one model controls: for each a name, its contract and its own statistics.

They share the model, its language and its sizes. A model's sizes are those of the largest robot;
the others' images, proprioception and actions are padded, and a mask says which dimensions
a robot has (`ModelInputs.present`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from vla.contract import ContractMismatchError, RobotSpec
from vla.processing.normalisation import Statistics
from vla.processing.processor import Processor, ProcessorConfig
from vla.processing.prompts import Language, load_language

_FILE = "embodiments.json"


@dataclass(frozen=True)
class Embodiment:
    """One robot.

    Attributes:
        spec: its contract.
        statistics: of its demonstrations; None where the normalisation needs none.
    """

    spec: RobotSpec
    statistics: Statistics | None


class Embodiments:
    """Robots by name, with a processor each.

    Args:
        processors: name → conversions, all of one language and configuration; see `make`.

    Attributes:
        processors: the same, in the same order.

    Raises:
        ValueError: no robot, or an empty name.
    """

    def __init__(self, processors: Mapping[str, Processor]):
        if not processors or not all(name.strip() for name in processors):
            raise ValueError(f"need robots, and a name for each: {list(processors)}")
        self.processors = dict(processors)

    @classmethod
    def of(cls, processor: Processor) -> Embodiments:
        """The one robot of a processor, under its contract's name."""
        return cls({processor.spec.robot: processor})

    @classmethod
    def make(
        cls,
        robots: Mapping[str, Embodiment],
        language: Language,
        config: ProcessorConfig,
    ) -> Embodiments:
        """Processors of robots by name.

        Args:
            robots: name → robot.
            language: of the model.
            config: how observations and actions reach the model, with sizes for all of them; see
                `fit_sizes`.

        Raises:
            ValueError: as above, or a robot that does not fit the configuration.
        """
        return cls(
            {
                name: Processor(robot.spec, robot.statistics, language, config)
                for name, robot in robots.items()
            }
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self.processors)

    def __len__(self) -> int:
        return len(self.processors)

    def __getitem__(self, name: str) -> Processor:
        """The processor of this name; a ValueError lists the valid ones."""
        if name not in self.processors:
            raise ValueError(f"no embodiment {name!r}; valid: {', '.join(self)}")
        return self.processors[name]

    def choose(self, wanted: str | RobotSpec | None) -> str:
        """The name of an embodiment.

        Args:
            wanted: its name; or the contract of what it shall control or learn from, which has to
                fit exactly one (see `unfit`; an equal contract decides among several); or None.
                Where there is one embodiment only, a contract is not compared here.

        Raises:
            ValueError: there is none of that name, or there are several and none was named.
            ContractMismatchError: the contract fits none of several, or more than one.
        """
        if isinstance(wanted, str):
            self[wanted]  # raises for an unknown name
            return wanted
        # Whoever asks compares the contract, since it can say in its message whose that is.
        if len(self) == 1:
            return next(iter(self))
        if wanted is None:
            raise ValueError(
                "this policy controls several robots, give the name or the contract of one: "
                f"{', '.join(self)}"
            )
        specs = {name: processor.spec for name, processor in self.processors.items()}
        why = {name: unfit(spec, wanted) for name, spec in specs.items()}
        fitting = [name for name, lines in why.items() if not lines]
        # Fitting ignores limits and units, so several may fit; only an equal contract decides.
        equal = [name for name in fitting if not specs[name].differences(wanted)]
        found = equal if len(fitting) > 1 else fitting
        if len(found) == 1:
            return found[0]
        if fitting:
            raise ContractMismatchError(
                f"the contract of robot {wanted.robot!r} fits several embodiments, name one: "
                f"{', '.join(fitting)}"
            )
        listed = "".join(f"\n  {name}: {line}" for name, lines in why.items() for line in lines)
        raise ContractMismatchError(
            f"the contract of robot {wanted.robot!r} fits none of the embodiments:{listed}"
        )

    def save(self, folder: Path) -> None:
        """Write into an existing folder: one robot as `Processor.save` does, several together."""
        first = next(iter(self.processors.values()))
        # The files of a single robot hold no name but its contract's, so another name needs the
        # other form.
        if [*self] == [first.spec.robot]:
            first.save(folder)
            return
        robots = {
            name: {"contract": p.spec.to_dict(), "statistics": p.to_dict()["statistics"]}
            for name, p in self.processors.items()
        }
        # Configuration and language once for all, since the robots share them.
        files = {_FILE: robots, "processor.json": {"config": asdict(first.config)}}
        for name, data in files.items():
            (folder / name).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        first.prompts.save(folder)

    @classmethod
    def load(cls, folder: Path) -> Embodiments:
        """Rebuild what `save` wrote, exactly.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file does not hold what it should.
        """
        if not (folder / _FILE).is_file():
            return cls.of(Processor.load(folder))
        robots, shared = (
            json.loads((folder / name).read_text(encoding="utf-8"))
            for name in (_FILE, "processor.json")
        )
        return cls.make(
            {
                name: Embodiment(
                    RobotSpec.from_dict(data["contract"]),
                    data["statistics"] and Statistics.from_dict(data["statistics"]),
                )
                for name, data in robots.items()
            },
            # One object for all robots, so that they cannot differ in tokens.
            load_language(folder),
            ProcessorConfig.from_dict(shared["config"]),
        )


def unfit(ours: RobotSpec, offered: RobotSpec) -> list[str]:
    """Why an embodiment cannot control what is offered, or learn from it; empty where it can.

    Limits, units and sizes of images may differ, and more cameras than ours may be offered.
    """
    lines = [
        f"{what}: {a} != {b}"
        for what, a, b in (
            ("robot", ours.robot, offered.robot),
            ("action", ours.action.names, offered.action.names),
            ("proprio", ours.proprio.names, offered.proprio.names),
            ("control_rate_hz", ours.control_rate_hz, offered.control_rate_hz),
        )
        if a != b
    ]
    # A surplus camera can be left out; a missing one cannot be made up.
    there = [camera.name for camera in offered.cameras]
    missing = [camera.name for camera in ours.cameras if camera.name not in there]
    return [*lines, *([f"cameras: {missing} are not among {there}"] if missing else [])]


def fit_sizes(config: ProcessorConfig, specs: Iterable[RobotSpec]) -> ProcessorConfig:
    """With sizes that all these robots fit into; one robot alone needs none.

    Larger ones that the configuration has already are kept.
    """
    specs = list(specs)
    # A model that several robots have shared keeps its padded sizes, even for one of them.
    if len(specs) == 1 and not config.is_shared:
        return config
    return replace(
        config,
        camera_slots=max(config.camera_slots or 0, *(len(spec.cameras) for spec in specs)),
        proprio_dim=max(config.proprio_dim or 0, *(spec.proprio.dim for spec in specs)),
        action_dim=max(config.action_dim or 0, *(spec.action.dim for spec in specs)),
    )
