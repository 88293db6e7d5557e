"""Brokers, one alone or several as a cluster: their life from the first start to the last stop."""

import atexit
import os
import shutil
import signal
import tempfile
import time
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from service.broker.config import BrokerConfig
from service.broker.errors import BrokerError, PortTakenError
from service.broker.installation import Installation, Progress, install
from service.broker.ports import HOST, Ports, reserve_ports
from service.broker.probe import alive_nodes
from service.broker.process import JavaProcess
from service.broker.properties import render, server_properties

_START_ATTEMPTS = 5
_SECONDS_BETWEEN_ATTEMPTS = 0.5
_SECONDS_BETWEEN_PROBES = 0.02
_MEMORY_FOR_A_NODE = 512 * 2**20
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a private directory is made inside


class _Ensemble:
    """What the nodes of one cluster have in common: the choices, a directory, ports, an identity."""

    def __init__(self, config: BrokerConfig, size: int, progress: Progress | None, stop: Callable[[], None]) -> None:
        self.config = config
        self.ids = range(1, size + 1)
        self.ports: dict[int, Ports] = {}
        self._progress = progress
        self._stop = stop
        self._opened_by = 0
        self._root: Path | None = None

    @property
    def root(self) -> Path:
        if self._root is None:
            message = "the broker has not been started"
            raise BrokerError(message)
        return self._root

    @property
    def scratch(self) -> Path | None:
        """The directory, if it is ours to remove."""
        return self.root if self.config.data_dir is None else None

    @property
    def cluster_id(self) -> str:
        return (self.root / "cluster-id").read_text()

    def open(self) -> Installation:
        """Make sure of Kafka, of a directory for it, and of an orderly end."""
        installation = install(self._progress)
        if self._root is None:
            self._root = self._make_root()
        if not (identity := self._root / "cluster-id").exists():
            identity.write_text(_new_id())
        self._opened_by = os.getpid()
        atexit.unregister(self._stop_at_exit)
        atexit.register(self._stop_at_exit)
        return installation

    def _make_root(self) -> Path:
        if self.config.data_dir is not None:
            self.config.data_dir.mkdir(parents=True, exist_ok=True)
            return self.config.data_dir.absolute()
        return Path(tempfile.mkdtemp(prefix="softmax-kafka-", dir=self._parent()))

    def _parent(self) -> Path | None:
        if not (self.config.tmpfs and _SHARED_MEMORY.is_dir()):
            return None
        room = shutil.disk_usage(_SHARED_MEMORY).free
        return _SHARED_MEMORY if room >= _MEMORY_FOR_A_NODE * len(self.ids) else None

    def close(self) -> None:
        """Remove the directory if it is ours; a later start then begins with a new one."""
        atexit.unregister(self._stop_at_exit)
        if self._root is not None and self.scratch is not None:
            shutil.rmtree(self._root, ignore_errors=True)
            self._root = None

    def _stop_at_exit(self) -> None:
        if os.getpid() == self._opened_by:  # and not a fork, whose end is not ours
            self._stop()


