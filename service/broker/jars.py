"""The jars of Kafka: fetched once, and checked against a committed list of sums before each use."""

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from service.broker.errors import BrokerError

MANIFEST_PATH = Path(__file__).parent.with_name("broker_jars.json")


@dataclass(frozen=True)
class Manifest:
    """The jars that may run: the coordinate they are fetched by, the SHA-256 of each, and the file that says so."""

    coordinate: str
    jars: dict[str, str]
    path: Path

    @classmethod
    def load(cls, path: Path = MANIFEST_PATH) -> "Manifest":
        """Read a committed manifest."""
        return cls(**json.loads(path.read_text()), path=path)

    def verify(self, directory: Path, cure: str) -> None:
        """Refuse a directory that does not hold exactly these jars.

        Args:
            directory: Where the jars are.
            cure: What the user should do about a difference.

        Raises:
            BrokerError: A jar is missing, unknown or different.
        """
        found = {path.name for path in directory.iterdir()}
        for name in sorted(found | self.jars.keys()):
            if problem := self._problem(directory / name, found):
                message = f"{name} in {directory} {problem}. {cure}"
                raise BrokerError(message)

    def _problem(self, jar: Path, found: set[str]) -> str | None:
        if jar.name not in found:
            return "is missing"
        if jar.name not in self.jars:
            return f"is not listed in {self.path.name}"
        if sha256(jar) != self.jars[jar.name]:
            return f"differs from its SHA-256 in {self.path.name}"
        return None


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(coordinate: str, directory: Path) -> None:
    """Fetch the jars of a coordinate, with what they depend on, into a new directory."""
    try:
        from jgo.env import EnvironmentBuilder, LinkStrategy  # noqa: PLC0415 - an optional extra
        from jgo.maven import MavenContext  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise missing_extra() from error
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=directory.parent) as scratch:
        # A repository of our own: nothing that other programs left on this machine gets in, nothing of ours gets out.
        context = MavenContext(repo_cache=Path(scratch, "repository"))
        builder = EnvironmentBuilder(context, Path(scratch, "environments"), LinkStrategy.COPY)
        try:
            jars = builder.from_endpoint(coordinate).all_jars
        except Exception as error:
            message = f"the jars of {coordinate} could not be fetched ({error}): check the network and start again"
            raise BrokerError(message) from error
        gathered = Path(scratch, "jars")
        gathered.mkdir()
        for jar in jars:
            shutil.move(jar, gathered / jar.name)
        # All or nothing: a fetch that was interrupted leaves no directory of this name.
        gathered.rename(directory)


def fetch_verified(manifest: Manifest, destination: Path) -> None:
    """Fetch the jars of a manifest into a new directory, which does not come to be if one is not what it should be.

    Raises:
        BrokerError: They cannot be fetched, or one is not what it should be.
    """
    with tempfile.TemporaryDirectory(prefix="unverified-", dir=destination.parent) as scratch:
        fetched = Path(scratch, "jars")
        fetch(manifest.coordinate, fetched)
        manifest.verify(fetched, "It was fetched just now and is not kept: ask whoever provides jars to this network")
        fetched.rename(destination)


def write_manifest(coordinate: str, path: Path = MANIFEST_PATH) -> None:
    """Fetch the coordinate anew, and trust what came: makes the manifest that is then reviewed and committed."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch, "jars")
        fetch(coordinate, directory)
        jars = {jar.name: sha256(jar) for jar in sorted(directory.iterdir())}
    path.write_text(json.dumps({"coordinate": coordinate, "jars": jars}, indent=2) + "\n")


def missing_extra() -> BrokerError:
    """Return the error of an installation without the packages of the embedded broker."""
    return BrokerError("the embedded broker needs two more packages: pip install 'softmax-service[demo]'")
