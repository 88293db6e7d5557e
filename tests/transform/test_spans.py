"""Where msgpack objects end and what they are, and the headers that are written."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgpack import _cmsgpack
from msgpack.exceptions import FormatError, OutOfData, StackError
from plain_msgpack import Node, nodes, read
from transform_messages import (
    LINKS,
    array_of,
    bin_form,
    container_form,
    ext_form,
    float32,
    float64,
    map_of,
    nested,
    packed,
    raw_objects,
    str_form,
    text_of,
)

from service.transform import spans
from service.transform.refusals import InvalidMessage, Reason
from service.transform.spans import (
    INTEGERS,
    MAX_DEPTH,
    NUMBERS,
    NUMBERS_AND_ARRAYS,
    NUMBERS_AND_ARRAYS_BUT_FLOAT64,
    WIDTH,
    array_header,
    bin_header,
    check_whole,
    container,
    entries,
    find_extension,
    is_run,
    map_header,
    nests_deeper,
    run_end,
    scalars,
    sized_payload,
    str_object,
    text,
    text_or_bin,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


def refusal(data: bytes) -> InvalidMessage:
    with pytest.raises(InvalidMessage) as caught:
        check_whole(data)
    return caught.value


def told(data: bytes) -> tuple[Reason, int | None]:
    """The reason and the place for which these bytes are no message."""
    found = refusal(data)
    return found.reason, found.at


# The parser


def test_the_parser_is_the_compiled_one() -> None:
    """The one in Python keeps no stack of fixed size, and takes a hundred times as long."""
    assert vars(spans)["Unpacker"] is _cmsgpack.Unpacker


@pytest.mark.parametrize("kind", LINKS)
@pytest.mark.parametrize("innermost", [b"\x90", b"\x80", b"\x91\xc0"], ids=["array", "map", "full"])
def test_the_parser_bears_1024_containers_and_no_more(kind: str, innermost: bytes) -> None:
    """All that counts depth rests on this number: a msgpack that has another must not go unseen."""
    for depth, enough in ((1024, True), (1025, False)):
        unpacker = msgpack.Unpacker()
        unpacker.feed(nested(depth, kind, innermost))
        if enough:
            unpacker.skip()
            continue
        with pytest.raises(StackError):
            unpacker.skip()


# Whole messages


@given(value=raw_objects(), tail=st.binary(min_size=1, max_size=9))
def test_any_object_alone_is_whole_and_its_end_is_found(value: bytes, tail: bytes) -> None:
    """Whatever follows it, the byte that msgpack never uses included, is only told to trail."""
    check_whole(value)
    assert told(value + tail) == (Reason.TRAILING_BYTES, len(value))


@given(value=raw_objects())
def test_an_object_cut_anywhere_is_malformed_at_its_end(value: bytes) -> None:
    """No part of an object is an object."""
    for length in range(len(value)):
        assert told(value[:length]) == (Reason.MALFORMED_MSGPACK, length)


@given(before=st.lists(raw_objects(), max_size=4), after=st.lists(raw_objects(), max_size=2))
def test_the_byte_that_msgpack_never_uses_is_found_where_it_stands(before: list[bytes], after: list[bytes]) -> None:
    """As an element, a key or a value, after any objects whose payload may hold the same byte."""
    pairs = [(value, value) for value in before]
    for prefix, message in (
        (1 + len(b"".join(before)), array_of(*before, b"\xc1", *after)),
        (1 + 2 * len(b"".join(before)), map_of(*pairs, (b"\xc1", b"\x01"))),
        (2 + 2 * len(b"".join(before)), map_of(*pairs, (b"\x01", b"\xc1"))),
        (3, b"\x91\x81\xc0\xc1"),
        (0, b"\xc1"),
    ):
        assert told(message) == (Reason.MALFORMED_MSGPACK, prefix)


@pytest.mark.parametrize(
    "tag", [b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9"], ids=["array", "map", "str", "bin", "ext"]
)
@pytest.mark.parametrize("around", [0, 3, 70])
def test_a_claim_of_four_thousand_million_entries_is_malformed(tag: bytes, around: int) -> None:
    """So many objects or bytes are missing at the end; nothing is reserved for them."""
    message = b"\x91" * around + tag + b"\xff" * 4 + b"\xc0" * 100
    assert told(message) == (Reason.MALFORMED_MSGPACK, len(message))


# Depth


def alternating(depth: int, innermost: bytes) -> bytes:
    """Containers of every kind in turns."""
    message = innermost
    for opening, closing in (list(LINKS.values()) * depth)[: depth - 1]:
        message = opening + message + closing
    return message


@pytest.mark.parametrize("innermost", [b"\x90", b"\x80", b"\x91\xc0", b"\xdd\0\0\0\0", b"\x82\1\2\3\4"], ids=bytes.hex)
@pytest.mark.parametrize("kind", [*LINKS, "alternating"])
def test_sixty_four_levels_are_borne_and_sixty_five_are_not(kind: str, innermost: bytes) -> None:
    """Every container counts, the empty one at the bottom and one that is a key too."""
    whole, deep = (
        alternating(depth, innermost) if kind == "alternating" else nested(depth, kind, innermost)
        for depth in (MAX_DEPTH, MAX_DEPTH + 1)
    )
    check_whole(whole)
    assert refusal(deep).reason is Reason.TOO_DEEP
    # Its neighbours add nothing to its depth, nor do they hide it.
    siblings = [nested(MAX_DEPTH - 1)] * 20
    check_whole(array_of(*siblings, whole[1:] if kind == "array" else b"\xc0", *siblings))
    assert refusal(array_of(*siblings, whole, *siblings)).reason is Reason.TOO_DEEP


@pytest.mark.parametrize("kind", LINKS)
@pytest.mark.parametrize("depth", [65, 1024, 1025, 20_000])
def test_a_deep_message_that_is_malformed_as_well_is_malformed(kind: str, depth: int) -> None:
    """Cut short, or with the byte that msgpack never uses, behind or below the level that is too deep."""
    deep = nested(depth, kind)
    assert told(deep[:-1]) == (Reason.MALFORMED_MSGPACK, len(deep) - 1)
    assert told(b"\x92" + deep + b"\xc1") == (Reason.MALFORMED_MSGPACK, len(deep) + 1)
    below = nested(depth, kind, b"\xc1")
    assert told(below) == (Reason.MALFORMED_MSGPACK, (depth - 1) * len(LINKS[kind][0]))


@pytest.mark.parametrize("kind", LINKS)
@pytest.mark.parametrize("depth", [65, 1024, 1025, 20_000])
def test_a_deep_message_that_has_a_tail_as_well_has_trailing_bytes(kind: str, depth: int) -> None:
    """The end of the deep object is found, however deep it is; what trails may be anything."""
    deep = nested(depth, kind)
    for tail in (b"\xc0", b"\xc1", deep):
        assert told(deep + tail) == (Reason.TRAILING_BYTES, len(deep))
    assert refusal(deep).reason is Reason.TOO_DEEP


@given(value=raw_objects())
def test_the_end_of_a_deep_object_is_found_behind_objects_of_every_form(value: bytes) -> None:
    """Beyond the parser's depth the objects are counted here, whatever form they have, and cut wherever."""
    deep = array_of(nested(100), value, value)
    assert refusal(deep).reason is Reason.TOO_DEEP
    assert told(deep + b"\xc0") == (Reason.TRAILING_BYTES, len(deep))
    for length in range(len(deep) - len(value), len(deep)):
        found, _ = told(deep[:length])
        assert found is Reason.MALFORMED_MSGPACK


