"""The simulated arm: contacts that are not looked for must be impossible."""

from __future__ import annotations

import mujoco
import numpy as np

from sim.tasks import fetch_arm
from sim.tasks.fetch_arm import fetch_asset
from sim.tasks.registry import make_task

JOINTS = (
    *("head_pan", "head_tilt", "shoulder_pan", "shoulder_lift", "upperarm_roll"),
    *("elbow_flex", "forearm_roll", "wrist_flex", "wrist_roll"),
)


def test_no_joint_angles_bring_the_skipped_links_together() -> None:
    """Every angle, a little beyond the joints' ends, with 3 mm to spare."""
    model = mujoco.MjSpec.from_file(str(fetch_asset("pick_and_place.xml"))).compile()
    model.geom_margin[:] = 0.003
    task = make_task("FetchPickAndPlace")
    data = mujoco.MjData(model)
    settled = task.make_data().qpos
    joints = [model.joint(f"robot0:{name}_joint") for name in JOINTS]
    low, high = np.array([j.range if j.limited[0] else (-np.pi, np.pi) for j in joints]).T
    address = np.array([joint.qposadr[0] for joint in joints])
    rng = np.random.default_rng(0)
    met = set()
    for _ in range(4000):
        data.qpos[:] = settled
        data.qpos[address] = rng.uniform(low - 0.05, high + 0.05)
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_collision(model, data)
        bodies = model.geom_bodyid[data.contact.geom]
        met |= {tuple(model.body(body).name.removeprefix("robot0:") for body in b) for b in bodies}
    met |= {(other, one) for one, other in met}
    assert ("torso_lift_link", "shoulder_lift_link") in met  # others do meet
    assert not met & set(fetch_arm._NEVER_TOUCH)
