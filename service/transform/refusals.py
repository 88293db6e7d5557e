"""The closed list of reasons for which a record is refused."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Reason(StrEnum):
    """Why a record became a dead letter; where several apply, the earliest member wins."""

    NULL_VALUE = "null_value"
    TOO_LARGE = "too_large"
    MALFORMED_MSGPACK = "malformed_msgpack"
    TRAILING_BYTES = "trailing_bytes"
    TOO_DEEP = "too_deep"
    EXTENSION_TYPE = "extension_type"
    DUPLICATE_FIELD = "duplicate_field"
    MISSING_LOGITS = "missing_logits"
    UNSUPPORTED_ENCODING = "unsupported_encoding"
    UNSUPPORTED_DTYPE = "unsupported_dtype"
    SHAPE_MISMATCH = "shape_mismatch"
    RAGGED = "ragged"
    EMPTY = "empty"
    TOO_MANY_CLASSES = "too_many_classes"
    UNEXPECTED_CLASSES = "unexpected_classes"
    NOT_NUMERIC = "not_numeric"
    NAN = "nan"
    POSITIVE_INFINITY = "positive_infinity"
    ALL_MASKED = "all_masked"
    UNKNOWN_MODEL = "unknown_model"
    REJECTED_BY_BROKER = "rejected_by_broker"
    OUTPUT_TOO_LARGE = "output_too_large"


_PRECEDENCE: Final = {reason: place for place, reason in enumerate(Reason)}


class InvalidMessage(Exception):  # noqa: N818 - it names the message, which is at fault, not the program
    """A record that cannot be transformed.

    Attributes:
        reason: one of the closed list.
        detail: what is wrong and where (byte offset or element index); never holds payload.
        at: the byte of the message that shows it, if one does.
    """

    def __init__(self, reason: Reason, detail: str, at: int | None = None) -> None:
        """Refuse for `reason`, explained by `detail`, seen at byte `at`."""
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.at = at

    def alone(self) -> InvalidMessage:
        """The same without the traceback and the cause, which keep alive what was worked on."""
        self.__cause__ = self.__context__ = None
        return self.with_traceback(None)

    @property
    def precedence(self) -> int:
        """Where several refusals apply, the one with the lowest is told."""
        return _PRECEDENCE[self.reason]
