"""Messages on a stream."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mathmill.sandbox.frames import HEADER, VERSION, FrameError, FrameReader, encode

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
MESSAGES = st.lists(st.dictionaries(st.text(), VALUES, max_size=4), max_size=4)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({min(place, len(data)) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(ends)]


@settings(max_examples=60)
@given(MESSAGES, st.lists(st.integers(0, 500), max_size=8))
def test_messages_come_out_as_they_went_in_however_the_stream_is_cut(messages, places):
    reader = FrameReader()
    data = b"".join(map(encode, messages))
    assert [message for part in cut(data, places) for message in reader.feed(part)] == messages


@settings(max_examples=60)
@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=5))
def test_junk_raises_a_frame_error_or_waits_and_never_anything_else(junk, places):
    reader = FrameReader(limit=1000)
    for part in cut(junk, places):
        try:
            reader.feed(part)
        except FrameError:
            with pytest.raises(FrameError):
                reader.feed(encode({}))
            return


@settings(max_examples=60)
@given(st.binary(max_size=200))
def test_a_body_that_is_no_json_object_is_refused(body):
    try:
        wanted = json.loads(body.decode(), parse_constant=lambda name: 1 / 0)
    except Exception:
        wanted = None
    reader = FrameReader()
    frame = HEADER.pack(VERSION, len(body)) + body
    if isinstance(wanted, dict):
        assert reader.feed(frame) == [wanted]
    else:
        with pytest.raises(FrameError):
            reader.feed(frame)


@pytest.mark.parametrize(
    "frame",
    [
        b"\x02",
        HEADER.pack(VERSION, 1001),
        HEADER.pack(VERSION, 2**32 - 1),
        HEADER.pack(VERSION, 6) + b'{"a":1',
        HEADER.pack(VERSION, 900) + b"[" * 900,
        HEADER.pack(VERSION, 9) + b'{"a":NaN}',
        HEADER.pack(VERSION, 2) + b"\xff\xff",
        HEADER.pack(VERSION, 4) + b"null",
    ],
)
def test_a_hostile_frame_is_refused_as_soon_as_it_shows(frame):
    with pytest.raises(FrameError):
        FrameReader(limit=1000).feed(frame)


def test_deep_nesting_is_refused():
    body = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    with pytest.raises(FrameError):
        FrameReader().feed(HEADER.pack(VERSION, len(body)) + body)
