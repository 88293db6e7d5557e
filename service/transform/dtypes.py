"""Numbers as bytes: the dtypes that a message may use, their spellings and their msgpack tags."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

FLOAT32: Final = np.dtype(np.float32)
FLOAT64: Final = np.dtype(np.float64)


@dataclass(frozen=True, slots=True)
class Elements:
    """How each number of a tensor is stored.

    Attributes:
        dtype: of the number's bytes; `<u2` for bfloat16.
        tag: the msgpack tag that precedes each number in a list; `None` in binary data.
        bfloat16: whether the two bytes are the upper half of a float32.
        fixint: whether the number is its own tag: msgpack's one-byte integers, read as int8.
    """

    dtype: np.dtype[Any]
    tag: int | None = None
    bfloat16: bool = False
    fixint: bool = False

    @property
    def offset(self) -> int:
        """Bytes before each number."""
        return 0 if self.tag is None else 1

    @property
    def stride(self) -> int:
        """Bytes from one number to the next."""
        return self.dtype.itemsize + self.offset

    @property
    def tagged(self) -> bool:
        """Whether the numbers' bytes tell what they are, and must be looked at."""
        return self.fixint or self.tag is not None

    @property
    def computed_in(self) -> np.dtype[Any]:
        """float32 for floats of up to 32 bits, float64 for float64 and integers."""
        small_float = self.bfloat16 or (self.dtype.kind == "f" and self.dtype.itemsize <= FLOAT32.itemsize)
        return FLOAT32 if small_float else FLOAT64

    @property
    def answered_in(self) -> np.dtype[Any]:
        """The dtype of the probabilities unless a profile forces one: float64 for float64, else float32."""
        return FLOAT64 if self.dtype.kind == "f" and self.dtype.itemsize == FLOAT64.itemsize else FLOAT32

    def values(self, numbers: NDArray[Any]) -> NDArray[Any]:
        """What numbers of `dtype` mean: bfloat16 is widened to float32, others are themselves."""
        if self.bfloat16:
            return (numbers.astype(np.uint32) << 16).view(np.float32)
        return numbers

    def tags_right(self, tags: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Which tags announce a number of this kind."""
        if self.fixint:
            right: NDArray[np.bool_] = (tags < 0x80) | (tags >= 0xE0)
        else:
            right = tags == self.tag
        return right


FIXINT: Final = Elements(np.dtype(np.int8), fixint=True)
_BY_TAG: Final = {
    0xCA: ">f4", 0xCB: ">f8",
    0xCC: ">u1", 0xCD: ">u2", 0xCE: ">u4", 0xCF: ">u8",
    0xD0: ">i1", 0xD1: ">i2", 0xD2: ">i4", 0xD3: ">i8",
}  # fmt: skip
_LISTED: Final = {tag: Elements(np.dtype(code), tag) for tag, code in _BY_TAG.items()}


def listed_elements(tag: int) -> Elements | None:
    """Elements of a msgpack array whose numbers have `tag`, or `None` where that is no number."""
    if tag < 0x80 or tag >= 0xE0:
        return FIXINT
    return _LISTED.get(tag)


def list_answer(dtype: np.dtype[Any]) -> Elements:
    """Elements of a msgpack array of float32 or float64."""
    return _LISTED[0xCA if dtype == FLOAT32 else 0xCB]


def binary_answer(dtype: np.dtype[Any]) -> Elements:
    """Elements of binary data as it leaves: little-endian."""
    return Elements(dtype.newbyteorder("<"))


_NUMPY_CODE: Final = re.compile(rb"[<>]f[248]|[<>][iu][248]|\|[iu]1", re.ASCII)
_NAMES: Final = [b"float16", b"float32", b"float64"] + [
    b"%s%d" % (kind, bits) for kind in (b"int", b"uint") for bits in (8, 16, 32, 64)
]
_BFLOAT16: Final = Elements(np.dtype("<u2"), bfloat16=True)
# The Open Inference Protocol writes FP32 where numpy writes float32, and the rest in capitals.
_SPELLINGS: Final[dict[bytes, Elements]] = {
    b"bfloat16": _BFLOAT16,
    b"BF16": _BFLOAT16,
    **{name: Elements(np.dtype(name.decode()).newbyteorder("<")) for name in _NAMES},
    **{name.replace(b"float", b"fp").upper(): Elements(np.dtype(name.decode()).newbyteorder("<")) for name in _NAMES},
}


def parse_dtype(spelling: bytes) -> Elements | None:
    """Elements of binary data with this dtype, or `None` where the spelling is not on the list."""
    if _NUMPY_CODE.fullmatch(spelling):
        return Elements(np.dtype(spelling.decode()))
    return _SPELLINGS.get(spelling)


def respell(dtype: np.dtype[Any], like: bytes) -> bytes:
    """Spell float32 or float64 in the manner of `like`."""
    if like[:1] in {b"<", b">", b"|"}:
        return b"<f%d" % dtype.itemsize
    prefix = b"FP" if like[:1].isupper() else b"float"
    return prefix + b"%d" % (8 * dtype.itemsize)
