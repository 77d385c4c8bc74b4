"""What a ROS message says, what refuses it, and what its stamp tells of its age."""

from __future__ import annotations

import base64
import io
import math
import struct
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from ros_layer import to_cbor
from vla_runtime.robots.ros_cbor import decode_cbor
from vla_runtime.robots.ros_messages import (
    COMPRESSED_IMAGE,
    RAW_IMAGE,
    StampClock,
    image_of,
    joint_columns,
    stamp_s,
    trajectory,
)

PIXELS = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def test_a_delay_shows_as_age_though_clocks_differ() -> None:
    """The robot's clock is 1000 s ahead; the least delay counts as none."""
    clock = StampClock()
    assert clock.measured_s(1000.0, 0.030) == pytest.approx(0.030)
    assert clock.measured_s(1000.1, 0.105) == pytest.approx(0.105)  # less delay than before
    # Half a second late: arrived at 0.7, measured at 0.205.
    assert clock.measured_s(1000.2, 0.705) == pytest.approx(0.205, abs=1e-3)
    assert clock.stamp_s(0.205) == pytest.approx(1000.2, abs=1e-3)


def test_a_clock_that_runs_slower_does_not_age_its_messages() -> None:
    """100 ppm for an hour is 360 ms; the estimate follows up to 200 ppm."""
    clock = StampClock()
    ages = [k * 0.1 - clock.measured_s(k * 0.1 * (1 - 1e-4), k * 0.1) for k in range(1, 36_000)]
    assert max(ages) < 1e-6


@pytest.mark.parametrize(("stamp", "text"), [(5.0, "repeats the stamp"), (4.0, "back by 1.000 s")])
def test_a_stamp_has_to_be_newer(stamp: float, text: str) -> None:
    """The same one is the same measurement; an earlier one is a clock that was set."""
    clock = StampClock()
    clock.measured_s(5.0, 0.0)
    with pytest.raises(ValueError, match=text):
        clock.measured_s(stamp, 0.1)
    clock.measured_s(5.1, 0.2)


def test_stamps_of_both_versions() -> None:
    """ROS 1 and ROS 2 have other names for the parts."""
    assert stamp_s({"header": {"stamp": {"secs": 3, "nsecs": 500_000_000}}}) == 3.5
    assert stamp_s({"header": {"stamp": {"sec": 3, "nanosec": 500_000_000}}}) == 3.5


@pytest.mark.parametrize("header", [{}, {"stamp": 3}, {"stamp": {}}, {"stamp": {"sec": 1.5}}, None])
def test_what_is_no_stamp(header: object) -> None:
    """Named, instead of counted as 0."""
    with pytest.raises(ValueError, match=r"stamp|header"):
        stamp_s({"header": header})


def test_joints_by_name() -> None:
    """An empty field is a field that the driver does not measure."""
    message = {"name": ["a", "b"], "position": [1.0, None], "velocity": [], "effort": [3, 4]}
    columns = joint_columns(message)
    assert columns["a"] == {"position": 1.0, "effort": 3.0}
    assert math.isnan(columns["b"]["position"])


def as_raw(encoding: str, padding: int = 0) -> dict:
    """A sensor_msgs/Image of PIXELS."""
    alpha = np.full((4, 5, 1), 255, np.uint8)
    rows = {
        "rgb8": PIXELS,
        "bgr8": PIXELS[..., ::-1],
        "rgba8": np.concatenate([PIXELS, alpha], axis=2),
        "bgra8": np.concatenate([PIXELS[..., ::-1], alpha], axis=2),
        "mono8": PIXELS[..., :1],
    }[encoding].reshape(4, -1)
    data = np.pad(rows, ((0, 0), (0, padding))).tobytes()
    step = rows.shape[1] + padding
    return {"height": 4, "width": 5, "encoding": encoding, "step": step, "data": data}


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8"])
@pytest.mark.parametrize("padding", [0, 3])
def test_raw_images(encoding: str, padding: int) -> None:
    """Channels in any order, rows with padding, in base64 or as bytes."""
    message = as_raw(encoding, padding)
    np.testing.assert_array_equal(image_of(message, RAW_IMAGE, 4, 5), PIXELS)
    message["data"] = base64.b64encode(message["data"]).decode()
    np.testing.assert_array_equal(image_of(message, RAW_IMAGE, 4, 5), PIXELS)


