"""Whose fault a failed produce is: the record's, the broker's, or nobody's who could mend it here."""

from __future__ import annotations

import asyncio
import errno
import gc

import pytest
from aiokafka import errors

from service.streaming.faults import Fault, InvalidRecordError, fault_of, refusal_by_broker, unheard
from service.transform.refusals import Reason

RECORD = [
    errors.MessageSizeTooLargeError(),
    errors.RecordListTooLargeError(),
    errors.InvalidTimestampError(),
    InvalidRecordError(),
]
BROKER = [
    # Leaders move.
    errors.NotLeaderForPartitionError(),
    errors.LeaderNotAvailableError(),
    errors.UnknownTopicOrPartitionError(),
    errors.StaleMetadata(),
    # Time-outs.
    errors.RequestTimedOutError(),
    errors.KafkaTimeoutError(),
    TimeoutError(),
    # Too few replicas, a disk that fails.
    errors.NotEnoughReplicasError(),
    errors.NotEnoughReplicasAfterAppendError(),
    errors.KafkaStorageError(),
    # Disconnects.
    errors.KafkaConnectionError(),
    errors.NodeNotReadyError(),
    errors.NoBrokersAvailable(),
    OSError(errno.ECONNRESET, "reset"),
    ConnectionResetError(),
    errors.CorrelationIdError(),
    # Cured by a new producer, which is what follows.
    errors.OutOfOrderSequenceNumber(),
    errors.InvalidProducerEpoch(),
    errors.ProducerFenced(),
    errors.ProducerClosed(),
    errors.KafkaError("Unexpected error during batch delivery"),
]
FATAL = [
    errors.TopicAuthorizationFailedError(),
    errors.ClusterAuthorizationFailedError(),
    errors.GroupAuthorizationFailedError(),
    errors.TransactionalIdAuthorizationFailed(),
    errors.SaslAuthenticationFailed(),
    errors.AuthenticationFailedError(),
    errors.UnsupportedVersionError(),
    errors.InvalidTopicError(),
    errors.InvalidRequiredAcksError(),
    errors.PolicyViolationError(),
    errors.UnsupportedForMessageFormatError(),
    errors.UnknownError(),
    ValueError("of our own making"),
    RuntimeError(),
]
TABLE = [(error, Fault.RECORD) for error in RECORD] + [(error, Fault.BROKER) for error in BROKER]
TABLE += [(error, Fault.FATAL) for error in FATAL]


@pytest.mark.parametrize(
    ("error", "fault"), TABLE, ids=lambda each: getattr(each, "value", None) or type(each).__name__
)
def test_whose_fault_a_failed_produce_is(error: BaseException, fault: Fault) -> None:
    assert fault_of(error) is fault


def test_no_error_that_kafka_may_answer_is_at_once_the_record_s_and_worth_a_retry() -> None:
    """A retriable error that made dead letters would drop sound records."""
    for kind in set(errors.kafka_errors.values()):
        assert not (fault_of(kind()) is Fault.RECORD and kind.retriable), kind


def test_every_retriable_error_of_the_client_is_waited_out() -> None:
    retriable = [kind for kind in set(errors.kafka_errors.values()) if kind.retriable]
    assert retriable
    assert {fault_of(kind()) for kind in retriable} == {Fault.BROKER}


def test_kafka_s_invalid_record_is_known_by_its_number() -> None:
    assert errors.for_code(87) is InvalidRecordError


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (errors.MessageSizeTooLargeError(), Reason.OUTPUT_TOO_LARGE),
        (errors.RecordListTooLargeError(), Reason.OUTPUT_TOO_LARGE),
        (errors.InvalidTimestampError(), Reason.REJECTED_BY_BROKER),
        (InvalidRecordError(), Reason.REJECTED_BY_BROKER),
        (errors.UnknownError(), Reason.REJECTED_BY_BROKER),
    ],
    ids=lambda each: each if isinstance(each, str) else type(each).__name__,
)
def test_a_record_that_the_broker_refuses_is_told_with_the_broker_s_answer(error: Exception, reason: Reason) -> None:
    refusal = refusal_by_broker(error)
    assert refusal.reason is reason
    assert refusal.detail == f"the broker answers {type(error).__name__}"


def test_every_error_that_is_the_record_s_has_a_reason_of_its_own() -> None:
    assert {refusal_by_broker(error).reason for error in RECORD} == {Reason.OUTPUT_TOO_LARGE, Reason.REJECTED_BY_BROKER}


async def test_only_what_kafka_says_too_late_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(error: BaseException) -> None:
        raise error

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(unheard)
    for error in (errors.GroupCoordinatorNotAvailableError(), ValueError("a bug")):
        task = asyncio.create_task(fail(error))
        await asyncio.wait({task})
        del task
        gc.collect()
    (record,) = caplog.records
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ValueError)