def deepest(node: Node) -> int:
    """How many containers nest in each other."""
    return (node.kind in {"array", "map"}) + max(map(deepest, node.children), default=0)


@given(value=raw_objects(), depth=st.integers(0, 6), tail=st.binary(max_size=4))
def test_an_object_nests_deeper_than_a_depth_if_its_containers_do(value: bytes, depth: int, tail: bytes) -> None:
    """What stands behind the object does not matter."""
    assert nests_deeper(value + tail, depth) is (deepest(read(value)) > depth)


def test_the_depth_of_an_object_that_is_none_is_not_told() -> None:
    """It is for well-formed messages, and says so."""
    with pytest.raises(OutOfData):
        nests_deeper(b"\x91", 4)
    with pytest.raises(FormatError):
        nests_deeper(b"\x91\xc1", 4)


# Parts


@given(
    pairs=st.lists(st.tuples(raw_objects(), raw_objects()), max_size=6),
    form=st.integers(0, 2),
    before=st.binary(max_size=9),
    after=st.binary(max_size=9),
)
def test_the_entries_of_a_map_are_where_they_were_put(
    pairs: list[tuple[bytes, bytes]], form: int, before: bytes, after: bytes
) -> None:
    """In order, each with its key and value, anywhere in a message."""
    data = before + map_of(*pairs, form=form) + after
    found = list(entries(data, len(before)))
    assert [(data[key:value], data[value:end]) for key, value, end in found] == pairs
    assert all(one.end == other.key for one, other in pairwise(found))


