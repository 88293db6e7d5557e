"""How tensors lie in a message: dtypes, their spellings, and numbers as bytes."""

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
    """Numbers one after another, each with or without a msgpack tag before it.

    Attributes:
        dtype: of the number's bytes; `<u2` for bfloat16.
        tag: the msgpack tag that precedes each number in a list, `None` in a bin.
        bfloat16: whether the two bytes are the upper half of a float32.
    """

    dtype: np.dtype[Any]
    tag: int | None = None
    bfloat16: bool = False

    @property
    def stride(self) -> int:
        """Bytes from one number to the next."""
        return self.dtype.itemsize + (self.tag is not None)

    @property
    def computed_in(self) -> np.dtype[Any]:
        """float32 for floats of up to 32 bits, float64 for float64 and integers."""
        small_float = self.bfloat16 or (self.dtype.kind == "f" and self.dtype.itemsize <= FLOAT32.itemsize)
        return FLOAT32 if small_float else FLOAT64

    @property
    def answered_in(self) -> np.dtype[Any]:
        """The dtype of the probabilities: float64 for float64, else float32."""
        return FLOAT64 if self.dtype.kind == "f" and self.dtype.itemsize == FLOAT64.itemsize else FLOAT32

    def tags_match(self, columns: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Whether, in each row of bytes (records, count * stride), every number has its tag."""
        if self.tag is None:
            return np.ones(len(columns), np.bool_)
        matched: NDArray[np.bool_] = np.all(columns[:, :: self.stride] == self.tag, axis=1)
        return matched

    def numbers(self, columns: NDArray[np.uint8]) -> NDArray[Any]:
        """View rows of bytes (records, count * stride) as numbers (records, count)."""
        if self.tag is None:
            return columns.view(self.dtype)
        tagged = np.dtype([("tag", np.uint8), ("number", self.dtype)])
        return columns.view(tagged)["number"]

    def read(self, columns: NDArray[np.uint8]) -> NDArray[Any]:
        """Like `numbers`, with bfloat16 widened to float32."""
        numbers = self.numbers(columns)
        if self.bfloat16:
            return (numbers.astype(np.uint32) << 16).view(np.float32)
        return numbers

    def write(self, columns: NDArray[np.uint8], values: NDArray[Any]) -> None:
        """Write values of shape (records, count) into rows of bytes (records, count * stride), tags too."""
        self.numbers(columns)[...] = values
        if self.tag is not None:
            columns[:, :: self.stride] = self.tag

    def pack(self, values: NDArray[Any]) -> memoryview:
        """The bytes of `values`, of any shape, in C order."""
        columns = np.empty((1, values.size * self.stride), np.uint8)
        self.write(columns, values.reshape(1, -1))
        return memoryview(columns[0])


LIST_FLOAT32: Final = Elements(np.dtype(">f4"), tag=0xCA)
LIST_FLOAT64: Final = Elements(np.dtype(">f8"), tag=0xCB)
_LISTS: Final = {FLOAT32: LIST_FLOAT32, FLOAT64: LIST_FLOAT64}


def list_elements(dtype: np.dtype[Any]) -> Elements:
    """Elements of a msgpack list of float32 or float64."""
    return _LISTS[dtype]


def bin_elements(dtype: np.dtype[Any]) -> Elements:
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
