"""The seed corpus: one small input for each encoding, dtype, refusal, shape and way to be configured.

`python seeds.py` writes it anew, always the same; `--check` tells whether it is as it would be written.
"""

from __future__ import annotations

import argparse
import struct
import sys
from pathlib import Path
from typing import Final

from mutator import header

CORPUS: Final = Path(__file__).resolve().parent / "corpus"
LOGITS: Final = b"\xa6logits"
TRUE: Final = b"\xc3"
# Two variants of the message, an acceptable message of its length, a neighbour.
_COMPANY: Final = 2 | 1 << 2 | 1 << 4
_CROWD: Final = 0xFF


def control(setting: int = 0, model: int = 0, limits: int = 0, company: int = _COMPANY, seed: int = 1) -> bytes:
    """The control bytes of an input, as `invariants.Case` reads them."""
    return bytes([setting, model, limits, company, seed % 4]) + seed.to_bytes(3, "big")


def text(word: str, form: int = 0) -> bytes:
    return header("str", len(word.encode()), form) + word.encode()


def binary(payload: bytes, form: int = 0) -> bytes:
    return header("bin", len(payload), form) + payload


def array(*elements: bytes, form: int = 0) -> bytes:
    return header("array", len(elements), form) + b"".join(elements)


def mapping(*fields: tuple[bytes, bytes], form: int = 0) -> bytes:
    return header("map", len(fields), form) + b"".join(key + value for key, value in fields)


def f4(*values: float) -> bytes:
    return array(*(b"\xca" + struct.pack(">f", value) for value in values))


def f8(*values: float) -> bytes:
    return array(*(b"\xcb" + struct.pack(">d", value) for value in values))


def sizes(*shape: int) -> bytes:
    return array(*(bytes([size]) if size < 0x80 else b"\xcd" + size.to_bytes(2, "big") for size in shape))


def message(value: bytes, *others: tuple[bytes, bytes]) -> bytes:
    return mapping((LOGITS, value), *others)


def t3(payload: bytes, dtype: bytes = b"<f4", shape: bytes = b"\x91\x02", *others: tuple[bytes, bytes]) -> bytes:
    word = header("str", len(dtype)) + dtype
    return message(binary(payload), (text("dtype"), word), (text("shape"), shape), *others)


def t4(payload: bytes, dtype: bytes = b"<f4", shape: bytes = b"\x91\x02", *, kind: bytes | None = b"") -> bytes:
    fields = [(b"nd", TRUE), (b"type", binary(dtype)), (b"shape", shape), (b"data", binary(payload))]
    if kind is not None:
        fields.insert(2, (b"kind", binary(kind)))
    return mapping(*((binary(key), value) for key, value in fields))


def t5(payload: bytes, dtype: str = "<f4", shape: bytes = b"\x91\x02", flag: bytes = TRUE) -> bytes:
    return mapping(
        (text("__ndarray__"), flag),
        (text("data"), binary(payload)),
        (text("dtype"), text(dtype)),
        (text("shape"), shape),
    )


