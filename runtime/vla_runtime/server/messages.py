"""Messages of openpi's websocket protocol: msgpack maps in which an array is a marked map.

Nothing that a peer sends is trusted: types of numbers come from a table and never from
`numpy.dtype`, and a list or a map where none belongs is refused as soon as it is complete, so that
the work for a message is bounded by the contract and not by what the message declares.
Arrays are written as `openpi-client` 0.1 reads them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

from vla_runtime.contract import ContractMismatchError, Observation, RobotSpec
from vla_runtime.execution import Inpainting

PROMPT, TIME, RESET = "prompt", "time_s", "reset"
TARGET, WEIGHT = "inpaint_target", "inpaint_weight"
MAX_TEXT_BYTES = 4096
"""Longest string in a message: an instruction, or a key."""

_DTYPES = {name: np.dtype(name) for name in ("|u1", "<f4", "<f8")}
_ARRAY_KEYS = {b"__ndarray__", b"data", b"dtype", b"shape"}
_MAX_DIMS, _MAX_KEYS = 4, 64
_MARKUP_BYTES = 128  # around one array: its marks, its shape, the lengths that msgpack writes


class MessageError(ValueError):
    """What a peer sent is no message of this protocol."""


def pack(fields: Any) -> bytes:
    """A message; uint8, float32 and float64 arrays may stand anywhere in it.

    Raises:
        TypeError: it holds something that the protocol does not have.
    """
    return msgpack.packb(fields, default=_mark_array)


def unpack(message: bytes) -> dict[str, Any]:
    """The fields of a message: numbers, strings and arrays (read-only views of its bytes).

    Raises:
        MessageError: it is no map of such fields.
    """
    return _unpack(
        message,
        object_pairs_hook=_read_map,
        list_hook=_read_shape,
        max_array_len=_MAX_DIMS,
        max_map_len=_MAX_KEYS,
        max_str_len=MAX_TEXT_BYTES,
    )


def unpack_reply(message: bytes) -> dict[str, Any]:
    """The fields of what a server sent, in which maps and lists may be nested.

    A client bounds the length of what it takes; the lengths that a message declares are bounded by
    its own.

    Raises:
        MessageError: it is no map of names to values.
    """
    return _unpack(message, object_hook=_read_nested)


def _unpack(message: bytes, **options: Any) -> dict[str, Any]:
    try:
        # The keys of a marked array are bytes, so any key may come; types of one's own may not.
        fields = msgpack.unpackb(
            message, use_list=False, strict_map_key=False, max_ext_len=0, **options
        )
    except (ValueError, TypeError) as error:  # TypeError: a map as a key
        reason = str(error) or "nested too deep"
        raise MessageError(f"not a message of this protocol: {reason}") from error
    if not isinstance(fields, dict):
        raise MessageError("a message is a map of names to values")
    return fields


def _read_nested(fields: dict[Any, Any]) -> np.ndarray | dict[Any, Any]:
    return _read_array(fields) if b"__ndarray__" in fields else fields


def _mark_array(value: Any) -> dict[bytes, Any]:
    if not isinstance(value, np.ndarray) or value.dtype.str not in _DTYPES:
        raise TypeError(
            f"a message cannot hold {type(value).__name__} {getattr(value, 'dtype', '')}"
        )
    return {
        b"__ndarray__": True,
        b"data": value.tobytes(),
        b"dtype": value.dtype.str,
        b"shape": value.shape,
    }


def _read_shape(items: tuple[Any, ...]) -> tuple[int, ...]:
    # Not isinstance: a bool is an int.
    if not all(type(item) is int for item in items):
        raise ValueError("a list stands only for the shape of an array")
    return items


def _read_map(pairs: list[tuple[Any, Any]]) -> np.ndarray | dict[str, Any]:
    fields = {}
    for key, value in pairs:
        if not isinstance(key, str | bytes) or key in fields or isinstance(value, dict):
            raise ValueError("keys are different strings, and no map stands within a map")
        fields[key] = value
    if b"__ndarray__" in fields:
        return _read_array(fields)
    if not all(isinstance(key, str) for key in fields):
        raise ValueError("a map with keys of bytes is an array with __ndarray__")
    return fields


def _read_array(fields: dict[Any, Any]) -> np.ndarray:
    if set(fields) != _ARRAY_KEYS or fields[b"__ndarray__"] is not True:
        raise ValueError(f"an array has the keys {sorted(_ARRAY_KEYS)}")
    data, name, shape = fields[b"data"], fields[b"dtype"], fields[b"shape"]
    if not isinstance(name, str) or name not in _DTYPES:
        raise ValueError(f"arrays have one of the dtypes {list(_DTYPES)}, not {name!r:.40}")
    if not isinstance(data, bytes) or not isinstance(shape, tuple):
        raise ValueError("the data of an array are bytes and its shape is a list")
    dtype = _DTYPES[name]
    # Python's integers do not overflow, so a shape such as (2**62, 4) cannot pass.
    if not all(size > 0 for size in shape) or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"{len(data)} bytes are no {name} of shape {shape}")
    return np.frombuffer(data, dtype).reshape(shape)


class RequestCodec:
    """Requests of one contract as fields of a message, and back.

    A camera's image and proprioception have the names of the contract's features, the instruction
    is `prompt`. `time_s` may be left out, and so may `inpaint_target` and `inpaint_weight`.

    Args:
        spec: the contract.
        chunk_length: of the policy.
        rename: feature of the contract → the key that clients use for it.

    Raises:
        ValueError: `rename` names a feature that the contract does not have, or a key twice.
    """

    def __init__(self, spec: RobotSpec, chunk_length: int, rename: Mapping[str, str] = {}):
        features = spec.features
        images = {features.camera(camera.name): camera for camera in spec.cameras}
        if unknown := set(rename) - {*images, features.proprio}:
            raise ValueError(
                f"cannot rename {sorted(unknown)}; features of the contract are "
                f"{[*images, features.proprio]}"
            )
        self._spec, self._chunk_shape = spec, (chunk_length, spec.action.dim)
        self._images = {rename.get(name, name): camera for name, camera in images.items()}
        self._proprio = rename.get(features.proprio, features.proprio)
        self._required = {*self._images, self._proprio, PROMPT}
        self._optional = {TIME, TARGET, WEIGHT}
        if len(self._required) != len(images) + 2 or self._required & {*self._optional, RESET}:
            raise ValueError(f"two fields of a request have one key: {dict(rename)}")

    def describe(self) -> dict[str, Any]:
        """Key → dtype and shape of every array, for people who write a client."""
        arrays: dict[str, Any] = {
            key: {"dtype": "uint8", "shape": (camera.height, camera.width, 3)}
            for key, camera in self._images.items()
        }
        return arrays | {self._proprio: {"dtype": "float32", "shape": (self._spec.proprio.dim,)}}

    @property
    def max_bytes(self) -> int:
        """Length of the longest message that can be valid."""
        pixels = sum(camera.height * camera.width * 3 for camera in self._images.values())
        chunk_length, dim = self._chunk_shape
        floats = self._spec.proprio.dim + chunk_length * (dim + 1)
        markup = sum(_MARKUP_BYTES + len(key.encode()) for key in self._required | self._optional)
        # Two texts: the instruction, and the session that vLLM-Omni's clients name.
        return pixels + 8 * floats + 2 * MAX_TEXT_BYTES + markup

    def encode(
        self, observation: Observation, inpainting: Inpainting | None = None
    ) -> dict[str, Any]:
        """The fields of a request that follows the contract."""
        images = {key: observation.images[c.name] for key, c in self._images.items()}
        given = inpainting and {TARGET: inpainting.target, WEIGHT: inpainting.weight}
        return {
            **images,
            self._proprio: observation.proprio,
            PROMPT: observation.instruction,
            TIME: observation.time_s,
            **(given or {}),
        }

    def decode(self, fields: Mapping[str, Any]) -> tuple[Observation, Inpainting | None]:
        """What fields ask for, checked against the contract.

        Raises:
            ContractMismatchError: naming every key that is missing or unknown, or the field that
                has another type, shape or a value that is not finite.
        """
        self._require_keys(set(fields))
        if not isinstance(prompt := fields[PROMPT], str):
            raise ContractMismatchError(f"{PROMPT!r} is {type(prompt).__name__}, expected a string")
        time_s = fields.get(TIME, 0.0)
        if type(time_s) not in (int, float) or not math.isfinite(time_s):
            raise ContractMismatchError(f"{TIME!r} has to be a finite number of seconds")
        images = {
            camera.name: _array(key, fields[key], ("|u1",), (camera.height, camera.width, 3))
            for key, camera in self._images.items()
        }
        proprio = _floats(self._proprio, fields[self._proprio], (self._spec.proprio.dim,))
        observation = Observation(images, proprio, prompt, float(time_s))
        observation.validate(self._spec)  # names the dimension that is not finite
        if TARGET not in fields:
            return observation, None
        target = _floats(TARGET, fields[TARGET], self._chunk_shape)
        weight = _floats(WEIGHT, fields[WEIGHT], self._chunk_shape[:1])
        # NaN fails both comparisons.
        if not (np.isfinite(target).all() and ((weight >= 0) & (weight <= 1)).all()):
            raise ContractMismatchError(f"{TARGET!r} is finite, and {WEIGHT!r} between 0 and 1")
        return observation, Inpainting(target, weight)

    def _require_keys(self, keys: set[str]) -> None:
        required = self._required | ({TARGET, WEIGHT} if keys & {TARGET, WEIGHT} else set())
        missing, unknown = required - keys, keys - required - self._optional
        if missing or unknown:
            shown = [key[:60] for key in sorted(unknown)]
            raise ContractMismatchError(
                f"missing keys {sorted(missing)}, unknown keys {shown}; a request has "
                f"{sorted(self._required)}, and may have {sorted(self._optional)}"
            )


def _array(key: str, value: Any, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
    if isinstance(value, np.ndarray) and value.dtype.str in dtypes and value.shape == shape:
        return value
    got = type(value).__name__
    if isinstance(value, np.ndarray):
        got = f"{value.dtype} {value.shape}"
    expected = " or ".join(_DTYPES[name].name for name in dtypes)
    raise ContractMismatchError(f"{key!r} is {got}, the contract says {expected} {shape}")


def _floats(key: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = _array(key, value, ("<f4", "<f8"), shape)
    with np.errstate(over="ignore"):  # 1e308 becomes infinite, which is refused afterwards
        return array.astype(np.float32, copy=False)
