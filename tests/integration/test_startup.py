"""What keeps the service from starting, with the documented exit code and a message that names the cure."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from harness import Bus, ServiceProcess, clean_environment, environment, eventually, pack, unpack

from service.broker import Broker, BrokerConfig, Cluster, SaslPlain

if TYPE_CHECKING:
    from collections.abc import Callable

    MakeService = Callable[..., ServiceProcess]


def _run(**settings: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "service", "run"],
        env=clean_environment() | environment(**{"http__port": 0, "log__format": "json", **settings}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_broker_that_is_not_there() -> None:
    """Waited for until the deadline, with a line about it at once; then exit code 3."""
    port = _free_port()
    hasty = {"kafka__request_timeout_ms": 1000, "delivery__retry_deadline_ms": 2500}
    done = _run(kafka__bootstrap_servers=f"127.0.0.1:{port}", **hasty)
    assert done.returncode == 3
    assert "waiting for the broker" in done.stderr + done.stdout
    assert f"Cannot reach Kafka at 127.0.0.1:{port}" in done.stderr
    assert "kafka.bootstrap_servers" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_address_that_is_none() -> None:
    """Exit code 2 at once for something that is not host:port."""
    done = _run(kafka__bootstrap_servers="localhost:port")
    assert done.returncode == 2
    assert "kafka.bootstrap_servers: 'localhost:port' is not host:port" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_topic_that_is_missing(kafka: Broker) -> None:
    """Exit code 3; the message names the topics and the command that creates them, and creates none."""
    for _ in range(2):
        done = _run(kafka__bootstrap_servers=kafka.bootstrap_servers, topics__input="nowhere")
        assert done.returncode == 3
        assert "There is no topic nowhere, probabilities, logits.dead-letter" in done.stderr
        assert "softmax-service topics create" in done.stderr


async def test_a_port_that_is_taken(bus: Bus) -> None:
    """Exit code 2, naming the port and the setting."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = await asyncio.to_thread(_run, **{**bus.settings, "http__port": port})
    assert done.returncode == 2
    assert f"127.0.0.1:{port}" in done.stderr
    assert "http.port" in done.stderr


async def test_too_few_output_partitions(kafka: Broker) -> None:
    """Exit code 3 under partitioning same; the cure is named."""
    async with Bus(kafka.bootstrap_servers, "few", 4, output_partitions=2) as bus:
        done = await asyncio.to_thread(_run, **bus.settings)
    assert done.returncode == 3
    assert "few.probabilities has 2 partitions, fewer than the 4 of few.logits" in done.stderr
    assert "delivery.partitioning" in done.stderr


async def test_a_dead_letter_topic_too_small(kafka: Broker) -> None:
    """Exit code 3 where a dead letter of the largest input would not fit."""
    async with Bus(kafka.bootstrap_servers, "small", 1, dead_letter_configs={"max.message.bytes": "1048588"}) as bus:
        done = await asyncio.to_thread(_run, **bus.settings)
    assert done.returncode == 3
    assert "Set max.message.bytes of topics.dead_letter to 1064972 or more" in done.stderr


def test_certificates_that_are_not_there() -> None:
    """Exit code 2 for TLS files that cannot be read, naming their settings."""
    done = _run(kafka__security_protocol="SSL", kafka__ssl_cafile="/nowhere/ca.pem")
    assert done.returncode == 2
    assert "kafka.ssl_cafile" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_setting_that_does_not_exist() -> None:
    """Exit code 2 with the setting that was probably meant."""
    done = _run(kafka__groupid="x")
    assert done.returncode == 2
    assert "did you mean kafka.group_id" in done.stderr


@pytest.mark.parametrize("password", ["right", "wrong"])
async def test_credentials(make_service: MakeService, password: str) -> None:
    """SASL PLAIN: the right password serves; a wrong one is exit code 3, and neither is ever shown."""
    users = {"admin": "planted-admin-secret", "softmax": "planted-right-secret"}
    with Broker(BrokerConfig(tmpfs=True, security=SaslPlain(users))) as broker:
        login = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN", "sasl_plain_username": "softmax"}
        connection = {**login, "sasl_plain_password": users["softmax"]}
        async with Bus(broker.bootstrap_servers, "login", 1, connection=connection) as bus:
            service = make_service(
                bus,
                kafka__security_protocol="SASL_PLAINTEXT",
                kafka__sasl_username="softmax",
                kafka__sasl_password=f"planted-{password}-secret",
                kafka__request_timeout_ms=3000,
                log__level="debug",
            ).start()
            if password == "right":
                await service.ready()
                await bus.send([pack([1.0, 2.0], id=1)])
                await bus.outputs(1)
                assert await service.stop() == 0
            else:
                assert await service.wait() == 3
                assert "refuses the credentials" in service.log
                assert "kafka.sasl_password" in service.log
            assert "planted" not in service.log


