"""Where msgpack objects end: the walker, its run of equal widths and the headers it writes."""

from __future__ import annotations

from time import perf_counter

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transform_messages import array_of, container_form, raw_objects, str_form, text_of

from service.transform.refusals import InvalidMessage, Reason
from service.transform.spans import (
    WIDTH,
    Walker,
    bin_header,
    container,
    container_header,
    run_length,
    sized_payload,
    str_object,
    text,
)


@given(before=st.binary(max_size=9), value=raw_objects(), after=st.binary(max_size=9))
def test_the_walker_finds_the_end_of_any_object(before: bytes, value: bytes, after: bytes) -> None:
    assert Walker(before + value + after).skip(len(before), 0) == len(before) + len(value)


@given(value=raw_objects())
def test_looking_at_tags_or_payloads_does_not_change_where_an_object_ends(value: bytes) -> None:
    tags: set[int] = set()
    payloads: list[tuple[int, int, int]] = []
    assert Walker(value).skip(0, 0, tags=tags) == len(value)
    assert Walker(value).skip(0, 0, payloads=payloads) == len(value)
    assert value[0] in tags
    # Scalars lie in order, none over another, inside the object.
    assert payloads == sorted(payloads)
    edges = [0, *(edge for span in payloads for edge in span), len(value)]
    assert edges == sorted(edges)


@given(value=raw_objects())
def test_an_object_cut_anywhere_is_malformed(value: bytes) -> None:
    for length in range(len(value)):
        with pytest.raises(InvalidMessage) as caught:
            Walker(value[:length]).skip(0, 0)
        assert caught.value.reason is Reason.MALFORMED_MSGPACK


def test_tags_of_every_object_inside_are_collected() -> None:
    tags: set[int] = set()
    Walker(b"\x93\x01\xc0\x92\xca\0\0\0\0\x81\xa1a\xd4\x01\x02").skip(0, 0, tags=tags)
    assert tags == {0x93, 0x01, 0xC0, 0x92, 0xCA, 0x81, 0xA1, 0xD4}


def test_payloads_of_scalars_are_collected_in_order() -> None:
    payloads: list[tuple[int, int, int]] = []
    Walker(b"\x94\x05\xa2hi\xc4\x01!\xc7\x02\x07xy").skip(0, 0, payloads=payloads)
    assert payloads == [(1, 2, 2), (2, 3, 5), (5, 7, 8), (8, 11, 13)]


@pytest.mark.parametrize(
    ("value", "depth"),
    [
        (b"\x01", 0),
        (b"\x90", 1),
        (b"\x80", 1),
        (b"\x91\x91\x90", 3),
        (b"\x92\x01\x81\x01\x90", 3),
        (b"\x92\x91\x90\x90", 3),
    ],
)
def test_the_deepest_nesting_is_counted_in_containers(value: bytes, depth: int) -> None:
    walker = Walker(value)
    walker.skip(0, 0)
    assert walker.deepest == depth


def test_nesting_beyond_any_stack_is_walked_quickly() -> None:
    value = b"\x91" * 100_000 + b"\xc0"
    walker, begun = Walker(value), perf_counter()
    assert walker.skip(0, 0) == len(value)
    assert walker.deepest == 100_000
    assert perf_counter() - begun < 5


@given(tags=st.binary(max_size=200), width=st.sampled_from([1, 2, 3, 5, 9]), limit=st.integers(0, 250))
def test_a_run_ends_at_the_first_object_of_another_width(tags: bytes, width: int, limit: int) -> None:
    data = b"".join(bytes([tag]) + bytes(width - 1) for tag in tags)
    expected = 0
    while expected < min(limit, len(tags)) and WIDTH[tags[expected]] == width:
        expected += 1
    assert run_length(data, 0, width, limit) == expected


def test_a_long_run_is_counted_to_its_last_object() -> None:
    """The window of the run doubles: its edges are where a count would slip."""
    for count in (31, 32, 33, 95, 96, 97, 10_000):
        data = b"\xca\0\0\0\0" * count + b"\xcb"
        assert run_length(data, 0, 5, count + 1) == count
        assert run_length(data, 0, 5, count - 1) == count - 1


def test_the_width_of_every_tag_is_what_msgpack_reads() -> None:
    for tag in range(256):
        if WIDTH[tag]:
            unpacker = msgpack.Unpacker(raw=True)
            unpacker.feed(bytes([tag]) + bytes(40))
            unpacker.skip()
            assert unpacker.tell() == WIDTH[tag]
        else:
            assert tag in {0xC1, *range(0xC4, 0xCA), *range(0xD9, 0xE0), *range(0x80, 0xA0)}


@given(value=raw_objects())
def test_text_is_the_payload_of_a_str_and_of_nothing_else(value: bytes) -> None:
    assert text(value, 0, len(value)) == text_of(value)


@pytest.mark.parametrize("kind", ["array", "map"])
@pytest.mark.parametrize("count", [0, 1, 15, 16, 255, 65_535, 65_536, 2**32 - 1])
def test_container_headers_are_written_in_the_shortest_form_and_read_back(kind: str, count: int) -> None:
    header = container_header(kind, count)
    assert header == container_form(kind, count)
    assert container(header, 0) == (kind, count, len(header))


@pytest.mark.parametrize("count", [0, 15, 16, 65_535, 65_536])
def test_container_headers_are_those_of_msgpack(count: int) -> None:
    packer = msgpack.Packer(autoreset=False)
    packer.pack_array_header(count)
    packer.pack_map_header(count)
    assert container_header("array", count) + container_header("map", count) == packer.bytes()


@pytest.mark.parametrize("length", [0, 1, 255, 256, 65_535, 65_536])
def test_bin_headers_are_those_of_msgpack(length: int) -> None:
    assert bin_header(length) + bytes(length) == msgpack.packb(bytes(length))


def test_a_bin_that_msgpack_cannot_hold_has_no_header() -> None:
    with pytest.raises(OverflowError):
        bin_header(1 << 32)


@pytest.mark.parametrize("length", [0, 31, 32, 255, 256])
def test_strs_are_those_of_msgpack(length: int) -> None:
    assert str_object(b"x" * length) == msgpack.packb("x" * length)


@pytest.mark.parametrize("value", [b"\x01", b"\xc0", b"\xca\0\0\0\0", b"\xa1x", b"\xc4\0", b"\xd4\0\0"])
def test_scalars_are_no_containers(value: bytes) -> None:
    assert container(value, 0) is None


def test_the_payload_of_an_extension_begins_after_its_type() -> None:
    assert sized_payload(b"\xc7\x02\x07xy", 0) == (3, 5)


def test_the_byte_msgpack_never_uses_is_named_with_its_place() -> None:
    with pytest.raises(InvalidMessage, match="byte 1 is 0xc1"):
        Walker(array_of(b"\xc1")).skip(0, 0)


@pytest.mark.parametrize("value", [b"\xd9", b"\xda\0", b"\xdb\0\0\0", b"\xdc\0", b"\xde\0", b"\xc9\0\0\0"])
def test_a_header_cut_short_is_malformed_with_its_place(value: bytes) -> None:
    with pytest.raises(InvalidMessage, match="at byte 1") as caught:
        Walker(b"\x91" + value).skip(0, 0)
    assert caught.value.reason is Reason.MALFORMED_MSGPACK


def test_a_str_of_any_form_is_read() -> None:
    for form in range(4):
        value = str_form(b"logits", form)
        assert text(value, 0, len(value)) == b"logits"
