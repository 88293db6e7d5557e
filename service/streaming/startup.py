"""Checks before the first record: is everything there that the settings promise?"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from aiokafka import errors
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.conn import create_conn
from aiokafka.protocol.metadata import MetadataRequest

from service.errors import BrokerAwayError, BrokerUnusableError
from service.settings import NEEDED_BY_SASL
from service.streaming.clients import bounded, connection, make_admin
from service.streaming.faults import passes
from service.streaming.tokens import TokenRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiokafka.admin import AIOKafkaAdminClient

    from service.settings import Settings

# Kafka's own default, used where the service may not read the topic's configuration.
DEFAULT_MAX_MESSAGE_BYTES: Final = 1_048_588
# A dead letter carries its record and this much more, in headers.
DEAD_LETTER_HEADROOM: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class Topic:
    """What the broker says about a topic.

    Attributes:
        name: its name.
        partitions: how many it has.
        max_message_bytes: the largest batch that it accepts.
        limit_known: whether that is the broker's word; else the user may not ask, and it is Kafka's default.
    """

    name: str
    partitions: int
    max_message_bytes: int
    limit_known: bool = True


@dataclass(frozen=True, slots=True)
class Topology:
    """The three topics."""

    input: Topic
    output: Topic
    dead_letter: Topic


async def examine(settings: Settings) -> Topology:
    """Look at the broker and the topics.

    Raises:
        BrokerUnusableError: one problem, the setting that names it and the cure.
    """
    admin = await connect(settings)
    try:
        topology = await _topology(admin, settings)
    except (errors.KafkaError, TimeoutError) as error:
        raise unusable(
            f"Kafka at {settings.kafka.bootstrap_servers} answers, but not about the topics",
            "Check that the user may describe them",
            error,
        ) from error
    finally:
        await admin.close()
    for problem in problems(topology, settings):
        raise problem
    return topology


def problems(topology: Topology, settings: Settings) -> Iterator[BrokerUnusableError]:
    """What keeps the service from keeping its promises on these topics."""
    source, output, dead_letter = topology.input, topology.output, topology.dead_letter
    if settings.delivery.partitioning == "same" and output.partitions < source.partitions:
        yield BrokerUnusableError(
            f"Topic {output.name} has {output.partitions} partitions,"
            f" fewer than the {source.partitions} of {source.name}",
            "Add partitions to topics.output, or set delivery.partitioning to key",
        )
    needed = source.max_message_bytes + DEAD_LETTER_HEADROOM
    if source.limit_known and dead_letter.limit_known and dead_letter.max_message_bytes < needed:
        yield BrokerUnusableError(
            f"Topic {dead_letter.name} accepts {dead_letter.max_message_bytes} bytes,"
            f" too few for a dead letter of {source.name}",
            f"Set max.message.bytes of topics.dead_letter to {needed} or more",
        )


async def connect(settings: Settings) -> AIOKafkaAdminClient:
    """Connect, trying again for as long as one request may take.

    Raises:
        BrokerUnusableError: no broker could be used, and why.
    """
    deadline = asyncio.get_running_loop().time() + settings.kafka.request_timeout_ms / 1000
    while True:
        admin = make_admin(settings)
        try:
            await bounded(admin.start(), settings.kafka.request_timeout_ms)
        except (errors.KafkaError, TimeoutError):
            await admin.close()
            problem = await _diagnose(settings)
            if problem.final or asyncio.get_running_loop().time() > deadline:
                raise problem.error from None
            await asyncio.sleep(0.25)
        else:
            return admin


@dataclass(frozen=True, slots=True)
class _Diagnosis:
    error: BrokerUnusableError
    final: bool


async def _diagnose(settings: Settings) -> _Diagnosis:
    """Find out why bootstrapping failed: aiokafka only logs the reason."""
    server = settings.kafka.bootstrap_servers.split(",")[0].strip()
    host, _, port = server.rpartition(":")
    arguments = connection(settings)
    needed = NEEDED_BY_SASL[settings.kafka.sasl_mechanism]
    for of_clients in ("bootstrap_servers", "metadata_max_age_ms"):
        del arguments[of_clients]
    try:
        conn = await bounded(create_conn(host.strip("[]"), int(port), **arguments), settings.kafka.request_timeout_ms)
    except TokenRefusedError as error:
        return _final(
            f"There is no token for Kafka at {server}: {describe(error)}",
            "Check kafka.sasl_oauth_token_url, kafka.sasl_oauth_client_id and kafka.sasl_oauth_client_secret",
        )
    except (
        errors.AuthenticationFailedError,
        errors.SaslAuthenticationFailed,
        errors.UnsupportedSaslMechanismError,
        errors.IllegalSaslStateError,
    ) as error:
        return _final(
            f"Kafka at {server} refuses the credentials: {describe(error)}",
            "Check kafka.sasl_mechanism and what it needs: " + ", ".join(f"kafka.{name}" for name in needed),
        )
    except ssl.SSLCertVerificationError as error:
        return _final(
            f"The certificate of Kafka at {server} is not accepted: {error.verify_message}",
            "Check kafka.ssl_cafile, kafka.ssl_check_hostname and the broker's certificate",
        )
    except ssl.SSLError as error:
        return _final(
            f"There is no TLS with Kafka at {server}: {error.reason or error}",
            "Check kafka.security_protocol, kafka.ssl_certfile and kafka.ssl_keyfile",
        )
    except (OSError, errors.KafkaError, TimeoutError) as error:
        return _Diagnosis(
            BrokerAwayError(
                f"Cannot reach Kafka at {settings.kafka.bootstrap_servers}: {describe(error)}",
                "Check kafka.bootstrap_servers and kafka.security_protocol, and that the broker runs"
                + (
                    "; one that asks for a client's certificate needs kafka.ssl_certfile"
                    if arguments["ssl_context"]
                    else ""
                ),
            ),
            final=False,
        )
    conn.close()
    return _Diagnosis(
        BrokerAwayError(f"Kafka at {server} accepts connections but does not answer", "See the broker's log"),
        final=False,
    )


def _final(problem: str, cure: str) -> _Diagnosis:
    return _Diagnosis(BrokerUnusableError(problem, cure), final=True)


def unusable(problem: str, cure: str, error: BaseException) -> BrokerUnusableError:
    """What to raise for an error at the start: the cure is for one that time does not cure."""
    if passes(error):
        return BrokerAwayError(f"{problem}: {describe(error)}", "See the brokers")
    return BrokerUnusableError(f"{problem}: {describe(error)}", cure)


def describe(error: BaseException) -> str:
    """An error in words, never empty."""
    text = str(error) or getattr(error, "description", "") or "no answer in time"
    return f"{type(error).__name__}: {text}".rstrip(".")


async def _topology(admin: AIOKafkaAdminClient, settings: Settings) -> Topology:
    names = [settings.topics.input, settings.topics.output, settings.topics.dead_letter]
    found = await bounded(_partitions(admin, names), settings.kafka.request_timeout_ms)
    missing = [name for name in names if not found.get(name)]
    if missing:
        raise BrokerUnusableError(
            f"There is no topic {', '.join(missing)}",
            "Create it with `softmax-service topics create`, or correct topics.input, .output and .dead_letter",
        )
    limits = await bounded(_max_message_bytes(admin, names), settings.kafka.request_timeout_ms)
    return Topology(
        *(Topic(name, found[name], limits.get(name, DEFAULT_MAX_MESSAGE_BYTES), name in limits) for name in names)
    )


async def _partitions(admin: AIOKafkaAdminClient, names: list[str]) -> dict[str, int]:
    # The public describe_topics would let the broker create what it does not find.
    request = MetadataRequest(names, allow_auto_topic_creation=False)
    response: Any = await admin._send_request(request)  # noqa: SLF001 - see above
    topics = response.to_object()["topics"]
    for topic in topics:
        if topic["error_code"] == errors.TopicAuthorizationFailedError.errno:
            raise BrokerUnusableError(
                f"The user may not describe topic {topic['topic']}", "Grant it Describe, and Read or Write"
            )
    return {topic["topic"]: len(topic["partitions"]) for topic in topics if not topic["error_code"]}


async def _max_message_bytes(admin: AIOKafkaAdminClient, names: list[str]) -> dict[str, int]:
    resources = [ConfigResource(ConfigResourceType.TOPIC, name, {"max.message.bytes": None}) for name in names]
    limits: dict[str, int] = {}
    for response in await admin.describe_configs(resources):
        for code, _, _, name, entries in response.resources:
            error = errors.for_code(code)
            if error is errors.TopicAuthorizationFailedError:  # it is not a right that the service needs
                continue
            if error is not errors.NoError:
                raise error(name)
            limits |= {name: int(value) for key, value, *_ in entries if key == "max.message.bytes"}  # noqa: B035 - one entry
    return limits
