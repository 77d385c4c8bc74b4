"""The two dialects of the protocol: openpi's, and that of vLLM-Omni's robot endpoint.

A client chooses by the path that it connects to. Both send a metadata map first; vLLM-Omni's has
fields of its own, its replies are bare arrays, its errors are maps, and its reset is a request of
its own (`endpoint`), as its documentation of the OpenPI robot policy API describes.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from vla_runtime.contract import RobotSpec
from vla_runtime.server.messages import RESET, MessageError, pack

VLLM_OMNI_PATH = "/v1/realtime/robot/openpi"


class Session:
    """What a server remembers of one connection.

    Attributes:
        state: the policy's memory; None where an episode begins.
        session_id: vLLM-Omni's name of the episode.
        total_ms: of the last request, from its arrival until its reply was sent.
    """

    def __init__(self) -> None:
        self.state: object = None
        self.session_id: str | None = None
        self.total_ms: float | None = None


class Dialect(Protocol):
    """How a server talks to one client."""

    def metadata(self, common: dict[str, Any], spec: RobotSpec) -> dict[str, Any]:
        """The first message, from what both dialects tell."""
        ...

    def control(self, fields: dict[str, Any], session: Session) -> bytes | None:
        """Take what is no observation out of a request's fields.

        Returns:
            The reply where that is all that was asked for.

        Raises:
            MessageError: a control has a wrong type or value.
        """
        ...

    def reply(self, actions: np.ndarray, infer_ms: float, session: Session) -> bytes:
        """The message with a chunk, float32 [chunk_length, action.dim]."""
        ...

    def error(self, text: str) -> str | bytes:
        """The message that says why there is no chunk."""
        ...


class OpenPI:
    """openpi's own: a map with `actions` and `server_timing`; errors are text frames."""

    def metadata(self, common: dict[str, Any], spec: RobotSpec) -> dict[str, Any]:
        """See `Dialect`."""
        return common

    def control(self, fields: dict[str, Any], session: Session) -> bytes | None:
        """See `Dialect`; `reset: true` beside an observation begins an episode with it."""
        if not isinstance(reset := fields.pop(RESET, False), bool):
            raise MessageError(f"{RESET!r} is true or false, got {type(reset).__name__}")
        if reset:
            session.state = None
        return None

    def reply(self, actions: np.ndarray, infer_ms: float, session: Session) -> bytes:
        """See `Dialect`."""
        timing = {"infer_ms": infer_ms}
        if session.total_ms is not None:
            timing["prev_total_ms"] = session.total_ms
        return pack({"actions": actions, "server_timing": timing})

    def error(self, text: str) -> str:
        """See `Dialect`."""
        return text


class VLLMOmni:
    """vLLM-Omni's: bare arrays, errors as maps, `endpoint` and `session_id` beside the fields."""

    def metadata(self, common: dict[str, Any], spec: RobotSpec) -> dict[str, Any]:
        """See `Dialect`; the fields that its clients require, beside the common ones."""
        sizes = [(camera.height, camera.width) for camera in spec.cameras]
        return common | {
            "image_resolution": sizes[0] if sizes else (0, 0),
            "n_external_cameras": len(sizes),
            "needs_wrist_camera": False,
            "needs_stereo_camera": False,
            "needs_session_id": False,
            "action_space": spec.robot,
            "action_horizon": common["chunk_length"],
            "action_dim": spec.action.dim,
        }

    def control(self, fields: dict[str, Any], session: Session) -> bytes | None:
        """See `Dialect`; another `session_id` begins an episode, and so does a reset."""
        endpoint = fields.pop("endpoint", "infer")
        session_id = fields.pop("session_id", session.session_id)
        known = isinstance(endpoint, str) and endpoint in ("infer", "reset")
        if not known or not isinstance(session_id, str | None):
            raise MessageError("'endpoint' is 'infer' or 'reset', and 'session_id' is a string")
        if endpoint == "reset" or session_id != session.session_id:
            session.state = None
        session.session_id = session_id
        return pack({"status": "reset successful"}) if endpoint == "reset" else None

    def reply(self, actions: np.ndarray, infer_ms: float, session: Session) -> bytes:
        """See `Dialect`."""
        return pack(actions)

    def error(self, text: str) -> bytes:
        """See `Dialect`."""
        return pack({"type": "error", "message": text})


def dialect_of(path: str) -> Dialect:
    """The dialect that a client chose by the path of its connection."""
    return VLLMOmni() if path.partition("?")[0] == VLLM_OMNI_PATH else OpenPI()