@given(values=st.lists(raw_objects(), max_size=4), before=st.binary(max_size=9), after=st.binary(max_size=9))
def test_scalars_are_all_objects_that_hold_no_others(values: list[bytes], before: bytes, after: bytes) -> None:
    """With the places of their tags and payloads, those inside containers too, in order."""
    data = before + b"".join(values) + after
    expected = []
    start = len(before)
    for value in values:
        leaves = [node for node in nodes(read(value)) if node.kind not in {"array", "map"}]
        expected += [(start + node.start, start + node.stop) for node in sorted(leaves, key=lambda node: node.start)]
        start += len(value)
    found = list(scalars(data, len(before), start))
    assert [(tag, stop) for tag, _, stop in found] == expected
    for tag, begin, stop in found:
        assert tag < begin <= stop
        if data[tag] not in {0xC7, 0xC8, 0xC9, *range(0xD4, 0xD9)}:
            payload = read(data[tag:stop]).payload
            assert data[begin:stop] == (data[tag + 1 : stop] if payload is None else payload)


def test_the_payload_of_an_extension_begins_after_its_type() -> None:
    """The type tells what the payload means, so it is no part of it."""
    assert sized_payload(b"\xc7\x02\x07xy", 0) == (3, 5)


# Extensions


@given(values=st.lists(raw_objects(), max_size=4), before=st.binary(max_size=9), after=st.binary(max_size=9))
def test_the_first_extension_in_objects_is_found_wherever_it_nests(
    values: list[bytes], before: bytes, after: bytes
) -> None:
    """In elements, keys and values; what stands outside of the objects does not count."""
    data = before + b"".join(values) + after
    start = len(before)
    expected: list[int] = []
    for value in values:
        expected += [start + node.start for node in nodes(read(value)) if node.kind == "ext"]
        start += len(value)
    assert find_extension(data, len(before), start) == min(expected, default=None)


@pytest.mark.parametrize(
    "value",
    [
        *(str_form(ext_form(1, b"abcd"), form) for form in range(4)),
        *(bin_form(ext_form(1, b"abcd"), form) for form in range(1, 4)),
        *(b"\xca\xd4\xd4\xd4\xd4", b"\xcb" + b"\xc7" * 8, b"\xcf" + b"\xd8" * 8, b"\xd3" + b"\xc9" * 8, b"\xcc\xd4"),
        *(
            b"\xcd\xd4\xd4",
            b"\xce" + b"\xc8" * 4,
            b"\xd0\xd5",
            b"\xd1\xd6\xd6",
            b"\xd2" + b"\xd7" * 4,
            str_form(b"\xd4"),
        ),
        *(b"\xdc\0\xd4" + b"\xd0\xd4" * 0xD4, b"\xde\0\xd4" + b"\xd0\xd4" * 2 * 0xD4),
        *(b"\xdd\0\0\0\xd4" + b"\xc0" * 0xD4, b"\xdf\0\0\0\xd4" + b"\xa0\xc2" * 0xD4),
    ],
    ids=lambda value: value[:6].hex(),
)
def test_payloads_and_lengths_that_look_like_extensions_are_none(value: bytes) -> None:
    """The tags of extensions count where an object begins and nowhere else; behind them, a real one is found."""
    for data in (value, array_of(value, value), map_of((value, value))):
        check_whole(data)
        assert find_extension(data, 0, len(data)) is None
        assert find_extension(data + b"\xd4\1\2", 0, len(data) + 3) == len(data)


# Runs

INTEGER_KINDS: Final = frozenset({"int"})
RUNS: Final = {
    "integers": (INTEGERS, INTEGER_KINDS),
    "numbers": (NUMBERS, INTEGER_KINDS | {"float32", "float64"}),
    "numbers and arrays": (NUMBERS_AND_ARRAYS, INTEGER_KINDS | {"float32", "float64", "array"}),
    "numbers and arrays but float64": (NUMBERS_AND_ARRAYS_BUT_FLOAT64, INTEGER_KINDS | {"float32", "array"}),
}
NUMBER_FORMS: Final = [
    *(bytes([tag]) + b"\xca" * size for tag, size in zip(range(0xCC, 0xD4), (1, 2, 4, 8) * 2, strict=True)),
    *(b"\0", b"\x7f", b"\xe0", b"\xff", float32(1.5), b"\xca" + b"\x0a" * 4, float64(-2.5), b"\xcb" + b"\x0a" * 8),
    *(array_of(b"\1", b"\x90"), b"\xdc\0\1\2", b"\xdd\0\0\0\1\xd0\x80", container_form("array", 0, 2)),
]


