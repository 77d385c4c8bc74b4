"""From a run's flags to a moving robot, and to a robot that stands still again."""

from __future__ import annotations

from vla_runtime.contract import Robot
from vla_runtime.run_config import RunConfig
from vla_runtime.run_report import RunReport


def run(config: RunConfig) -> RunReport:
    """Make the robot that the flags name, and `run_robot` it.

    Raises:
        ValueError: see `run_robot`; also an unknown kind of robot.
    """
    from vla_runtime.robots.registry import make_robot

    return run_robot(make_robot(config.robot), config)


def run_robot(robot: Robot, config: RunConfig) -> RunReport:
    """Run the policy on the robot until time is over, somebody stops it, or something fails.

    The robot is connected here, and halted and disconnected however the run ends. `config.robot`
    is used for messages alone.

    Args:
        robot: not connected yet.
        config: the flags.

    Returns:
        The report, which has also been written to `config.out`.

    Raises:
        ContractMismatchError: policy and robot do not share one contract.
        ValueError: limits are missing, or the execution does not fit the policy.
        ConnectionError: the robot or the policy's server does not answer.
    """
    raise NotImplementedError
