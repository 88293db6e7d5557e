"""Creating the three topics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiokafka import errors
from aiokafka.admin import NewTopic

from service.errors import BrokerUnusableError
from service.streaming.clients import bounded
from service.streaming.startup import DEAD_LETTER_HEADROOM, DEFAULT_MAX_MESSAGE_BYTES, connect, describe

if TYPE_CHECKING:
    from service.settings import Settings


async def create_topics(settings: Settings, partitions: int, replication_factor: int | None) -> dict[str, str]:
    """Create those of the topics that are missing.

    Args:
        settings: their names.
        partitions: of each new topic.
        replication_factor: of each new topic; `None` for 3, or as many as there are brokers.

    Returns:
        By topic, `created` or `exists`.

    Raises:
        BrokerUnusableError: one could not be created.
    """
    topics = settings.topics
    room_for_headers = {"max.message.bytes": str(DEFAULT_MAX_MESSAGE_BYTES + DEAD_LETTER_HEADROOM)}
    admin = await connect(settings)
    try:
        brokers = (await bounded(admin.describe_cluster(), settings.kafka.request_timeout_ms))["brokers"]
        replicas = replication_factor or min(3, len(brokers))
        wanted = [
            NewTopic(topics.input, partitions, replicas),
            NewTopic(topics.output, partitions, replicas),
            NewTopic(topics.dead_letter, partitions, replicas, topic_configs=room_for_headers),
        ]
        response: Any = await bounded(admin.create_topics(wanted), 3 * settings.kafka.request_timeout_ms)
    except (errors.KafkaError, TimeoutError) as error:
        raise BrokerUnusableError(f"Cannot create topics: {describe(error)}", "See the broker's log") from error
    finally:
        await admin.close()
    done = {}
    for name, code, *rest in response.topic_errors:
        kind = errors.for_code(code)
        if kind not in {errors.NoError, errors.TopicAlreadyExistsError}:
            said = next((text for text in rest if text), kind.__name__)
            raise BrokerUnusableError(f"Cannot create topic {name}: {said}", "Correct the options or grant Create")
        done[name] = "exists" if kind is errors.TopicAlreadyExistsError else "created"
    return done
