"""Messages: what openpi-client sends and reads, and refusals of all else."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgpack
import numpy as np
import pytest
from openpi_client import msgpack_numpy
from policy_server import SPEC, fields_of, observe
from vla_runtime.contract import ContractMismatchError, Observation
from vla_runtime.execution import Inpainting
from vla_runtime.server.messages import (
    MAX_TEXT_BYTES,
    MessageError,
    RequestCodec,
    pack,
    unpack,
    unpack_reply,
)

CODEC = RequestCodec(SPEC, 4)
CHUNK = np.ones((4, 3))


def same(one: Observation, other: Observation) -> bool:
    """Equal in every field."""
    return (
        one.instruction == other.instruction
        and one.time_s == other.time_s
        and np.array_equal(one.proprio, other.proprio)
        and one.images.keys() == other.images.keys()
        and all(np.array_equal(one.images[name], other.images[name]) for name in one.images)
    )


def array(**changes: Any) -> dict[bytes, Any]:
    """A marked array of two float32 numbers, with changed marks."""
    marks = {"__ndarray__": True, "data": bytes(8), "dtype": "<f4", "shape": (2,)} | changes
    return {key.encode(): value for key, value in marks.items()}


def test_an_observation_survives_the_wire() -> None:
    """Decode after encode is the identity, through bytes; dtypes are kept."""
    sent = observe(3)
    received, inpainting = CODEC.decode(unpack(pack(CODEC.encode(sent))))
    assert inpainting is None
    assert same(sent, received)
    assert received.proprio.dtype == np.float32


def test_what_a_chunk_joins_to_survives_the_wire() -> None:
    """Beside the observation."""
    sent = Inpainting(np.arange(12, dtype="f4").reshape(4, 3), np.linspace(1, 0, 4, dtype="f4"))
    _, received = CODEC.decode(unpack(pack(CODEC.encode(observe(), sent))))
    assert received is not None
    assert np.array_equal(received.target, sent.target)
    assert np.array_equal(received.weight, sent.weight)


def test_openpi_clients_bytes_are_read_and_ours_by_it() -> None:
    """Both directions against the real package."""
    sent = observe(1)
    received, _ = CODEC.decode(unpack(msgpack_numpy.packb(fields_of(sent))))
    assert same(dataclasses.replace(sent, time_s=0.0), received)
    actions = np.arange(6, dtype=np.float32).reshape(2, 3)
    theirs = msgpack_numpy.unpackb(pack({"actions": actions, "timing": {"ms": 1.5}}))
    assert np.array_equal(theirs["actions"], actions)
    ours = unpack_reply(msgpack_numpy.packb({"actions": actions, "timing": {"ms": 1.5}}))
    assert np.array_equal(ours["actions"], actions)
    assert ours["timing"] == {"ms": 1.5}


def test_float64_proprioception_is_taken() -> None:
    """Numpy's default; most clients never say float32."""
    fields = fields_of(observe()) | {"observation.state": np.array([0.25, 0.5])}
    assert CODEC.decode(unpack(msgpack_numpy.packb(fields)))[0].proprio.tolist() == [0.25, 0.5]


def test_the_longest_valid_message_is_within_the_limit() -> None:
    """Float64 numbers, the longest instruction, every optional field; and not far above."""
    fields = fields_of(observe()) | {
        "observation.state": np.zeros(2),
        "prompt": "é" * (MAX_TEXT_BYTES // 2),
        "time_s": 1e300,
        "reset": True,
        "endpoint": "infer",
        "session_id": "s" * MAX_TEXT_BYTES,
        "inpaint_target": np.zeros((4, 3)),
        "inpaint_weight": np.zeros(4),
    }
    length = len(msgpack_numpy.packb(fields))
    assert length <= CODEC.max_bytes < length + 1024


def test_renamed_keys() -> None:
    """A client's own names stand instead of the contract's; nothing else may be renamed."""
    codec = RequestCodec(SPEC, 4, {"observation.state": "observation/state"})
    fields = fields_of(observe())
    fields["observation/state"] = fields.pop("observation.state")
    assert same(codec.decode(fields)[0], dataclasses.replace(observe(), time_s=0.0))
    assert "observation/state" in codec.describe()
    with pytest.raises(ValueError, match=r"cannot rename \['state'\]"):
        RequestCodec(SPEC, 4, {"state": "a"})
    with pytest.raises(ValueError, match="one key"):
        RequestCodec(SPEC, 4, {"observation.state": "prompt"})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"observation.state": np.zeros(3)}, r"'observation.state' is float64 \(3,\), .* \(2,\)"),
        ({"observation.state": np.zeros((1, 2))}, "observation.state"),
        ({"observation.state": np.zeros(2, np.uint8)}, "float32 or float64"),
        ({"observation.state": [1.0, 2.0]}, "'observation.state' is list"),
        ({"observation.state": np.array([0.0, np.nan])}, r"proprio is not finite in \['y'\]"),
        ({"observation.state": np.array([1e308, 0.0])}, r"not finite in \['x'\]"),
        ({"observation.images.front": np.zeros((6, 8, 3), np.float32)}, "says uint8"),
        ({"observation.images.front": np.zeros((8, 6, 3), np.uint8)}, r"\(6, 8, 3\)"),
        ({"observation.images.front": "front.png"}, "is str"),
        ({"prompt": 3}, "'prompt' is int"),
        ({"prompt": msgpack.ExtType(5, b"")}, "'prompt' is ExtType"),
        ({"time_s": float("inf")}, "finite number of seconds"),
        ({"time_s": True}, "finite number of seconds"),
        ({"inpaint_target": CHUNK}, r"missing keys \['inpaint_weight'\]"),
        ({"inpaint_target": CHUNK, "inpaint_weight": np.full(4, np.nan)}, "between 0 and 1"),
        ({"inpaint_target": CHUNK, "inpaint_weight": np.full(4, 1.5)}, "between 0 and 1"),
        ({"inpaint_target": CHUNK * np.inf, "inpaint_weight": np.ones(4)}, "is finite"),
        (
            {"inpaint_target": CHUNK[0], "inpaint_weight": np.ones(4)},
            r"float64 \(3,\), .* \(4, 3\)",
        ),
        ({"observation/image": 1}, r"unknown keys \['observation/image'\]"),
    ],
)
def test_what_breaks_the_contract_is_named(changed: dict[str, Any], message: str) -> None:
    """The field, what it is and what it should be."""
    with pytest.raises(ContractMismatchError, match=message):
        CODEC.decode(fields_of(observe()) | changed)


