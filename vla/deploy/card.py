"""The README.md of an exported policy: what it is, what it controls, and how it was checked."""

from __future__ import annotations

from vla_runtime.contract import RobotSpec, VectorSpec
from vla_runtime.exported.folder import PolicyDescription

_TEMPLATE = """\
# Exported vision-language-action policy for {robot}

It runs without torch: `pip install vla-runtime`, then

```python
from vla_runtime.loading import load_policy

policy = load_policy("<this folder>")
state = policy.initial_state()
chunk, state = policy.decide(observation, state)  # chunk.actions in the units below
```

Every file is listed with its SHA-256 in `manifest.json`; a folder with a changed file is refused.

| | |
|---|---|
| action head | {head} |
| chunk | {chunk_length} control steps at {rate:g} Hz |
| cameras | {cameras} |
| proprioception | {proprio} |
| action | {action} |
| motion limits | {motion} |
| exported from | {source} |

## Compared with the checkpoint in torch, float32

{parity}
"""


def exported_card(spec: RobotSpec, description: PolicyDescription) -> str:
    """Markdown text."""
    return _TEMPLATE.format(
        robot=spec.robot,
        head=description.head,
        chunk_length=description.chunk_length,
        rate=spec.control_rate_hz,
        cameras=", ".join(f"{c.name} ({c.width} x {c.height} px)" for c in spec.cameras) or "none",
        proprio=_ranges(spec.proprio),
        action=_ranges(spec.action),
        motion="in contract.json" if spec.motion else "not stated: give them to the safety gate",
        source=", ".join(f"{what} `{value}`" for what, value in description.source.items()),
        parity="\n".join(f"- {_sentence(*item)}" for item in description.parity.items()),
    )


def _ranges(vector: VectorSpec) -> str:
    fields = zip(vector.names, vector.units, vector.low, vector.high, strict=True)
    return ", ".join(f"{name} [{unit}] {low:g} to {high:g}" for name, unit, low, high in fields)


def _sentence(what: str, found: object) -> str:
    if not isinstance(found, dict) or "largest_difference" not in found:
        return f"{what}: {found}"
    largest = ", ".join(f"{n} {v:.2g}" for n, v in found["largest_difference"].items())
    return f"{what}: {found['decisions']} decisions, largest differences {largest}"
