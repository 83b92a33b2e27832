"""A JPEG's header in Python: what the graph of an exported model makes of the same bytes."""

import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kerasmtl.data.image_files import jpeg_header
from kerasmtl.data.images import HEAD, look_at, orientation_of_jpeg


def segment(payload, kind=0xE1):
    return bytes([0xFF, kind]) + struct.pack(">H", len(payload) + 2) + payload


def exif(orientation, order, kind, before):
    value = struct.pack(order + ("H" if kind == 3 else "I"), orientation).ljust(4, b"\0")
    entries = [struct.pack(order + "HHII", 0x0100 + n, 4, 1, 1) for n in range(before)]
    entries.append(struct.pack(order + "HHI", 0x0112, kind, 1) + value)
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HI", 42, 8)
    return b"Exif\0\0" + head + struct.pack(order + "H", len(entries)) + b"".join(entries)


def jpeg(*segments, **options):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype="uint8")
    Image.fromarray(pixels).save(buffer, "JPEG", **options)
    data = buffer.getvalue()
    return data[:2] + b"".join(segments) + data[2:]


FILES = [
    jpeg(),
    jpeg(progressive=True, subsampling=0),
    *(jpeg(segment(exif(n, "<>"[n % 2], 3 + n // 2 % 2, n % 3))) for n in range(1, 10)),
    jpeg(segment(b"a comment", 0xFE), segment(exif(6, ">", 3, 2)), segment(exif(3, "<", 3, 0))),
    jpeg(segment(b"Exif\0\0")),
    jpeg(segment(b"http://ns.adobe.com/xap/1.0/\0<x/>"), segment(b"Adobe\0\x64\0\0\0\0\0", 0xEE)),
]


@pytest.fixture(scope="module")
def by_graph():
    """Where the segments end, and the orientation."""
    spec = tf.TensorSpec((None,), tf.uint8)
    return tf.function(orientation_of_jpeg, input_signature=[spec], autograph=False)


def damaged(data, rng):
    """With some bytes of the header changed, and sometimes cut short or doubled in part."""
    raw = np.frombuffer(data, "uint8").copy()
    raw[rng.integers(2, 120, rng.integers(1, 5))] = rng.choice([0, 1, 8, 0x2A, 0xE1, 0xFF], 1)
    at = rng.integers(20, 140)
    change = rng.integers(0, 4)
    if change == 0:
        return raw[: at + rng.integers(0, 40)].tobytes()
    return raw.tobytes() if change > 1 else raw[:at].tobytes() + raw[at - 18 :].tobytes()


def same(data, by_graph):
    start, orientation = by_graph(np.frombuffer(data[:HEAD], "uint8"))
    found = jpeg_header(data)
    assert found.orientation == int(orientation), data[:200]
    assert found.whole == (b"\xff\xd9" in data[int(start) :]), data[:200]
    return found


@pytest.mark.parametrize("data", FILES)
def test_what_the_header_says_is_what_the_graph_and_pillow_say(by_graph, data):
    found = same(data, by_graph)
    assert found.whole and found.sides == (24, 32)
    look = look_at(tf.constant(data))
    assert (look.reason, look.orientation) == ("", found.orientation)


def test_all_orientations_are_found():
    assert [jpeg_header(data).orientation for data in FILES[2:11]] == [1, 2, 3, 4, 5, 6, 7, 8, 1]


def test_damaged_headers_mean_the_same_in_both(by_graph):
    rng = np.random.default_rng(0)
    found = [same(damaged(data, rng), by_graph) for data in FILES for _ in range(150)]
    assert len({header.orientation for header in found}) == 8
    assert {header.whole for header in found} == {True, False}
    assert any(header.sides is None for header in found)


def test_no_frame_is_seen_in_the_middle_of_a_segment():
    """The orientation is looked for in the first 256 KB; there, these bytes look like a frame."""
    frame = b"\xff\xc0\0\x11\x08\x03\xe7\x03\xe7"
    late = segment(b"x" * 65_000, 0xED)
    start = 2 + 4 * len(late)
    last = segment(b"x" * (HEAD - start - 4) + frame + b"x" * 99, 0xED)
    data = jpeg(*[late] * 4, last)
    assert data[HEAD:].startswith(frame) and jpeg_header(data).sides == (24, 32)


@pytest.mark.parametrize("kind", [0x00, 0x01, 0xD0, 0xD8, 0xD9, 0xDA, 0xFF])
def test_markers_without_a_length_are_left_to_pillow(kind):
    data = jpeg()
    table = data.index(b"\xff\xdb")
    assert jpeg_header(data[:table] + bytes([0xFF, kind]) + data[table:]).sides is None


def test_what_comes_late_is_not_looked_for(by_graph):
    late = segment(b"x" * 60_000, 0xED)
    assert same(jpeg(*[late] * 4, segment(exif(6, "<", 3, 0))), by_graph).orientation == 6
    assert same(jpeg(*[late] * 5, segment(exif(6, "<", 3, 0))), by_graph).orientation == 1