class Node:
    """One broker of a cluster: it can be stopped, killed, frozen and started again without the others."""

    def __init__(self, ensemble: _Ensemble, node_id: int) -> None:
        """Not for callers: nodes come with a `Broker` or a `Cluster`."""
        self.id = node_id
        self._ensemble = ensemble
        self._process: JavaProcess | None = None

    @property
    def bootstrap_servers(self) -> str:
        """Where clients connect: the secured listener if there is one."""
        return f"{HOST}:{self._ports.plain if self._ensemble.config.security is None else self._ports.secure}"

    @property
    def admin_servers(self) -> str:
        """Where anybody may connect, whatever the security."""
        return f"{HOST}:{self._ports.plain}"

    @property
    def relayed_port(self) -> int:
        """The port of the listener for a relay, with `BrokerConfig.relays`."""
        return self._ports.relayed

    @property
    def is_alive(self) -> bool:
        """Whether the process runs; a frozen one counts as alive."""
        return self._process is not None and self._process.is_alive

    @property
    def pid(self) -> int:
        """The id of the Java process.

        Raises:
            BrokerError: It does not run.
        """
        return self._running().pid

    def start(self) -> None:
        """Start, on the data and ports of before if there are any, and return once the broker answers."""
        _start_together(self._ensemble, [self])

    def stop(self) -> None:
        """End in order, or by force when that takes longer than `stop_timeout`."""
        self._request_end()
        self._finish_end()

    def kill(self) -> None:
        """End at once by SIGKILL, as a machine does that loses its power."""
        if self._process is not None:
            self._process.kill()

    def restart(self) -> None:
        """Stop, unless that has happened already, and start again on the same data and ports."""
        Node.stop(self)
        self.start()

    def freeze(self) -> None:
        """Halt the process as a long pause does: connections stay open and nothing answers."""
        self._running().signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen process go on."""
        self._running().signal(signal.SIGCONT)

    def log_tail(self, lines: int = 40) -> str:
        """Return the last lines of Kafka's log, after what Java itself had to say, if anything."""
        files = [file for file in (self._output, self._logs / "server.log") if file.exists()]
        text = "\n".join(file.read_text(errors="replace") for file in files)
        return "\n".join(text.splitlines()[-lines:])

    @property
    def _ports(self) -> Ports:
        if self.id not in self._ensemble.ports:
            message = "the broker has not been started"
            raise BrokerError(message)
        return self._ensemble.ports[self.id]

    @property
    def _directory(self) -> Path:
        return self._ensemble.root / f"node-{self.id}"

    @property
    def _logs(self) -> Path:
        return self._directory / "logs"

    @property
    def _output(self) -> Path:
        return self._logs / "java.log"

    def _running(self) -> JavaProcess:
        if self._process is None or not self._process.is_alive:
            message = f"broker {self.id} is not running"
            raise BrokerError(message)
        return self._process

    def _prepare(self, installation: Installation, ports: Mapping[int, Ports]) -> list[str]:
        """Write what the node reads at its start, and return its command."""
        config, data = self._ensemble.config, self._directory / "data"
        self._logs.mkdir(parents=True, exist_ok=True)
        properties = self._directory / "server.properties"
        properties.write_text(render(server_properties(config, self.id, ports, data)))
        if not (data / "meta.properties").exists():
            _format(data, installation.format, self._ensemble.cluster_id, self.id)
        return installation.kafka_command(config, properties, self._logs)

    def _launch(self, command: Sequence[str]) -> None:
        self.kill()  # lets go of a process that has ended
        scratch = self._ensemble.scratch
        self._process = JavaProcess(command, directory=self._directory, output=self._output, scratch=scratch)

    def _wait_until_known(self, port: int, expected: Collection[int], deadline: float) -> None:
        """Return once this broker answers requests and knows the expected nodes to be alive."""
        while not alive_nodes(port).issuperset(expected):
            if not self.is_alive:
                raise self._early_end()
            if time.monotonic() > deadline:
                message = f"broker {self.id} did not answer in time; its log ends with:\n{self.log_tail()}"
                raise BrokerError(message)
            time.sleep(_SECONDS_BETWEEN_PROBES)

    def _early_end(self) -> BrokerError:
        tail = self.log_tail(100)
        error = PortTakenError if "Address already in use" in tail else BrokerError
        return error(f"broker {self.id} ended while it started; its log ends with:\n{tail}")

    def _request_end(self) -> None:
        if self._process is not None:
            self._process.signal(signal.SIGTERM)
            self._process.signal(signal.SIGCONT)  # a frozen process would not hear of it

    def _finish_end(self) -> None:
        if self._process is not None and not self._process.ends_within(self._ensemble.config.stop_timeout):
            self._process.kill()


class Broker(Node):
    """An Apache Kafka of one node: `with Broker() as broker: ... broker.bootstrap_servers`."""

    def __init__(self, config: BrokerConfig | None = None, *, progress: Progress | None = None) -> None:
        """Prepare a broker that `start` or a `with` block runs.

        Args:
            config: The choices; the defaults suit tests.
            progress: Called with a line for people before anything that takes seconds, such as the first fetch.
        """
        super().__init__(_Ensemble(config or BrokerConfig(), 1, progress, self.stop), 1)

    def stop(self) -> None:
        """End in order, or by force when that takes too long, and remove the data if they are private."""
        super().stop()
        self._ensemble.close()

    def __enter__(self) -> Self:
        """Start."""
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self.stop()


