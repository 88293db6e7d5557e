"""The reference itself, pinned by cases that were worked out by hand and by another library's numbers."""

from __future__ import annotations

import math
import struct
from decimal import Decimal, localcontext

import mpmath
import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from message_strategies import objects
from plain_msgpack import RefusedError, header, nodes, read, text
from plain_softmax import EXACTLY, WIDTHS, Distribution, Number
from reference import DTYPES, Expected, Limits, Profile, Profiles, Refusal, agrees, expect
from transform_messages import SPELLINGS

NARROW, WIDE = WIDTHS["float32"], WIDTHS["float64"]


def expected(message: str, profile: Profile = Profile(), model: bytes | None = None) -> Refusal | Expected:  # noqa: B008 - it is frozen
    return expect(bytes.fromhex(message), model, Limits(max_classes=5), Profiles(default=profile))


def rendered(expectation: Refusal | Expected) -> bytes:
    """The output if every number is rounded correctly."""
    assert isinstance(expectation, Expected)
    return b"".join(part if isinstance(part, bytes) else written(part, float(part.value)) for part in expectation.parts)


def written(number: Number, value: float) -> bytes:
    if number.tagged:
        return bytes([number.width.tag]) + struct.pack(f">{number.width.code}", value)
    return struct.pack(f"<{number.width.code}", value)


# msgpack


@given(raw=objects)
def test_an_object_s_bytes_are_those_of_its_parts(raw: bytes) -> None:
    """Every container is a header and its children, without a gap; scalars have none."""
    for node in nodes(read(raw)):
        stops = [child.stop for child in node.children]
        assert stops == [child.start for child in node.children[1:]] + [node.stop] * bool(stops)
        assert node.start < node.stop


@pytest.mark.parametrize(
    "value",
    [
        0,
        127,
        128,
        2**16,
        2**32,
        2**64 - 1,
        -1,
        -32,
        -33,
        -(2**63),
        1.5,
        None,
        True,
        False,
        "é",
        b"\xff" * 300,
        "x" * 300,
    ],
    ids=lambda value: repr(value)[:10],
)
def test_scalars_are_what_another_library_wrote(value: object) -> None:
    node = read(msgpack.packb(value))
    assert node.value == (value.encode() if isinstance(value, str) else value)
    assert node.raw == msgpack.packb(value)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 31, 32, 127, 128, 255, 256, 65_535, 65_536, 2**20])
def test_headers_are_the_shortest(count: int) -> None:
    packer = msgpack.Packer()
    assert header("array", count) == packer.pack_array_header(count)
    assert header("map", count) == packer.pack_map_header(count)
    assert header("int", count) == msgpack.packb(count)
    assert text("x" * count) == msgpack.packb("x" * count)
    assert header("bin", count) == msgpack.packb(bytes(count))[: -count or None]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("", "malformed_msgpack"),
        ("c1", "malformed_msgpack"),
        ("dd ffffffff", "malformed_msgpack"),
        ("81a6", "malformed_msgpack"),
        ("c7 02 05 01", "malformed_msgpack"),
        ("91 00 00", "trailing_bytes"),
        ("91" * 64 + "90", "too_deep"),
        ("91" * 64 + "90 00", "trailing_bytes"),
        ("91" * 100_000, "malformed_msgpack"),
        ("91" * 100_000 + "90", "too_deep"),
    ],
    ids=lambda value: value[:20],
)
def test_what_is_no_message_is_not_read(message: str, reason: str) -> None:
    with pytest.raises(RefusedError) as caught:
        read(bytes.fromhex(message))
    assert caught.value.reason == reason


def test_sixty_four_levels_are_read() -> None:
    assert len(nodes(read(b"\x91" * 63 + b"\x90"))) == 64


def test_the_dtypes_are_those_of_the_list() -> None:
    assert set(DTYPES) == {spelling.name for spelling in SPELLINGS}