@pytest.mark.parametrize("name", RUNS)
@given(values=st.lists(st.sampled_from(NUMBER_FORMS) | raw_objects(), max_size=8), before=st.binary(max_size=3))
def test_a_run_ends_where_the_first_object_of_another_kind_begins(
    name: str, values: Sequence[bytes], before: bytes
) -> None:
    """Objects are taken whole, and containers with what is in them."""
    kinds, members = RUNS[name]
    data = before + b"".join(values)
    expected = start = len(before)
    for value in values:
        inside = sorted(nodes(read(value)), key=lambda node: node.start)
        others = [start + node.start for node in inside if node.kind not in members]
        expected = min(others, default=start + len(value))
        start += len(value)
        if others:
            break
    assert run_end(kinds, data, len(before), len(data)) == expected
    assert is_run(kinds, data, len(before), len(data)) is (expected == len(data))


@pytest.mark.parametrize("form", NUMBER_FORMS, ids=bytes.hex)
def test_a_run_does_not_reach_over_its_end(form: bytes) -> None:
    """The last object belongs to it only if it ends there, whatever follows."""
    data = form + b"\1" * 9
    for end in range(1, len(form)):
        assert run_end(NUMBERS_AND_ARRAYS, data, 0, end) <= end
    assert run_end(NUMBERS_AND_ARRAYS, data, 0, len(form)) == len(form)


def test_a_run_of_a_million_objects_needs_no_stack() -> None:
    """The patterns never give back what they took, so that they remember nothing of it."""
    data = b"\xe0\xd0\x80\xca\0\0\0\0" * 350_000
    assert is_run(NUMBERS, data, 0, len(data))
    assert run_end(NUMBERS, data + b"\xc0", 0, len(data) + 1) == len(data)


# Headers and text


def test_the_width_of_every_tag_is_what_msgpack_reads() -> None:
    """Where the size follows from the tag; all other tags are known by name."""
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
    """And text or bin that of either."""
    assert text(value, 0, len(value)) == text_of(value)
    assert text_or_bin(value, 0, len(value)) == read(value).payload


@pytest.mark.parametrize("header", [array_header, map_header])
@pytest.mark.parametrize("count", [0, 1, 15, 16, 255, 65_535, 65_536, 2**32 - 1])
def test_container_headers_are_written_in_the_shortest_form_and_read_back(header: object, count: int) -> None:
    """For every length that msgpack knows."""
    kind = "array" if header is array_header else "map"
    written = array_header(count) if kind == "array" else map_header(count)
    assert written == container_form(kind, count)
    assert container(written, 0) == (kind, count, len(written))


@pytest.mark.parametrize("count", [0, 15, 16, 65_535, 65_536])
def test_container_headers_are_those_of_msgpack(count: int) -> None:
    """Written by its own packer."""
    packer = msgpack.Packer(autoreset=False)
    packer.pack_array_header(count)
    packer.pack_map_header(count)
    assert array_header(count) + map_header(count) == packer.bytes()


@pytest.mark.parametrize("length", [0, 1, 255, 256, 65_535, 65_536])
def test_bin_headers_are_those_of_msgpack(length: int) -> None:
    """Written by its own packer."""
    assert bin_header(length) + bytes(length) == packed(bytes(length))


def test_a_bin_that_msgpack_cannot_hold_has_no_header() -> None:
    """Four GiB are beyond its lengths."""
    with pytest.raises(OverflowError):
        bin_header(1 << 32)


@pytest.mark.parametrize("length", [0, 31, 32, 255, 256, 65_535])
def test_strs_are_those_of_msgpack(length: int) -> None:
    """Written by its own packer."""
    assert str_object(b"x" * length) == packed("x" * length)


@pytest.mark.parametrize("value", [b"\x01", b"\xc0", b"\xca\0\0\0\0", b"\xa1x", b"\xc4\0", b"\xd4\0\0"])
def test_scalars_are_no_containers(value: bytes) -> None:
    """They have no header to read."""
    assert container(value, 0) is None


@pytest.mark.parametrize("value", [b"\xd9", b"\xda\0", b"\xdb\0\0\0", b"\xdc\0", b"\xde\0", b"\xc9\0\0\0"])
def test_a_header_cut_short_below_any_depth_is_malformed_with_its_place(value: bytes) -> None:
    """The place in words is the header's, the byte that shows it the end of the message."""
    found = refusal(b"\x91" * 100 + value)
    assert (found.reason, found.at) == (Reason.MALFORMED_MSGPACK, 100 + len(value))
    assert re.search(r"at byte 100$", found.detail)
