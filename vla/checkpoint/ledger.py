"""What was spent to obtain a policy's weights: demonstrations, labelled frames, simulation."""

from __future__ import annotations

from collections.abc import Mapping


class Ledger:
    """Amounts by name, through all trainings that the weights went through.

    `grounding_frames` are labelled with true positions, `demonstration_episodes` and
    `demonstration_frames` were recorded, `collection_steps` and `selection_steps` are control steps
    of simulation, in which a policy learned or a checkpoint was chosen; `comparisons` are
    judgements of two episodes.

    Args:
        amounts: spent so far.
    """

    def __init__(self, amounts: Mapping[str, int] | None = None):
        # A copy: what is spent here must not change the ledger that it started from.
        self.amounts: dict[str, int] = dict(amounts or {})

    def spend(self, **amounts: int) -> None:
        """Add amounts by name."""
        for name, amount in amounts.items():
            self.amounts[name] = self.amounts.get(name, 0) + amount

    @property
    def taught_to_act(self) -> bool:
        """Demonstrations or simulation have gone into the weights, not grounding alone."""
        return bool({"demonstration_episodes", "collection_steps"} & self.amounts.keys())

    def restore(self, amounts: Mapping[str, int]) -> None:
        """Replace the amounts by these, from which a run resumes."""
        self.amounts = dict(amounts)

    def metrics(self) -> dict[str, float]:
        """Amounts as `ledger/<name>`, for a log."""
        return {f"ledger/{name}": float(amount) for name, amount in self.amounts.items()}
