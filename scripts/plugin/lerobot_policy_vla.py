"""What LeRobot imports when it looks for plug-ins: registers policies, env and robot.

LeRobot finds a plug-in by the name of its distribution, which must begin with `lerobot_policy_` (or
another of its prefixes) and be importable; hence this module and the name in pyproject.toml.
"""

from sim.lerobot_plugin import config_env, config_robot
from vla.lerobot_plugin import configuration_vla, configuration_vla_remote

# Importing a module registers its classes; the tuple keeps linters from removing the imports.
REGISTERED = (configuration_vla, configuration_vla_remote, config_env, config_robot)
