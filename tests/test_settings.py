"""No number of any configuration is NaN, infinite or out of its range."""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
from functools import cache
from typing import Any

import pytest

from scripts.ground import GroundConfig
from scripts.pretrain import PretrainConfig
from vla.settings import require_numbers

# What these take has no lower end.
ANY_SIGN = {
    "center_m",
    "language_layer",
    "layer",
    "log_std",
    "log_std_end",
    "log_std_max",
    "log_std_min",
    "log_std_start",
    "noise_exponent",
    "step_reward",
    "target_entropy",
}
# Made in the code alone, by no flag.
NO_FLAGS = {"SceneConfig", "WorkerConfig"}


@cache
def configs() -> dict[str, type[Any]]:
    """Every dataclass of settings, by its name."""
    found = {}
    for package in map(importlib.import_module, ("vla", "policies", "sim", "scripts")):
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            module = importlib.import_module(info.name)
            found |= {
                name: kind
                for name, kind in vars(module).items()
                if dataclasses.is_dataclass(kind)
                and name.endswith(("Config", "SimEnv"))
                and kind.__module__ == info.name
            }
    return {name: kind for name, kind in found.items() if name not in NO_FLAGS}


@pytest.mark.parametrize("wrong", [-1, math.nan, math.inf])
def test_every_number_of_every_configuration_is_checked(wrong: float) -> None:
    """A negative rate ascends and exits with 0; NaN passes a comparison; both take hours."""
    passed, tried = [], 0
    for name, kind in configs().items():
        # Numbers are checked first, so these need not make sense.
        without_default = {
            field.name: ()
            for field in dataclasses.fields(kind)
            if field.default is field.default_factory is dataclasses.MISSING
        }
        for field in dataclasses.fields(kind):
            # Of the class itself: LeRobot's own fields are its own affair.
            declared = kind.__annotations__.get(field.name, "")
            if not (field.init and any(word in declared for word in ("int", "float"))):
                continue
            if wrong == -1 and field.name in ANY_SIGN:
                continue
            value = (wrong,) if declared.startswith("tuple") else wrong
            tried += 1
            try:
                kind(**{**without_default, field.name: value})
            except ValueError as error:
                # CloningConfig.image_shift is the shift of its augmentation.
                if field.name.removeprefix("image_") in str(error):
                    continue
            passed.append(f"{name}.{field.name}")
    assert not passed
    assert tried > 100


@dataclasses.dataclass(frozen=True)
class Example:
    """One number of each kind."""

    count: int = 1
    rate: float = 1.0
    share: float | None = None
    exponents: tuple[float, ...] = (-1.0,)
    is_on: bool = False

    def __post_init__(self) -> None:
        """Check."""
        require_numbers(
            self,
            at_least_1=("count",),
            above_0=("rate",),
            any_sign=("exponents",),
            at_most={"share": 1},
        )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"rate": 0.0}, "rate must be above 0, got 0.0"),
        ({"rate": -2.0}, "rate must be above 0, got -2.0"),
        ({"share": 1.5}, "share must be at least 0 and at most 1, got 1.5"),
        ({"exponents": (1.0, math.nan)}, "exponents must be finite, got nan"),
    ],
)
def test_the_message_names_the_setting_its_range_and_its_value(
    wrong: dict[str, Any], message: str
) -> None:
    """Nothing else is refused."""
    Example()
    with pytest.raises(ValueError, match=f"^{message}$"):
        Example(**wrong)


@pytest.mark.parametrize("kind", [GroundConfig, PretrainConfig])
def test_a_layer_of_no_language_tower_is_refused(kind: type[Any]) -> None:
    """It would be ignored in silence."""
    with pytest.raises(ValueError, match="name one with --language"):
        kind(language_layer=16)
