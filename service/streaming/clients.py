"""Kafka clients as this service needs them: every consequential default set, every call bounded."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.helpers import create_ssl_context

from service.errors import ConfigurationError
from service.streaming.tokens import token_provider

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine

    from service.settings import Settings

T = TypeVar("T")

MIB: Final = 1 << 20
# What one fetch may bring, per partition and per broker: it bounds what is read ahead of the work.
FETCH_PARTITION_BYTES: Final = 1 * MIB
FETCH_BROKER_BYTES: Final = 16 * MIB


def connection(settings: Settings) -> dict[str, Any]:
    """Arguments that every client shares: where, as whom, and how securely."""
    kafka = settings.kafka
    secure = kafka.security_protocol.endswith("SSL")
    ssl_context = None
    if secure:
        key_password = kafka.ssl_keyfile_password
        try:
            ssl_context = create_ssl_context(
                cafile=kafka.ssl_cafile,
                certfile=kafka.ssl_certfile,
                keyfile=kafka.ssl_keyfile,
                # None would ask on the terminal for the password of a key that has one.
                password=key_password.get_secret_value() if key_password else "",
            )
        except (OSError, ValueError) as error:  # a missing file, no certificate in it, a wrong password
            raise ConfigurationError(
                f"The certificates cannot be used: {type(error).__name__}: {error}",
                "Check kafka.ssl_cafile, kafka.ssl_certfile, kafka.ssl_keyfile and kafka.ssl_keyfile_password",
            ) from None
        ssl_context.check_hostname = kafka.ssl_check_hostname
    return {
        "bootstrap_servers": kafka.bootstrap_servers.split(","),
        "client_id": kafka.client_id,
        "request_timeout_ms": kafka.request_timeout_ms,
        "metadata_max_age_ms": kafka.metadata_max_age_ms,
        "security_protocol": kafka.security_protocol,
        # What MSK calls AWS_MSK_IAM is, on the wire, OAUTHBEARER with tokens of its own.
        "sasl_mechanism": "OAUTHBEARER" if kafka.sasl_mechanism == "AWS_MSK_IAM" else kafka.sasl_mechanism,
        "sasl_plain_username": kafka.sasl_username,
        "sasl_plain_password": kafka.sasl_password.get_secret_value() if kafka.sasl_password else None,
        "sasl_oauth_token_provider": token_provider(kafka),
        "ssl_context": ssl_context,
    }


def make_consumer(settings: Settings) -> AIOKafkaConsumer:
    """Make a consumer that neither commits nor resets an offset by itself."""
    kafka = settings.kafka
    return AIOKafkaConsumer(
        **connection(settings),
        group_id=kafka.group_id,
        group_instance_id=kafka.group_instance_id,
        client_rack=kafka.client_rack,
        enable_auto_commit=False,
        # An empty answer about commits may be a coordinator that is still loading: worker.py asks again.
        auto_offset_reset="none",
        isolation_level=kafka.isolation_level,
        session_timeout_ms=kafka.session_timeout_ms,
        heartbeat_interval_ms=min(3000, kafka.session_timeout_ms // 3),
        # Members have this long to finish what is in flight before a rebalance goes on without them.
        rebalance_timeout_ms=max(60_000, 2 * settings.delivery.drain_timeout_ms),
        max_partition_fetch_bytes=FETCH_PARTITION_BYTES,
        fetch_max_bytes=FETCH_BROKER_BYTES,
        fetch_max_wait_ms=500,
        # Members whose first assignors differ never finish joining: one, for every version of the service.
        partition_assignment_strategy=(RoundRobinPartitionAssignor,),
    )


def make_producer(settings: Settings, max_batch_bytes: int, transactional_id: str | None = None) -> AIOKafkaProducer:
    """Make a producer whose batches are built by the caller; with an id, one that writes in transactions."""
    kafka = settings.kafka
    return AIOKafkaProducer(
        **connection(settings),
        acks="all",
        enable_idempotence=kafka.idempotent_producer,
        compression_type=None if kafka.compression == "none" else kafka.compression,
        max_batch_size=max_batch_bytes,
        linger_ms=0,
        transactional_id=transactional_id,
        transaction_timeout_ms=settings.delivery.transaction_timeout_ms,
    )


def make_admin(settings: Settings) -> AIOKafkaAdminClient:
    """Make a client that asks about topics."""
    return AIOKafkaAdminClient(**connection(settings))


async def close(client: AIOKafkaConsumer | AIOKafkaProducer, timeout: float) -> None:  # noqa: ASYNC109 - the budget is the caller's
    """Stop a client, but never wait for a broker that is gone."""
    await _attempt(client.stop(), timeout)


async def discard(producer: AIOKafkaProducer, timeout: float) -> None:  # noqa: ASYNC109 - the budget is the caller's
    """End a producer without sending what it still holds.

    `stop()` would flush, and a batch of this producer that arrives after its successor's first
    would break the order.
    """
    producer._closed = True  # noqa: SLF001 - there is no public way to close without a flush
    await _attempt(_drop(producer), timeout)


async def _attempt(ending: Coroutine[object, object, None], timeout: float) -> None:  # noqa: ASYNC109 - the budget is the caller's
    """Run something whose failure changes nothing any more.

    As a task of its own: without a broker, aiokafka's `stop` also ends in the CancelledError of a
    task that it has cancelled itself, which must not pass for a cancellation of the caller.
    """
    task = asyncio.create_task(ending)
    done, _ = await asyncio.wait({task}, timeout=timeout)
    if not done:
        task.cancel()
        await asyncio.wait({task}, timeout=1)
    if task.done() and not task.cancelled():
        task.exception()


async def _drop(producer: AIOKafkaProducer) -> None:
    try:
        await producer._sender.close()  # noqa: SLF001 - see discard
    finally:
        await producer.client.close()


async def bounded(call: Awaitable[T], milliseconds: int) -> T:
    """Await `call`, at most that long.

    Raises:
        TimeoutError: it took longer.
    """
    # Not `wait_for`, which swallows a cancellation that arrives together with the result.
    async with asyncio.timeout(milliseconds / 1000):
        return await call
