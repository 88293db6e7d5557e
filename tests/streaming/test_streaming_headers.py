"""Record headers: what an output inherits, and what a dead letter says of itself."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import pytest
from aiokafka import TopicPartition
from hypothesis import given
from hypothesis import strategies as st

import service
from service.streaming.headers import HeaderPolicy, without_value
from service.transform.frames import Record
from service.transform.refusals import InvalidMessage, Reason

if TYPE_CHECKING:
    from collections.abc import Sequence

Header = tuple[str, bytes | None]

PARTITION: Final = TopicPartition("logits", 2)
REFUSAL: Final = InvalidMessage(Reason.NAN, "element 3 is NaN")


def record(offset: int = 41, headers: Sequence[Header] = (), timestamp: int = 1_700_000_000_123) -> Record:
    return Record(offset, timestamp, b"k", b"v", tuple(headers))


def policy(*drop: str) -> HeaderPolicy:
    return HeaderPolicy(drop, "my-group")


def attempt_of(headers: Sequence[Header]) -> bytes | None:
    """The attempt that a dead letter of a record with these headers names."""
    letter = policy().of_dead_letter(PARTITION, record(headers=headers), REFUSAL)
    (attempt,) = [value for name, value in letter if name == "softmax-error-attempt"]
    return attempt


# --- outputs ----------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.text(max_size=8), st.none() | st.binary(max_size=8)), max_size=8))
def test_headers_pass_on_unchanged_in_order_with_repeats_and_empty_values(headers: list[Header]) -> None:
    assert policy().passed_on(headers) == headers


def test_trace_context_passes_on() -> None:
    headers: list[Header] = [("traceparent", b"00-1-2-01"), ("tracestate", b"a=b")]
    assert policy("ce_*").passed_on(headers) == headers


@pytest.mark.parametrize(
    "name",
    [
        "softmax-",
        "softmax-error-reason",
        "softmax-anything",
        "__connect.errors.topic",
        "__connect.errors.",
        "softmax-\n",
    ],
)
def test_our_own_headers_never_pass_on(name: str) -> None:
    assert policy().passed_on([("a", b"1"), (name, b"x"), ("b", None)]) == [("a", b"1"), ("b", None)]


@pytest.mark.parametrize(
    "name", ["softmax", "softmaxes", "x-softmax-y", "__connectXerrors.topic", "__connect.errors", ""]
)
def test_headers_that_only_resemble_ours_pass_on(name: str) -> None:
    assert policy().passed_on([(name, b"x")]) == [(name, b"x")]


@pytest.mark.parametrize(
    ("pattern", "name", "dropped"),
    [
        ("ce_*", "ce_type", True),
        ("ce_*", "ce_", True),
        ("ce_*", "x-ce_type", False),
        ("exact", "exact", True),
        ("exact", "exactly", False),
        ("exact", "inexact", False),
        ("a.c", "abc", False),
        ("*", "anything", True),
        ("*-id", "request-id", True),
        ("v?", "v1", True),
        ("v?", "v10", False),
        ("(", "(", True),
    ],
)
def test_a_pattern_drops_the_names_that_it_matches_as_a_whole(pattern: str, name: str, dropped: bool) -> None:  # noqa: FBT001 - a column of a table
    assert policy(pattern).passed_on([(name, b"x")]) == ([] if dropped else [(name, b"x")])


def test_each_of_several_patterns_drops() -> None:
    headers: list[Header] = [("a1", b""), ("b1", b""), ("c1", b"")]
    assert policy("a*", "c*").passed_on(headers) == [("b1", b"")]


# --- dead letters -----------------------------------------------------------------------------


def test_a_dead_letter_carries_the_record_s_headers_and_then_exactly_those_documented() -> None:
    refused = record(headers=[("trace", b"1"), ("empty", None), ("trace", b"2")])
    assert policy().of_dead_letter(PARTITION, refused, REFUSAL) == [
        ("trace", b"1"),
        ("empty", None),
        ("trace", b"2"),
        ("softmax-error-reason", b"nan"),
        ("softmax-error-message", b"element 3 is NaN"),
        ("softmax-error-topic", b"logits"),
        ("softmax-error-partition", b"2"),
        ("softmax-error-offset", b"41"),
        ("softmax-error-timestamp", b"1700000000123"),
        ("softmax-error-group", b"my-group"),
        ("softmax-error-service-version", service.__version__.encode()),
        ("softmax-error-attempt", b"1"),
        ("__connect.errors.topic", b"logits"),
        ("__connect.errors.partition", b"2"),
        ("__connect.errors.offset", b"41"),
        ("__connect.errors.exception.class.name", b"nan"),
        ("__connect.errors.exception.message", b"element 3 is NaN"),
    ]


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_is_named_as_it_is_spelt(reason: Reason) -> None:
    headers = dict(policy().of_dead_letter(PARTITION, record(), InvalidMessage(reason, "")))
    assert headers["softmax-error-reason"] == reason.value.encode() == reason.name.lower().encode()


def test_a_dead_letter_keeps_the_headers_that_outputs_drop() -> None:
    letter = policy("ce_*").of_dead_letter(PARTITION, record(headers=[("ce_type", b"x")]), REFUSAL)
    assert letter[0] == ("ce_type", b"x")


def test_headers_of_an_earlier_refusal_are_replaced_not_repeated() -> None:
    first = policy().of_dead_letter(PARTITION, record(offset=1), REFUSAL)
    second = policy().of_dead_letter(
        PARTITION, record(offset=2, headers=[("a", b"1"), *without_value(first, b"v")]), REFUSAL
    )
    names = [name for name, _ in second]
    assert names == ["a", *(name for name, _ in first)]
    assert dict(second)["softmax-error-offset"] == b"2"


def test_text_of_any_script_is_utf_8() -> None:
    headers = dict(
        HeaderPolicy((), "größe-数").of_dead_letter(PARTITION, record(), InvalidMessage(Reason.NAN, "naïve"))
    )
    assert headers["softmax-error-group"] == "größe-数".encode()
    assert headers["softmax-error-message"] == "naïve".encode()


def test_the_attempt_counts_up_with_every_replay() -> None:
    headers: list[Header] = []
    for expected in (b"1", b"2", b"3"):
        headers = policy().of_dead_letter(PARTITION, record(headers=headers), REFUSAL)
        assert dict(headers)["softmax-error-attempt"] == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([b"7"], b"8"),
        ([b"2", b"9", b"4"], b"10"),
        ([None], b"1"),
        ([b""], b"1"),
        ([b"-5"], b"1"),
        ([b"many"], b"1"),
        ([b"1.5"], b"1"),
        ([b"\xff\xfe"], b"1"),
        (["٣".encode()], b"1"),
        ([b"many", b"3"], b"4"),
    ],
)
def test_the_attempt_is_one_more_than_the_highest_sound_one(values: list[bytes | None], expected: bytes) -> None:
    assert attempt_of([("softmax-error-attempt", value) for value in values]) == expected


@given(
    st.lists(st.tuples(st.sampled_from(["softmax-error-attempt", "x"]), st.none() | st.binary(max_size=40)), max_size=5)
)
def test_no_header_whatever_hinders_a_dead_letter(headers: list[Header]) -> None:
    attempt = attempt_of(headers)
    assert attempt is not None
    assert int(attempt) >= 1


@pytest.mark.parametrize("value", [b"", b"payload", bytes(range(256)) * 100])
def test_a_value_that_is_left_out_is_told_by_its_length_and_sha_256(value: bytes) -> None:
    headers: list[Header] = [("a", b"1")]
    assert without_value(headers, value) == [
        ("a", b"1"),
        ("softmax-error-value-sha256", hashlib.sha256(value).hexdigest().encode()),
        ("softmax-error-value-length", str(len(value)).encode()),
    ]
    assert headers == [("a", b"1")]


def test_an_attempt_of_absurd_length_does_not_hinder_a_dead_letter() -> None:
    assert attempt_of([("softmax-error-attempt", b"1" * 5000)])
