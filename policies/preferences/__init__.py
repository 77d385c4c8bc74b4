"""Learning from which of two behaviours is better: reward models, and preferences without one."""
