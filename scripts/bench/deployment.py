"""What deployment costs, in one run: decisions, the server, the safety gate.

Each table takes its contenders in turns. Run it on a quiet machine as
`python -m scripts.bench.deployment --checkpoint runs/clone/best --exported exported/clone`.
"""

from __future__ import annotations

import sys

import tyro

from scripts.bench import export_latency, gate_cost, server_overhead


def main(config: export_latency.BenchExportConfig) -> int:
    """Print the three tables."""
    print("## Decision\n", flush=True)
    export_latency.main(config)
    print("\n## Server, three images of 96 px\n", flush=True)
    server_overhead.main(server_overhead.ServerOverheadConfig())
    print("\n## Safety gate, six joints\n", flush=True)
    return gate_cost.main(gate_cost.GateCostConfig())


if __name__ == "__main__":
    sys.exit(main(tyro.cli(export_latency.BenchExportConfig)))
