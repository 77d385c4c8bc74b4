"""Outcomes of a policy on the same initial states, played once and then read back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vla_runtime.atomic_folder import write_atomically

from policies.run_folder import require_writable
from scripts.evaluate import EvaluateConfig, play
from scripts.initial_states import choose_seeds
from scripts.policy_loading import Candidate


def play_once(
    file: Path, asked: dict[str, Any], candidate: Callable[[], Candidate], config: EvaluateConfig
) -> dict[str, list[bool]]:
    """By "at_end" and "ever" each initial state's success, from the file if that is asked for.

    Args:
        file: written if it does not.
        asked: what else decides the outcomes, as plain data, beside the states that are played.
        candidate: loads the policy, which takes longer than reading.
        config: task, states, episodes and how they are played.

    Raises:
        OSError: the file's folder cannot be written; nothing was played.
    """
    asked = {**asked, "states": config.states, "episodes": config.episodes}
    if file.is_file() and (known := json.loads(file.read_text()))["asked"] == asked:
        return known
    # Before they are played: what cannot be kept would be lost.
    require_writable(file.parent)
    seeds = choose_seeds(config.task, config.states, config.episodes)
    episodes, _ = play(candidate(), config, seeds)
    outcomes = {"at_end": episodes.success_at_end, "ever": episodes.success_ever}
    found = {"asked": asked, **{name: each.tolist() for name, each in outcomes.items()}}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(found))
    return found