@pytest.mark.parametrize("guarantee", ["at_least_once", "exactly_once"])
@pytest.mark.parametrize("policy", ["stop", "earliest", "latest"])
async def test_an_offset_that_fell_off_the_log(
    bus: Bus, make_service: MakeService, policy: str, guarantee: str
) -> None:
    """Never a silent reset: exit code 5, or the policy, counted and logged."""
    service = await make_service(bus, delivery__guarantee=guarantee).start().ready()
    await bus.send([pack([1.0], id=number) for number in range(10)])
    await bus.outputs(10)
    assert await service.stop() == 0
    await bus.send([pack([1.0], id=number) for number in range(10, 20)])
    admin = AIOKafkaAdminClient(**bus.connection)
    await admin.start()
    await admin.delete_records({TopicPartition(bus.input, 0): RecordsToDelete(before_offset=15)})
    await admin.close()
    again = make_service(bus, delivery__on_offset_lost=policy, delivery__guarantee=guarantee).start()
    if policy == "stop":
        assert await again.wait() == 5
        assert "Offset 10 of" in again.log
        assert "delivery.on_offset_lost" in again.log
        return
    await again.ready()
    await eventually(lambda: again.metric("softmax_offsets_lost_total") == 1)
    await eventually(lambda: again.metric("softmax_consumer_lag_records") == 0)
    await bus.send([pack([1.0], id=20)])
    expected = [*range(10), *(range(15, 20) if policy == "earliest" else []), 20]
    assert [unpack(record.value)["id"] for record in await bus.outputs(len(expected))] == expected
    assert again.events("offset lost")[0]["offset"] == 10
    assert await again.stop() == 0


@pytest.mark.parametrize("start", ["earliest", "latest"])
async def test_where_a_new_group_begins(bus: Bus, make_service: MakeService, start: str) -> None:
    """Without a commit the group begins where delivery.start_offset says, and stays there over a restart."""
    await bus.send([pack([1.0], id=number) for number in range(5)])
    # A killed member is missed after the session timeout; until then nobody else is assigned anything.
    soon = {"kafka__session_timeout_ms": 6000, "delivery__drain_timeout_ms": 3000, "delivery__start_offset": start}
    service = await make_service(bus, **soon).start().ready()
    await eventually(lambda: service.metric("softmax_consumer_lag_records") == 0)
    await asyncio.sleep(1.5)
    await service.kill()
    await bus.send([pack([1.0], id=5)])
    service = await make_service(bus, **soon).start().ready()
    expected = list(range(6)) if start == "earliest" else [5]
    assert [unpack(record.value)["id"] for record in await bus.outputs(len(expected), within=60)] == expected
    assert await service.stop() == 0


def test_sigterm_during_the_start() -> None:
    """A service that still looks for its broker ends at once and cleanly."""
    settings = environment(http__port=0, kafka__bootstrap_servers=f"127.0.0.1:{_free_port()}", log__format="json")
    with subprocess.Popen(
        [sys.executable, "-m", "service", "run"], env=clean_environment() | settings, stderr=subprocess.PIPE
    ) as process:
        try:
            assert process.stderr is not None
            assert b"listening" in process.stderr.readline()
            process.terminate()
            assert process.wait(10) == 0
        finally:
            process.kill()


async def test_one_silent_broker_of_three_keeps_nobody_from_starting(make_service: MakeService) -> None:
    """Whichever broker is asked first, and although it is still believed to be the leader of something."""
    with Cluster(3, BrokerConfig(tmpfs=True)) as cluster:
        async with Bus(cluster.bootstrap_servers, "silent", 3, replication=3) as bus:
            await asyncio.to_thread(cluster.brokers[1].freeze)
            try:
                service = await make_service(bus, kafka__request_timeout_ms=2000).start().ready(within=60)
            finally:
                await asyncio.to_thread(cluster.brokers[1].thaw)
            assert await service.stop() == 0
