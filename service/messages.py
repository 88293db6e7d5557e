"""Messages at the command line: read as bytes, hex or JSON, written as msgpack, hex or JSON."""

from __future__ import annotations

import base64
import binascii
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgpack

from service.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    Given = Literal["bytes", "hex", "json"]
    Told = Literal["msgpack", "hex", "json"]


def read_messages(files: Iterable[str], given: Given, *, float32: bool) -> Iterator[bytes]:
    """The messages in files, `-` being stdin: one a file as bytes, one a line as hex or JSON.

    Args:
        files: their names.
        given: what they hold.
        float32: whether JSON's real numbers become float32 instead of float64.

    Raises:
        ConfigurationError: a file cannot be read, or a line is not what it should be.
    """
    for name in files:
        content = _content(name)
        if given == "bytes":
            yield content
            continue
        for number, line in enumerate(content.splitlines(), 1):
            if line.strip():
                try:
                    yield bytes.fromhex(line.decode()) if given == "hex" else _from_json(line, float32=float32)
                except (ValueError, OverflowError, RecursionError) as error:
                    where = "stdin" if name == "-" else name
                    raise ConfigurationError(f"Line {number} of {where} is not {given}: {error}") from None


def tell(output: bytes, told: Told) -> None:
    """Write one output to stdout."""
    if told == "msgpack":
        sys.stdout.buffer.write(output)
    else:
        print(output.hex() if told == "hex" else to_json(output))  # noqa: T201 - its purpose


def to_json(output: bytes) -> str:
    """A msgpack object as one line of JSON; keys that are no text are written as text.

    Raises:
        ValueError: it is no msgpack object.
    """
    value = msgpack.unpackb(output, strict_map_key=False, unicode_errors="backslashreplace", timestamp=0)
    return json.dumps(_jsonable(value), ensure_ascii=False)


def _content(name: str) -> bytes:
    if name == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"Cannot read {name}: {error.strerror}", "Name a readable file") from None


def _from_json(line: bytes, *, float32: bool) -> bytes:
    value = _packable(json.loads(line))
    packed: bytes = msgpack.packb(value, use_single_float=float32)
    return packed


def _packable(value: Any) -> Any:
    if isinstance(value, list):
        return [_packable(item) for item in value]
    if isinstance(value, dict):
        match value:
            case {"$bin": str(text), **others} if not others:
                return base64.b64decode(text, validate=True)
            case {"$ext": [int(code), str(text)], **others} if not others:
                return msgpack.ExtType(code, base64.b64decode(text, validate=True))
        return {key: _packable(item) for key, item in value.items()}
    return value


def _jsonable(value: Any) -> Any:
    match value:
        case list():
            return [_jsonable(item) for item in value]
        case dict():
            return {_key(key): _jsonable(item) for key, item in value.items()}
        case bytes():
            return {"$bin": _base64(value)}
        case msgpack.ExtType():
            return {"$ext": [value.code, _base64(value.data)]}
        case msgpack.Timestamp():
            return {"$ext": [-1, _base64(value.to_bytes())]}
    return value


def _key(key: Any) -> str:
    if isinstance(key, str):
        return key
    return key.decode(errors="backslashreplace") if isinstance(key, bytes) else str(key)


def _base64(content: bytes) -> str:
    return binascii.b2a_base64(content, newline=False).decode()
