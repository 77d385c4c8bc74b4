"""The part of CBOR that rosbridge sends, decoded with numpy for its typed arrays.

Source: RFC 8949 (CBOR), RFC 8746 (typed arrays, tags 64 to 87).
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

# rosbridge packs little-endian only. Tag 64 is uint8; a byte string is left as bytes.
_TYPED_ARRAYS = {
    64: "u1",
    69: "<u2",
    70: "<u4",
    71: "<u8",
    72: "i1",
    77: "<i2",
    78: "<i4",
    79: "<i8",
    85: "<f4",
    86: "<f8",
}
_SIMPLE = {20: False, 21: True, 22: None, 23: None}
_FLOATS = {25: ">e", 26: ">f", 27: ">d"}
_DEEPEST = 16


def decode_cbor(data: bytes) -> Any:
    """One CBOR item; typed arrays become numpy arrays.

    Raises:
        ValueError: it ends early, goes on after its end, nests too deep, or uses what rosbridge
            does not send (indefinite lengths, other tags).
    """
    value, end = _item(data, 0, 0)
    if end != len(data):
        raise ValueError(f"{len(data) - end} bytes follow the CBOR message")
    return value


def _item(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    if depth > _DEEPEST:
        raise ValueError("the CBOR message nests too deep")
    kind, low = divmod(_bytes(data, at, 1)[0], 32)
    at += 1
    if kind == 7:
        return _simple(data, at, low)
    count, at = _count(data, at, low)
    match kind:
        case 0:
            return count, at
        case 1:
            return -1 - count, at
        case 2:
            return _bytes(data, at, count), at + count
        case 3:
            return _bytes(data, at, count).decode(), at + count
        case 4:
            return _items(data, at, count, depth + 1)
        case 5:
            flat, at = _items(data, at, 2 * count, depth + 1)
            return dict(zip(flat[::2], flat[1::2], strict=True)), at
    content, at = _item(data, at, depth + 1)
    if count not in _TYPED_ARRAYS:
        raise ValueError(f"the CBOR message has the unknown tag {count}")
    return np.frombuffer(content, _TYPED_ARRAYS[count]), at


def _items(data: bytes, at: int, count: int, depth: int) -> tuple[list[Any], int]:
    items = []
    # No list of `count` entries in advance: a false count ends at the end of the data.
    for _ in range(count):
        item, at = _item(data, at, depth)
        items.append(item)
    return items, at


def _count(data: bytes, at: int, low: int) -> tuple[int, int]:
    if low < 24:
        return low, at
    if low > 27:
        raise ValueError("the CBOR message has an indefinite length")
    size = 1 << (low - 24)
    return int.from_bytes(_bytes(data, at, size), "big"), at + size


def _simple(data: bytes, at: int, low: int) -> tuple[Any, int]:
    if low in _SIMPLE:
        return _SIMPLE[low], at
    if low not in _FLOATS:
        raise ValueError(f"the CBOR message has the unknown simple value {low}")
    size = struct.calcsize(_FLOATS[low])
    return struct.unpack(_FLOATS[low], _bytes(data, at, size))[0], at + size


def _bytes(data: bytes, at: int, size: int) -> bytes:
    if at + size > len(data):
        raise ValueError("the CBOR message ends early")
    return data[at : at + size]
