"""`vla collect`: record expert demonstrations into a LeRobotDataset."""

from __future__ import annotations

from sim.demonstrate import RecordConfig
from sim.record import record

CollectConfig = RecordConfig


def main(config: CollectConfig) -> int:
    """Record, then say what lies where."""
    summary = record(config)
    print(
        f"{summary.root}: {summary.episodes} episodes, {summary.frames} frames "
        f"({summary.added} episodes added in {summary.wall_s:.1f} s)"
    )
    for name, seeds in summary.failed.items():
        if seeds:
            print(f"  {name}: {len(seeds)} unsuccessful episodes dropped, seeds {list(seeds)}")
    return 0