@pytest.mark.parametrize(
    ("dtype", "payload", "numbers"),
    [
        ("float16", "003c 00c0", [1, -2]),
        (">f2", "3c00 c000", [1, -2]),
        ("BF16", "803f 00c0", [1, -2]),
        ("<f4", "0000803f", [1]),
        (">f8", "bff0000000000000", [-1]),
        ("|i1", "80 7f", [-128, 127]),
        ("|u1", "80 7f", [128, 127]),
        (">i2", "fffe", [-2]),
        ("<u2", "feff", [65534]),
        ("INT32", "feffffff", [-2]),
        ("uint32", "feffffff", [2**32 - 2]),
        (">i8", "8000000000000000", [-(2**63)]),
        ("UINT64", "ff" * 8, [2**64]),
    ],
)
def test_numbers_of_a_bin_are_read_as_they_are_computed(dtype: str, payload: str, numbers: list[float]) -> None:
    assert DTYPES[dtype].numbers(bytes.fromhex(payload)) == numbers


# Numbers

logits = st.lists(st.floats(-200, 200) | st.just(-math.inf), min_size=1, max_size=6).filter(lambda row: max(row) > -200)


@given(row=logits, temperature=st.sampled_from([1.0, 0.25, 3.0]))
def test_distributions_are_those_of_another_library(row: list[float], temperature: float) -> None:
    """Probabilities, their logarithms, entropy and margin to forty digits."""
    with localcontext(EXACTLY), mpmath.workdps(60):
        found = Distribution.of(row, temperature, WIDE, WIDE)
        exponentials = [mpmath.exp((mpmath.mpf(z) - max(row)) / temperature) for z in row]
        exact = [each / mpmath.fsum(exponentials) for each in exponentials]
        entropy = -mpmath.fsum(p * mpmath.log(p) for p in exact if p)
        highest, next_highest = sorted([*exact, mpmath.mpf(0)])[-1:-3:-1]
        pairs = [
            *((number.value, p) for number, p in zip(found.all_probabilities(), exact, strict=True)),
            (found.entropy().value, entropy),
            (found.confidence().value, highest),
            (found.margin().value, highest - next_highest),
        ]
        logarithms = [number.value for number in found.log_probabilities()]
        pairs += [(log, mpmath.log(p)) for log, p in zip(logarithms, exact, strict=True) if p]
        for value, other in pairs:
            assert mpmath.almosteq(mpmath.mpf(str(value)), other, 1e-40, 1e-40)
        assert [log.is_infinite() for log in logarithms] == [not p for p in exact]


def test_a_probability_is_allowed_eight_eps_and_the_distance() -> None:
    number = Distribution.of([0.0, -2.0], 1.0, NARROW, NARROW).probability(1)
    p = math.exp(-2) / (1 + math.exp(-2))
    assert float(number.value) == pytest.approx(p, rel=1e-15)
    assert float(number.tolerance) == pytest.approx(10 * 2**-23 * p, rel=1e-9)


def test_rounding_to_leave_is_allowed_half_a_step() -> None:
    number = Distribution.of([0.0, 0.0], 1.0, WIDE, NARROW).probability(0)
    assert float(number.tolerance) == pytest.approx(2**-25, rel=1e-6)
    assert not number.accepts(0.5 + 2**-24)


def test_below_the_normal_range_the_smallest_normal_is_allowed() -> None:
    number = Distribution.of([0.0, -100.0], 1.0, NARROW, NARROW).probability(1)
    assert number.accepts(0)
    assert number.accepts(2.0**-126)
    assert not number.accepts(2.0**-124)
    wide = Distribution.of([0.0, -100.0], 1.0, WIDE, WIDE).probability(1)
    assert not wide.accepts(0)


def test_a_masked_class_is_zero_and_nothing_else() -> None:
    row = Distribution.of([0.0, -math.inf], 1.0, NARROW, NARROW)
    assert row.probability(1).accepts(0)
    assert not row.probability(1).accepts(1e-45)
    assert row.log_probability(1).accepts(-math.inf)
    assert not row.log_probability(1).accepts(-1e38)
    assert not row.log_probability(0).accepts(-math.inf)


def test_a_logarithm_beyond_the_range_may_be_infinite() -> None:
    far = [3e38, -3e38]
    assert Distribution.of(far, 1.0, NARROW, NARROW).log_probability(1).accepts(-math.inf)
    assert Distribution.of(far, 1.0, NARROW, WIDE).log_probability(1).accepts(-6e38)
    assert not Distribution.of(far, 1.0, WIDE, WIDE).log_probability(1).accepts(-math.inf)
    assert not Distribution.of(far, 1.0, NARROW, NARROW).log_probability(1).accepts(math.inf)


