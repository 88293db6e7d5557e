"""The maps of msgpack-numpy (T4) and `__ndarray__` (T5), byte for byte, and a message around a tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transform_messages import LOGITS, bin_form, map_of, packed, str_form

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def nd(**changes: bytes | None) -> bytes:
    """One float32 of zero as msgpack-numpy writes it, its values changed, added, or with `None` left out."""
    values = {"nd": b"\xc3", "type": packed("<f4"), "kind": packed(b""), "shape": b"\x91\x01"}
    values["data"] = bin_form(bytes(4))
    return _map({**values, **changes}, bin_form)


def ndarray(**changes: bytes | None) -> bytes:
    """The same in a map with the key `__ndarray__`."""
    values = {"__ndarray__": b"\xc3", "data": bin_form(bytes(4)), "dtype": packed("<f4"), "shape": b"\x91\x01"}
    return _map({**values, **changes}, str_form)


def _map(values: Mapping[str, bytes | None], key: Callable[[bytes], bytes]) -> bytes:
    return map_of(*((key(name.encode()), value) for name, value in values.items() if value is not None))


def appended(tensor: bytes, *entries: bytes) -> bytes:
    """A small map with keys and values in turns behind the ones that it has."""
    return bytes([tensor[0] + len(entries) // 2]) + tensor[1:] + b"".join(entries)


def logits(tensor: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    """A message with a field before the tensor."""
    return map_of((b"\xa2id", b"\x07"), (LOGITS, tensor), *extra)
