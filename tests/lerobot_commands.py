"""LeRobot's commands as a person types them, with as little work as possible."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

TINY_ACT = (
    "--policy.type=act",
    "--policy.push_to_hub=false",
    "--policy.pretrained_backbone_weights=null",
    "--policy.dim_model=32",
    "--policy.n_heads=2",
    "--policy.dim_feedforward=32",
    "--policy.n_encoder_layers=1",
    "--policy.n_vae_encoder_layers=1",
    "--policy.latent_dim=4",
    "--policy.chunk_size=5",
    "--policy.n_action_steps=5",
    "--policy.dropout=0",  # ours draws fewer numbers
)

TINY_DIFFUSION = (
    "--policy.type=diffusion",
    "--policy.push_to_hub=false",
    "--policy.pretrained_backbone_weights=null",
    "--policy.use_group_norm=true",
    "--policy.horizon=8",
    "--policy.n_action_steps=3",
    "--policy.drop_n_last_frames=2",
    "--policy.down_dims=[16,32]",
    "--policy.n_groups=4",
    "--policy.diffusion_step_embed_dim=16",
)


def run_command(name: str, *arguments: str, succeeds: bool = True) -> str:
    """Run `lerobot-train` and the like, offline and on the CPU; returns what it printed."""
    command = [str(Path(sys.executable).with_name(name)), *arguments]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=600,
    )
    assert (run.returncode == 0) is succeeds, run.stdout[-6000:]
    return run.stdout


def train(data: Path, out: Path, *policy: str, steps: int = 2) -> str:
    """`lerobot-train` on a local data set, without evaluation or workers."""
    return run_command("lerobot-train", *training_flags(data, out, *policy, steps=steps))


def training_flags(data: Path, out: Path, *policy: str, steps: int = 2) -> list[str]:
    """What `train` types."""
    return [
        f"--dataset.repo_id=local/{data.name}",
        f"--dataset.root={data}",
        *policy,
        "--policy.device=cpu",
        f"--output_dir={out}",
        f"--steps={steps}",
        "--batch_size=4",
        "--num_workers=0",
        "--log_freq=1",
        "--env_eval_freq=0",
    ]


def roll_out(*policy: str) -> int:
    """`lerobot-rollout` of a policy on our simulated robot for a second; its control steps."""
    told = run_command(
        "lerobot-rollout",
        *policy,
        "--robot.type=vla_sim",
        "--robot.task=FetchReach",
        "--task=reach the goal",
        "--fps=25",
        "--duration=1",
        "--return_to_initial_position=false",
    )
    ended = re.search(r"FetchReach (?:not )?solved after (\d+) control steps", told)
    assert ended, told[-3000:]
    return int(ended[1])