@pytest.mark.parametrize("found", [math.nan, math.inf, -math.inf, -0.5, 0.51])
def test_other_numbers_are_not_a_half(found: float) -> None:
    assert not Distribution.of([1.0, 1.0], 1.0, NARROW, NARROW).probability(0).accepts(found)


def test_ties_fall_to_the_lower_index() -> None:
    assert Distribution.of([1.0, 3.0, -0.0, 3.0, 0.0], 1.0, NARROW, NARROW).order == [1, 3, 0, 2, 4]


def test_the_temperature_is_rounded_to_the_computing_dtype() -> None:
    assert Distribution.of([0.0, -1.0], 0.1, NARROW, WIDE).exponents[1] != Decimal(-10)
    assert NARROW.rounded(0.1) == Decimal(struct.unpack("f", struct.pack("f", 0.1))[0])


# Messages, as hexadecimal

LIST = "81 a66c6f67697473 92"
PROBABILITIES = "ad70726f626162696c6974696573"
HALF, ONE, ZERO = "ca3f000000", "ca3f800000", "ca00000000"
BIN = "83 a66c6f67697473 c402 0101 a56474797065 a4 494e5438 a57368617065 91 02"

ANSWERED = {
    "a list": (f"{LIST} 00 00", f"81 {PROBABILITIES} 92 {HALF} {HALF}"),
    "a list of float64": (f"{LIST} 00 cb{'00' * 8}", f"81 {PROBABILITIES} 92 {('cb3fe0' + '00' * 6) * 2}"),
    "a bare list in a long form": (f"dd00000001 {ZERO}", f"91 {ONE}"),
    "rows": (f"{LIST} 91 00 91 00", f"81 {PROBABILITIES} 92 91 {ONE} 91 {ONE}"),
    "fields around": ("83 c0 c0 a66c6f67697473 91 00 d4 05 05 c0", f"83 c0 c0 {PROBABILITIES} 91 {ONE} d4 05 05 c0"),
    "a bin": (BIN, f"83 {PROBABILITIES} c408 {'0000003f' * 2} a56474797065 a4 46503332 a57368617065 91 02"),
    "heads": (f"81 a66c6f67697473 81 c0 {LIST[-2:]} 00 00", f"81 {PROBABILITIES} 81 c0 92 {HALF} {HALF}"),
    "msgpack-numpy": (
        "81 a66c6f67697473 84 a26e64 c3 c40474797065 c4033e6634 a464617461 c404 00000000 a57368617065 91 01",
        f"81 {PROBABILITIES} 84 a26e64 c3 c40474797065 c4033c6634 a464617461 c404 0000803f a57368617065 91 01",
    ),
    "__ndarray__, bare": (
        "84 ab5f5f6e6461727261795f5f c3 a56474797065 d903 3c6634 a464617461 c50004 00000000 a57368617065 91 cc01",
        "84 ab5f5f6e6461727261795f5f c3 a56474797065 d903 3c6634 a464617461 c404 0000803f a57368617065 91 cc01",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERED)
def test_answers_are_those_written_out_by_hand(name: str) -> None:
    message, answer = ANSWERED[name]
    assert rendered(expected(message)).hex() == bytes.fromhex(answer).hex()
    assert agrees(bytes.fromhex(answer), expected(message)) is None  # type: ignore[arg-type]


def test_outputs_are_added_in_their_order() -> None:
    """Uniform over four classes, the third masked: nothing but exact numbers."""
    outputs = ("top_k", "margin", "predicted", "confidence", "label")
    profile = Profile(labels=("a", "b", "c", "d"), masked=(2, 9), top_k=9, outputs=outputs)
    answer = rendered(expected("81 a66c6f67697473 94 01 01 01 cd0100", profile))
    assert msgpack.unpackb(answer) == {
        "top_k": {"indices": [3, 0, 1, 2], "labels": ["d", "a", "b", "c"], "probabilities": [1, 0, 0, 0]},
        "margin": 1,
        "predicted": 3,
        "confidence": 1,
        "label": "d",
    }
    assert list(msgpack.unpackb(answer)) == list(outputs)


def test_outputs_of_rows_nest_and_those_of_heads_are_maps() -> None:
    profile = Profile(outputs=("predicted", "entropy"), dtype="float64")
    rows = "81 a66c6f67697473 92 92 92 00 00 92 00 01 92 92 01 00 92 01 01"
    assert msgpack.unpackb(rendered(expected(rows, profile)))["predicted"] == [[0, 1], [0, 0]]
    assert msgpack.unpackb(rendered(expected(rows, profile)))["entropy"][0][0] == math.log(2)
    heads = "81 a66c6f67697473 82 a161 92 00 01 a162 91 92 01 00"
    assert msgpack.unpackb(rendered(expected(heads, profile)))["predicted"] == {"a": 1, "b": [0]}


@pytest.mark.parametrize(
    ("outputs", "fields"),
    [
        (("probabilities",), ["probabilities", "dtype", "shape"]),
        (("log_probabilities",), ["dtype", "shape", "log_probabilities"]),
        (("predicted",), ["predicted"]),
        (("predicted", "probabilities"), ["probabilities", "dtype", "shape", "predicted"]),
    ],
)
def test_a_bin_keeps_what_describes_it(outputs: tuple[str, ...], fields: list[str]) -> None:
    assert list(msgpack.unpackb(rendered(expected(BIN, Profile(outputs=outputs))))) == fields


REFUSED = {
    "extension_type": f"{LIST} 00 d40500",
    "duplicate_field": "82 a66c6f67697473 9100 a66c6f67697473 9100",
    "missing_logits": "81 c4066c6f67697473 9100",
    "unsupported_encoding": "81 a66c6f67697473 c0",
    "unsupported_dtype": "81 a66c6f67697473 c400",
    "shape_mismatch": "9191919190",
    "ragged": "92 91 00 00",
    "empty": "81 a66c6f67697473 80",
    "too_many_classes": "96 000000000000",
    "not_numeric": "92 00 80",
    "nan": "92 00 ca7fc00000",
    "positive_infinity": "92 00 ca7f800000",
    "all_masked": "91 caff800000",
}


@pytest.mark.parametrize("reason", REFUSED)
def test_reasons_are_those_found_by_hand(reason: str) -> None:
    assert expected(REFUSED[reason]) == Refusal(reason)


def test_reasons_that_settings_decide() -> None:
    two = "92 00 00"
    assert expected(two, Profile(classes=3)) == Refusal("unexpected_classes")
    assert expected(two, Profile(labels=("a",))) == Refusal("unexpected_classes")
    assert expected(two, Profile(masked=(0, 1))) == Refusal("all_masked")
    strict = Profiles(strict=True)
    assert expect(b"\x91\x00", b"who", Limits(), strict) == Refusal("unknown_model")
    assert isinstance(expect(b"\x91\x00", b"default", Limits(), strict), Expected)
    assert isinstance(expect(b"\x91\x00", b"\xff", Limits(), strict), Expected)
    assert expect(b"\x91\x00", None, Limits(max_message_bytes=1), strict) == Refusal("too_large")
    assert expect(None, None, Limits(), strict) == Refusal("null_value")


# Comparing


def test_every_other_byte_of_the_structure_is_noticed() -> None:
    answer = bytes.fromhex(ANSWERED["a bin"][1].replace(" ", ""))
    expectation = expected(BIN)
    assert isinstance(expectation, Expected)
    for at in range(len(answer)):
        changed = answer[:at] + bytes([answer[at] ^ 0x40]) + answer[at + 1 :]
        assert agrees(changed, expectation) is not None
        assert agrees(answer[:at], expectation) is not None
    assert agrees(answer + b"\0", expectation) is not None


def test_a_row_that_does_not_sum_to_one_is_noticed() -> None:
    """Each number is within its bound."""
    expectation = expected("92 00 00 ".replace("00", "ca00000000"))
    assert isinstance(expectation, Expected)
    assert agrees(bytes.fromhex("92") + 2 * b"\xca\x3f\x00\x00\x04", expectation) is None
    assert "sums to" in str(agrees(bytes.fromhex("92") + 2 * b"\xca\x3f\x00\x00\x07", expectation))


def test_a_probability_above_that_of_the_highest_logit_is_noticed() -> None:
    expectation = expected(f"92 {ZERO} ca00000001")
    assert isinstance(expectation, Expected)
    assert agrees(bytes.fromhex(f"92 {HALF} {HALF}"), expectation) is None
    assert "highest" in str(agrees(bytes.fromhex(f"92 ca3f000001 {HALF}"), expectation))