def test_missing_keys_are_named() -> None:
    """Together with all that are valid."""
    fields = fields_of(observe())
    del fields["prompt"]
    with pytest.raises(
        ContractMismatchError, match=r"missing keys \['prompt'\].*observation.state"
    ):
        CODEC.decode(fields)


BOMBS = {
    "nothing": b"",
    "no map": msgpack.packb(3),
    "a list": msgpack.packb([1, 2]),
    "an array alone": msgpack.packb(array()),
    "two messages": msgpack.packb({"a": 1}) * 2,
    "cut off": msgpack.packb({"a": "text"})[:-1],
    "a list as deep as it is long": b"\x91" * 5000,
    "a map as deep as it is long": b"\x81\xa1a" * 5000,
    "a list of 2**32": b"\x81\xa1a\xdd\xff\xff\xff\xff",
    "a map of 2**32": b"\xdf\xff\xff\xff\xff",
    "bytes of 2**32": b"\x81\xa1a\xc6\xff\xff\xff\xff",
    "text of 2**32": b"\x81\xa1a\xdb\xff\xff\xff\xff",
    "a type of one's own": msgpack.packb({"a": msgpack.ExtType(5, b"abc")}),
    "a timestamp": msgpack.packb({"a": msgpack.Timestamp(1, 2)}),
    "text that is no text": b"\x81\xa1a\xa2\xff\xfe",
    "a key twice": b"\x82\xa1a\x01\xa1a\x02",
    "a number as a key": msgpack.packb({1: 1}),
    "bytes as a key": msgpack.packb({b"a": 1}),
    "a map in a map": msgpack.packb({"a": {"b": 1}}),
    "a list of text": msgpack.packb({"a": ["b"]}),
    "a list of lists": msgpack.packb({"a": [[1], [2]]}),
    "a numpy scalar": msgpack_numpy.packb({"a": np.float32(1)}),
    "an object scalar": msgpack.packb({"a": {b"__npgeneric__": 1, b"data": 1, b"dtype": "O"}}),
    "a long text": msgpack.packb({"a": "b" * (MAX_TEXT_BYTES + 1)}),
}
ARRAYS = {
    "object": array(dtype="|O"),
    "void": array(dtype="|V8"),
    "structured": array(dtype="f4,f4"),
    "a list of dtypes": array(dtype="u1," * 1000),
    "big endian": array(dtype=">f4"),
    "bytes for a dtype": array(dtype=b"<f4"),
    "no dtype": array(dtype=None),
    "dates": array(dtype="<M8[s]", shape=(1,)),
    "too many": array(shape=(3,)),
    "negative": array(shape=(-1, -2)),
    "one negative": array(shape=(-1,)),
    "none of many": array(data=b"", shape=(0, 2**40)),
    "overflowing": array(shape=(2**62, 4)),
    "five dimensions": array(shape=(1, 1, 1, 1, 2)),
    "no list": array(shape=2),
    "fractions": array(shape=(2.0,)),
    "true": array(shape=(True, 2)),
    "text": array(data="12345678"),
    "not marked": array(__ndarray__=1),
    "a key more": array(order="F"),
}


@pytest.mark.parametrize(
    "message", [*BOMBS.values(), *(msgpack.packb({"a": value}) for value in ARRAYS.values())],
    ids=[*BOMBS, *ARRAYS],
)  # fmt: skip
def test_what_is_no_message_is_refused(message: bytes) -> None:
    """With the one error that a server answers, and no other."""
    with pytest.raises(MessageError):
        unpack(message)


def test_a_message_holds_no_other_types() -> None:
    """Ours are checked too, before they are sent."""
    with pytest.raises(TypeError, match="object"):
        pack({"a": np.array([None])})
    with pytest.raises(TypeError, match="set"):
        pack({"a": {1}})


@pytest.mark.parametrize(
    "message", [b"", b"\x01", b"\x81\x80\x01", b"\x91" * 5000, BOMBS["a map of 2**32"]]
)
def test_a_reply_that_is_none(message: bytes) -> None:
    """A client reads nested maps, and is as careful otherwise."""
    with pytest.raises(MessageError):
        unpack_reply(message)
