"""The habits of reinforcement learning, judged from what a run logged."""
