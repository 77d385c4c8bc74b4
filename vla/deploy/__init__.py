"""From a checkpoint to what a robot runs: exported graphs, and policies behind the runtime."""