def test_a_grey_image_has_three_equal_channels() -> None:
    """The contract's images are RGB."""
    image = image_of(as_raw("mono8"), RAW_IMAGE, 4, 5)
    np.testing.assert_array_equal(image, np.repeat(PIXELS[..., :1], 3, axis=2))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"encoding": "16UC1"}, "none of"),
        ({"step": 3}, "rows of 3"),
        ({"step": None}, "rows of None"),
        ({"data": b"short"}, "5 bytes"),
        ({"data": [1, 2]}, "are a list"),
        ({"data": "?"}, "base64"),
        ({"width": 4}, "4 x 4 pixels, the contract says 5 x 4"),
    ],
)
def test_bad_raw_images(change: dict, text: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(ValueError, match=text):
        image_of(as_raw("rgb8") | change, RAW_IMAGE, 4, 5)


def test_a_png_is_a_compressed_image_too() -> None:
    """Compressed images are JPEG or PNG; a huge one is refused by its size, before decoding."""
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG")
    message = {"format": "png", "data": base64.b64encode(file.getvalue()).decode()}
    np.testing.assert_array_equal(image_of(message, COMPRESSED_IMAGE, 4, 5), PIXELS)
    file = io.BytesIO()
    Image.new("1", (2000, 2000)).save(file, "PNG")
    with pytest.raises(ValueError, match="2000 x 2000"):
        image_of({"data": file.getvalue()}, COMPRESSED_IMAGE, 4, 5)


def test_a_trajectory_has_whole_nanoseconds() -> None:
    """0.9999999999 s is one second, not 1,000,000,000 nanoseconds."""
    message = trajectory(["a"], [0.5], 0.9999999999, 0.04)
    assert message["points"][0]["time_from_start"] == {"secs": 1, "nsecs": 0}
    assert message["header"]["stamp"] == {"secs": 0, "nsecs": 40_000_000}


@settings(deadline=None, max_examples=50)
@given(JSON)
def test_any_json_is_a_message_or_a_clear_refusal(value: object) -> None:
    """Only what a receiver catches leaves the decoders."""
    for decode in (
        joint_columns,
        stamp_s,
        lambda message: image_of(message, RAW_IMAGE, 4, 5),
        lambda message: joint_columns({"name": [], "position": message}),
        lambda message: stamp_s({"header": {"stamp": message}}),
        lambda message: image_of(as_raw("rgb8") | {"step": message}, RAW_IMAGE, 4, 5),
    ):
        with suppress(ValueError, TypeError, OverflowError):
            decode(value)  # pyright: ignore[reportArgumentType]


@settings(deadline=None, max_examples=50)
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**64), 2**64 - 1)
        | st.floats(allow_nan=False)
        | st.text()
        | st.binary(),
        lambda inner: (
            st.lists(inner, max_size=30).filter(lambda v: not any(type(e) is float for e in v))
            | st.dictionaries(st.text(), inner)
        ),
        max_leaves=20,
    )
)
def test_cbor_round_trip(value: object) -> None:
    """What the bridge packs comes out again, lengths of one to eight bytes included."""
    assert decode_cbor(to_cbor(value)) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        # RFC 8949, appendix A.
        ("1903e8", 1000),
        ("1bffffffffffffffff", 2**64 - 1),
        ("3903e7", -1000),
        ("f93e00", 1.5),
        ("fa47c35000", 100000.0),
        ("fb3ff199999999999a", 1.1),
        ("f7", None),
        ("62c3bc", "ü"),
        ("a26161016162820203", {"a": 1, "b": [2, 3]}),
    ],
)
def test_cbor_of_the_standard(text: str, value: object) -> None:
    """The examples of RFC 8949."""
    assert decode_cbor(bytes.fromhex(text)) == value


@pytest.mark.parametrize(("tag", "form"), [(69, "H"), (77, "h"), (85, "f"), (86, "d"), (79, "q")])
def test_cbor_typed_arrays(tag: int, form: str) -> None:
    """RFC 8746, little-endian."""
    content = struct.pack(f"<3{form}", 1, 2, 3)
    value = decode_cbor(bytes([0xD8, tag, 0x58, len(content)]) + content)
    np.testing.assert_array_equal(value, [1, 2, 3])


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "ends early"),
        (b"\x44ab", "ends early"),
        (b"\x9b" + b"\xff" * 8, "ends early"),
        (b"\x5f\x41a\xff", "indefinite"),
        (b"\x00\x00", "1 bytes follow"),
        (b"\xc0\x61a", "unknown tag 0"),
        (b"\xe0", "unknown simple value"),
        (b"\x81" * 100 + b"\x00", "nests too deep"),
    ],
)
def test_bad_cbor(data: bytes, text: str) -> None:
    """Refused without reserving what a false length promises."""
    with pytest.raises(ValueError, match=text):
        decode_cbor(data)


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=64))
def test_any_bytes_are_cbor_or_a_clear_refusal(data: bytes) -> None:
    """Only what a receiver catches leaves the decoder."""
    with suppress(ValueError, TypeError):
        decode_cbor(data)
