"""The closed list of reasons for which a record is refused."""

from __future__ import annotations

from enum import StrEnum


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
    NOT_NUMERIC = "not_numeric"
    NAN = "nan"
    POSITIVE_INFINITY = "positive_infinity"
    ALL_MASKED = "all_masked"
    REJECTED_BY_BROKER = "rejected_by_broker"
    OUTPUT_TOO_LARGE = "output_too_large"


class InvalidMessage(Exception):  # noqa: N818 - it names the message, which is at fault, not the program
    """A record that cannot be transformed.

    Attributes:
        reason: one of the closed list.
        detail: what is wrong and where (byte offset or element index); never holds payload.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        """Refuse for `reason`, explained by `detail`."""
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