ONE: Final = struct.pack("<f", 1)
PAIR: Final = struct.pack("<2f", 1, -1)
GRID: Final = b"".join(struct.pack("<f", value) for value in (1, -1, 0.5, 3, 2, 2, -7, 0, 1, 4, 5, 6))
NAN: Final = float("nan")
INF: Final = float("inf")
ANSWERED: Final = {
    # Lists of every kind of number, in every form of header.
    "list-f4": message(f4(1, -2, 3)),
    "list-f8": message(f8(1, -2, 3)),
    "list-fixint": message(array(b"\x01", b"\x7f", b"\xe0", b"\xff")),
    "list-mixed": message(array(f4(1)[1:], f8(2)[1:], b"\x05", b"\xd1\xff\x01")),
    "list-f4-and-int": message(array(f4(1)[1:], b"\x05", b"\xcc\x80")),
    **{
        f"list-tag-{tag:02x}": message(array(*(bytes([tag]) + bytes([n]) * width for n in (1, 2, 3))))
        for tag, width in ((0xCC, 1), (0xCD, 2), (0xCE, 4), (0xCF, 8), (0xD0, 1), (0xD1, 2), (0xD2, 4), (0xD3, 8))
    },
    "list-one": message(f4(5)),
    "list-masked": message(f4(1, -INF, 2)),
    "list-equal": message(f8(2, 2, 2)),
    "list-extremes": message(f4(3.4e38, -3.4e38, 0)),
    "list-array16": message(header("array", 2, 1) + f4(1, 2)[1:]),
    "list-array32": message(header("array", 2, 2) + f4(1, 2)[1:]),
    "list-map16": mapping((LOGITS, f4(1, 2)), form=1),
    "list-map32": mapping((LOGITS, f4(1, 2)), form=2),
    "list-many": message(header("array", 400) + bytes(range(100)) * 4),
    "list-very-many": message(header("array", 900) + bytes(range(90)) * 10),
    "list-f4-many": message(f4(*range(190))),
    "bare-f4": f4(1, 2, 3),
    "bare-f8": f8(1, 2),
    "bare-nested": array(f4(1, 2), f4(3, 4)),
    "bare-t4": t4(PAIR),
    "bare-t5": t5(PAIR),
    # Shapes.
    "nested-2": message(array(f4(1, 2, 3), f4(4, 5, 6))),
    "nested-3": message(array(array(f4(1, 2), f4(3, 4)), array(f4(5, 6), f4(7, 8)))),
    "nested-4": message(array(array(array(f8(1, 2))), array(array(f8(3, 4))))),
    "nested-one-class": message(array(f4(1), f4(2), f4(3))),
    "nested-fixint": message(array(array(b"\x01", b"\x02"), array(b"\xff", b"\x7f"))),
    "nested-mixed": message(array(f4(1, 2), array(b"\x01", b"\xcb" + bytes(8)))),
    "nested-headers": message(array(f4(1, 2), header("array", 2, 1) + f4(3, 4)[1:])),
    "nested-17-rows": message(array(*[array(b"\x01", b"\x02")] * 17)),
    **{f"t3-shape-{'x'.join(map(str, shape))}": t3(GRID, b"<f4", sizes(*shape))
       for shape in ((12,), (3, 4), (12, 1), (2, 2, 3), (1, 2, 1, 6), (3, 1, 4, 1))},
    "t3-shape-wide-ints": t3(PAIR, b"<f4", array(b"\xce\0\0\0\x01", b"\xd3" + bytes(7) + b"\x02")),
    "t3-383-classes": t3(bytes(383), b"|i1", sizes(383)),
    "t3-384-classes": t3(bytes(range(128)) * 3, b"|i1", sizes(384)),
    "t3-385-classes": t3(bytes(range(77)) * 5, b"|u1", sizes(385)),
    "t3-512-classes": t3(bytes(range(256)) * 2, b"|u1", sizes(512)),
    "t3-many-rows": t3(bytes(range(200)) * 4, b"|u1", sizes(400, 2)),
    "t3-order": mapping(
        (text("shape"), sizes(2)), (text("id"), b"\x07"), (text("dtype"), text("float32")), (LOGITS, binary(PAIR))
    ),
    "t3-bin16": mapping((LOGITS, binary(PAIR, 2)), (text("dtype", 1), text("<f4", 2)), (text("shape"), sizes(2))),
    "t4-str-keys": message(
        mapping((text("data"), binary(PAIR)), (text("shape"), sizes(2)), (text("type"), text("<f4")), (b"\xa2nd", TRUE))
    ),
    "t4-no-kind": message(t4(PAIR, kind=None)),
    "t4-f2": message(t4(PAIR, b">f2", sizes(4))),
    "t5-f8": message(t5(bytes(16), "float64")),
    "t6-lists": message(mapping((text("age"), f4(1, 2)), (text("sex"), f4(3, 4, 5)))),
    "t6-every-kind": message(
        mapping((text("a"), f8(1, 2)), (b"\x01", t4(PAIR)), (b"\xc0", t5(ONE, shape=sizes(1))), (b"\x90", array(f4(1))))
    ),
    "t6-17-heads": message(mapping(*((bytes([n]), array(b"\x01", b"\x02")) for n in range(17)))),
    "t6-one-head": message(mapping((text("only"), array(b"\x01")))),
    # What stands beside the tensor.
    "with-id": mapping((text("id"), b"\xcf" + bytes(8)), (LOGITS, f4(1, 2)), (text("x"), b"\xc0")),
    "with-model-a": mapping((text("model"), text("a")), (LOGITS, f4(1, 2))),
    "with-model-bin": mapping((text("model"), binary(b"a")), (LOGITS, f4(1, 2))),
    "with-extension": message(f4(1, 2), (text("t"), b"\xd6\xff\0\0\0\0"), (text("u"), b"\xc7\x03\x05abc")),
    "with-depth": message(f4(1, 2), (text("deep"), b"\x91" * 62 + b"\xc0")),
    "with-map": message(f4(1, 2), (text("m"), mapping((b"\x01", array(b"\xc2", text("text")))))),
    "with-ugly-text": message(f4(1, 2), (header("str", 2) + b"\xff\xfe", header("str", 1, 1) + b"\x80")),
    "with-long-id": message(f4(1, 2), (text("id"), text("i" * 300))),
    "with-16-fields": message(f4(1, 2), *((bytes([n]), b"\xc0") for n in range(15))),
    "with-dtype-beside-a-list": message(f4(1, 2), (text("dtype"), b"\xc0"), (text("shape"), b"\x90")),
    # dtypes by each manner of spelling them, and a few that are refused.
    **{"dtype-" + word.translate({0x3C: "le-", 0x3E: "be-", 0x7C: "any-"}): t3(GRID, word.encode(), sizes(count))
       for count, words in (
           (48, "|i1 |u1 int8 INT8 UINT8 <i1 |O"),
           (24, "<f2 >f2 >i2 >u2 float16 FP16 bfloat16 BF16 uint16 INT16 UINT16"),
           (12, "<f4 >f4 >i4 >u4 float32 FP32 int32 INT32 UINT32 fp32"),
           (6, "<f8 >f8 >i8 <u8 >u8 float64 FP64 uint64 INT64 UINT64"),
           (3, "<f16"),
       )
       for word in words.split()},
}  # fmt: skip
REFUSED: Final = {
    "malformed_msgpack": {
        "empty": b"",
        "tag": b"\xc1",
        "cut": message(f4(1, 2))[:-1],
        "claim": b"\x81\xa6logits\xdd\xff\xff\xff\xff\x01",
        "header": b"\xdd\0\0",
        "length": b"\xdb\0",
        "deep-and-cut": b"\x91" * 70,
    },
    "trailing_bytes": {"one": message(f4(1, 2)) + b"\0", "two": f4(1) + f4(2)},
    "too_deep": {"array": b"\x91" * 65 + b"\xc0", "field": message(f4(1), (text("x"), b"\x91" * 64 + b"\xc0"))},
    "extension_type": {
        "tensor": message(b"\xd4\x01\0"),
        "element": message(array(b"\x01", b"\xc7\0\x05")),
        "bare": b"\xd6\xff\0\0\0\0",
        "in-t4": message(mapping((binary(b"nd"), TRUE), (text("x"), b"\xd5\x01\0\0"))),
    },
    "duplicate_field": {
        "logits": message(f4(1), (LOGITS, f4(2))),
        "output": message(f4(1), (text("probabilities"), b"\xc0")),
        "dtype": t3(PAIR, b"<f4", sizes(2), (text("dtype"), text("<f4"))),
        "shape": t3(PAIR, b"<f4", sizes(2), (text("shape"), sizes(2))),
        "t4": message(mapping((text("nd"), TRUE), (binary(b"nd"), TRUE))),
    },
    "missing_logits": {
        "none": mapping((text("id"), b"\x01")),
        "empty": b"\x80",
        "bin": mapping((binary(b"logits"), f4(1))),
    },
    "unsupported_encoding": {
        "text": message(text("text")),
        "bare-bin": binary(PAIR),
        "flag": message(t5(PAIR, flag=b"\xc2")),
        "head": message(mapping((text("a"), binary(PAIR)))),
        "no-data": message(mapping((text("nd"), TRUE), (text("shape"), sizes(1)))),
        "key": message(mapping((text("nd"), TRUE), (text("of-no-known-kind"), b"\xc0"))),
    },
    "unsupported_dtype": {
        "none": message(binary(PAIR)),
        "word": t3(PAIR, b"complex64"),
        "long-word": message(t5(PAIR, "of-no-known-kind")),
        "kind": message(t4(PAIR, kind=b"O")),
        "no-type": message(mapping((text("nd"), TRUE), (text("data"), binary(PAIR)))),
        "object": message(t4(PAIR, b"|O")),
        "number": message(binary(PAIR), (text("dtype"), b"\x04"), (text("shape"), sizes(2))),
    },
    "shape_mismatch": {
        "none": message(binary(PAIR), (text("dtype"), text("<f4"))),
        "size": t3(PAIR, b"<f4", sizes(3)),
        "rank": t3(PAIR, b"<f4", sizes(1, 1, 1, 1, 2)),
        "negative": t3(PAIR, b"<f4", array(b"\xff", b"\xfe")),
        "absurd": t3(PAIR, b"<f4", array(*[b"\xcf" + b"\xff" * 8] * 4)),
        "nested": message(array(array(array(array(f4(1)))))),
        "word": t3(PAIR, b"<f4", text("2")),
    },
    "ragged": {
        "rows": message(array(f4(1, 2), f4(3))),
        "mixed": message(array(f4(1), b"\x01")),
        "depth": message(array(f4(1), array(f4(2)))),
    },
    "empty": {
        "list": message(b"\x90"),
        "rows": message(array(b"\x90", b"\x90")),
        "bin": t3(b"", b"<f4", sizes(0)),
        "heads": message(b"\x80"),
        "absurd": t3(b"", b"<f4", array(b"\0", b"\xcf" + b"\xff" * 8)),
    },
    "not_numeric": {
        "nil": message(array(b"\x01", b"\xc0")),
        "text": message(array(text("of-no-known-kind"))),
        "map": message(array(b"\x80", b"\x01")),
    },
    "nan": {
        "f4": message(f4(1, NAN)),
        "bin": t3(struct.pack("<2f", 1, NAN)),
        "signalling": t3(b"\0\0\xa0\x7f" * 2),
        "f2": t3(b"\0\x7e\0\0", b"<f2"),
        "bf16": t3(b"\xc1\x7f\0\0", b"BF16"),
    },
    "positive_infinity": {
        "f4": message(f4(1, INF)),
        "f8": message(f8(-INF, INF)),
        "bin": t3(struct.pack("<2f", 0, INF)),
    },
    "all_masked": {"f4": message(f4(-INF, -INF)), "row": message(array(f8(1, 2), f8(-INF, -INF)))},
}
CONFIGURED: Final = {
    **{f"setting-{n}": control(n) + message(f4(1, 3, 2)) for n in range(1, 10)},
    **{f"setting-{n}-nested": control(n) + message(array(f4(1, 3, 2), f4(5, 5, 5))) for n in (1, 2, 6)},
    **{f"setting-{n}-t3": control(n) + t3(GRID, b"<f4", sizes(2, 2, 3)) for n in (1, 3, 4, 5, 6)},
    **{f"setting-{n}-heads": control(n) + message(mapping((text("age"), f8(1, 3, 2)), (text("x"), f8(7, 5, 5))))
       for n in (1, 2, 6, 8)},
    "setting-7-900-classes": control(7) + t3(bytes(range(225)) * 4, b"|u1", sizes(900)),
    "setting-2-900-classes": control(2) + t3(bytes(range(225)) * 4, b"|u1", sizes(900)),
    "header-a": control(8, 1) + message(f4(1, 2)),
    "header-b": control(8, 2) + message(f4(1, 2, 3)),
    "refused-unknown_model-in-header": control(9, 0x86) + message(f4(1, 2)),
    "header-ugly": control(9, 7) + message(f4(1, 2)),
    "header-and-field": control(8, 2) + message(f4(1, 2), (text("model"), text("a"))),
    "label-by-model": control(8) + message(f4(1, 2), (text("model"), text("a-name-of-some-length"))),
    "refused-too_large": control(limits=3) + message(f4(*range(20))),
    "refused-too_many_classes": control(limits=2) + message(f4(*range(5))),
    "refused-unexpected_classes": control(6) + message(f4(1, 2)),
    "refused-unknown_model": control(9) + message(f4(1, 2), (text("model"), text("of-no-profile"))),
    "refused-nan-masked": control(5) + message(f4(NAN, 2)),
    "refused-all_masked-by-profile": control(5) + message(f4(1)),
    "refused-duplicate_field-of-profile": control(1) + message(f4(1), (text("entropy"), b"\xc0")),
    "crowd-small": control(company=_CROWD) + message(f4(1, 2)),
    "crowd-large": control(7, company=_CROWD) + t3(bytes(range(225)) * 4, b"|u1", sizes(900)),
    "alone-fixint": control(company=0) + message(array(*[b"\x05"] * 10)),
    "alone": control(company=0) + message(f4(1, 2)),
}  # fmt: skip


def seeds() -> dict[str, bytes]:
    """All inputs, by the names of their files."""
    refused = {f"refused-{why}-{name}": data for why, cases in REFUSED.items() for name, data in cases.items()}
    plain = {name: control(seed=seed) + data for seed, (name, data) in enumerate({**ANSWERED, **refused}.items(), 1)}
    return plain | CONFIGURED


def main() -> None:
    """Write the corpus, or check it."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the corpus is another")
    wanted = seeds()
    if arguments.parse_args().check:
        sys.exit({file.name: file.read_bytes() for file in CORPUS.iterdir()} != wanted)
    CORPUS.mkdir(exist_ok=True)
    for file in CORPUS.iterdir():
        file.unlink()
    for name, data in wanted.items():
        (CORPUS / name).write_bytes(data)


if __name__ == "__main__":
    main()
