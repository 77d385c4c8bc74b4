"""The world: tasks, physics, vectorised environments, rendering, experts, recording."""
