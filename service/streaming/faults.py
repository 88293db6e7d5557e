"""What a failed produce means: the record's fault, the broker's, or the end."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from aiokafka import errors

from service.errors import BrokerUnusableError
from service.transform.refusals import InvalidMessage, Reason

if TYPE_CHECKING:
    import asyncio


class Fault(Enum):
    """Whose fault it is."""

    RECORD = "record"
    BROKER = "broker"
    FATAL = "fatal"


class InvalidRecordError(errors.BrokerResponseError):  # type: ignore[misc]  # aiokafka is not typed
    """Kafka's INVALID_RECORD: say, a record without a key for a compacted topic."""

    errno = 87
    message = "INVALID_RECORD"
    description = "The broker refuses the record"


# aiokafka does not know this code and would report an unknown error.
errors.kafka_errors.setdefault(InvalidRecordError.errno, InvalidRecordError)

_RECORD: Final = {
    InvalidRecordError: Reason.REJECTED_BY_BROKER,
    errors.MessageSizeTooLargeError: Reason.OUTPUT_TOO_LARGE,
    errors.RecordListTooLargeError: Reason.OUTPUT_TOO_LARGE,
    errors.InvalidTimestampError: Reason.REJECTED_BY_BROKER,
}
# Not marked retriable by aiokafka, and cured by a new producer or by time.
_PASSING: Final = (
    errors.OutOfOrderSequenceNumber,
    errors.UnknownProducerId,
    errors.InvalidProducerEpoch,
    errors.ProducerFenced,
    errors.KafkaTimeoutError,
    errors.KafkaConnectionError,
    errors.ProducerClosed,
    errors.ConcurrentTransactions,
    errors.InvalidTxnState,
    errors.InvalidProducerIdMapping,
    errors.IllegalOperation,
    TimeoutError,
    OSError,
)


def fault_of(error: BaseException) -> Fault:
    """Classify why a batch was not stored."""
    if isinstance(error, tuple(_RECORD)):
        return Fault.RECORD
    if passes(error):
        return Fault.BROKER
    # The sender's own end, whatever brought it about, wears the base class.
    return Fault.BROKER if type(error) is errors.KafkaError else Fault.FATAL


def passes(error: BaseException) -> bool:
    """Whether time may cure it, or new connections."""
    return isinstance(error, _PASSING) or bool(getattr(error, "retriable", False))


def refusal_by_broker(error: BaseException) -> InvalidMessage:
    """The refusal of a record that the broker did not accept alone."""
    reason = next((r for kind, r in _RECORD.items() if isinstance(error, kind)), Reason.REJECTED_BY_BROKER)
    return InvalidMessage(reason, f"the broker answers {type(error).__name__}")


_FINAL: Final = (
    errors.TopicAuthorizationFailedError,
    errors.GroupAuthorizationFailedError,
    errors.UnsupportedCodecError,
    errors.CorruptRecordException,
)


def is_final(error: BaseException) -> bool:
    """Whether no waiting cures a failure to read or commit."""
    return isinstance(error, _FINAL)


def raise_if_final(error: BaseException) -> None:
    """Raise what no waiting cures, with its cure.

    Raises:
        BrokerUnusableError: the user lacks a right, or a batch cannot be read.
    """
    said = f"{type(error).__name__}: {error}".rstrip(".")
    if isinstance(error, errors.TopicAuthorizationFailedError):
        raise BrokerUnusableError(f"The user may not read the input topic: {said}", "Grant it Read") from error
    if isinstance(error, errors.GroupAuthorizationFailedError):
        raise BrokerUnusableError(
            f"The user may not use the group: {said}", "Grant it Read on kafka.group_id"
        ) from error
    if is_final(error):
        raise BrokerUnusableError(f"A batch of the input topic cannot be read: {said}", "See the topic") from error


def unheard(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What the event loop does with an exception that nobody has asked for.

    Kafka's are of calls that were given up at their deadline, which has been told then.
    """
    if not isinstance(context.get("exception"), errors.KafkaError):
        loop.default_exception_handler(context)