class Cluster:
    """An Apache Kafka of several nodes, each a broker and a controller, with three replicas of which two must agree."""

    def __init__(self, nodes: int = 3, config: BrokerConfig | None = None, *, progress: Progress | None = None) -> None:
        """Prepare a cluster that `start` or a `with` block runs.

        Args:
            nodes: How many.
            config: The choices, the same for each node.
            progress: Called with a line for people before anything that takes seconds, such as the first fetch.
        """
        self._ensemble = _Ensemble(config or BrokerConfig(), nodes, progress, self.stop)
        self.brokers: Sequence[Node] = [Node(self._ensemble, node_id) for node_id in self._ensemble.ids]

    @property
    def bootstrap_servers(self) -> str:
        """Where clients connect, all nodes: the secured listeners if there are any."""
        return ",".join(broker.bootstrap_servers for broker in self.brokers)

    @property
    def admin_servers(self) -> str:
        """Where anybody may connect, all nodes, whatever the security."""
        return ",".join(broker.admin_servers for broker in self.brokers)

    def start(self) -> None:
        """Start the nodes that do not run, and return once each of them knows all of them."""
        _start_together(self._ensemble, [broker for broker in self.brokers if not broker.is_alive])

    def stop(self) -> None:
        """End all nodes at once, and remove the data if they are private."""
        if self._ensemble.config.data_dir is None:
            # An orderly end hands partitions over, and the last nodes would wait for a majority that is gone.
            for broker in self.brokers:
                broker.kill()
        else:
            for broker in self.brokers:
                broker._request_end()  # noqa: SLF001 - one module
            for broker in self.brokers:
                broker._finish_end()  # noqa: SLF001 - one module
        self._ensemble.close()

    def __enter__(self) -> Self:
        """Start."""
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self.stop()


def _start_together(ensemble: _Ensemble, nodes: Sequence[Node]) -> None:
    """Start some nodes of a cluster, on other ports if somebody takes those chosen at first.

    Once the cluster has run, its ports are what clients know: then a taken port is waited for instead.
    """
    if running := [node.id for node in nodes if node.is_alive]:
        message = f"already running: broker {running}"
        raise BrokerError(message)
    installation = ensemble.open()
    for attempts_left in reversed(range(_START_ATTEMPTS)):
        try:
            ensemble.ports = _attempt_start(installation, nodes, ensemble)
        except PortTakenError:
            if not attempts_left:
                raise
            time.sleep(_SECONDS_BETWEEN_ATTEMPTS)
        else:
            return


def _attempt_start(installation: Installation, nodes: Sequence[Node], ensemble: _Ensemble) -> dict[int, Ports]:
    deadline = time.monotonic() + ensemble.config.start_timeout
    with reserve_ports(len(ensemble.ids)) as free:
        ports = ensemble.ports or dict(zip(ensemble.ids, free, strict=True))
        commands = [node._prepare(installation, ports) for node in nodes]  # noqa: SLF001 - one module
    try:
        for node, command in zip(nodes, commands, strict=True):
            node._launch(command)  # noqa: SLF001 - one module
        for node in nodes:
            node._wait_until_known(ports[node.id].plain, {other.id for other in nodes}, deadline)  # noqa: SLF001
    except BaseException:
        for node in nodes:
            node.kill()
        raise
    return ports


def _format(data: Path, first_checkpoint: Path, cluster_id: str, node_id: int) -> None:
    """Do what `kafka-storage format` does; the identity goes last, because it says that the rest is there."""
    data.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(first_checkpoint, data / "bootstrap.checkpoint")
    identity = {"version": "1", "cluster.id": cluster_id, "node.id": str(node_id), "directory.id": _new_id()}
    (data / "meta.properties").write_text(render(identity))


def _new_id() -> str:
    """Make a UUID as Kafka writes them: in base 64, and never taken for an option of a command."""
    while (text := urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")).startswith("-"):
        pass
    return text
