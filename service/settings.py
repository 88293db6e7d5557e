"""The settings: one frozen tree, read from the environment and a YAML file, here and nowhere else."""

from __future__ import annotations

import difflib
import json
import os
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from service.errors import ConfigurationError
from service.transform.profiles import DEFAULT, Profile, Profiles

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PREFIX: Final = "SOFTMAX_"
MIB: Final = 1 << 20
MAX_TOPIC_NAME: Final = 249
MAX_PORT: Final = 65535

# Read by the embedded broker and the tests, not settings of the service.
_NOT_SETTINGS: Final = frozenset({"SOFTMAX_CACHE_DIR"})
_NOT_SETTINGS_PREFIX: Final = "SOFTMAX_TEST_"


def _topic_name(name: str) -> str:
    legal = 0 < len(name) <= MAX_TOPIC_NAME and name not in {".", ".."}
    if not legal or not all(c.isascii() and (c.isalnum() or c in "._-") for c in name):
        raise ValueError("a topic name has 1 to 249 letters, digits, dots, underscores or hyphens")
    return name


def _servers(servers: str) -> str:
    for server in servers.split(","):
        host, _, port = server.strip().rpartition(":")
        # Kafka knows no credentials here, but people do: they must not be shown.
        if "@" in host or "/" in host:
            raise ValueError("each is host:port alone, without a protocol and without credentials")
        if not host or not (port.isascii() and port.isdigit() and 0 < int(port) <= MAX_PORT):
            raise ValueError(f"{server.strip()!r} is not host:port")
    return servers


def _http_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("it must be an http or https URL")
    if parts.username is not None:
        raise ValueError("it must hold no user name or password, because it is shown")
    return url


def _labels(given: object) -> object:
    """Labels as they stand, or read from a file that has one a line."""
    if not isinstance(given, str):
        return given
    try:
        lines = Path(given).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        raise ValueError(f"cannot read {given}, which must be a UTF-8 text file with one label a line") from None
    if "" in lines:
        raise ValueError(f"line {lines.index('') + 1} of {given} is empty")
    return tuple(lines)


Labels = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    BeforeValidator(_labels),
    WithJsonSchema(
        {"anyOf": [{"type": "array", "items": {"type": "string", "minLength": 1}}, {"type": "string"}], "default": []}
    ),
]
TopicName = Annotated[str, AfterValidator(_topic_name)]
Milliseconds = Annotated[int, Field(ge=1, le=3_600_000)]


class Section(BaseModel):
    """A group of settings: immutable, and strict about names."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        # A validator sees secrets before they are wrapped.
        hide_input_in_errors=True,
    )


_PASSWORD: Final = ("sasl_username", "sasl_password")
# What each mechanism needs of the section `kafka`.
NEEDED_BY_SASL: Final = {
    "PLAIN": _PASSWORD,
    "SCRAM-SHA-256": _PASSWORD,
    "SCRAM-SHA-512": _PASSWORD,
    "OAUTHBEARER": ("sasl_oauth_token_url", "sasl_oauth_client_id", "sasl_oauth_client_secret"),
    "AWS_MSK_IAM": ("sasl_aws_region",),
}


class KafkaSettings(Section):
    """How to reach Kafka and who we are there."""

    bootstrap_servers: Annotated[str, AfterValidator(_servers)] = "localhost:9092"
    """Brokers to start from: host:port, separated by commas."""
    group_id: str = Field(default="softmax-service", min_length=1)
    """Consumer group; instances with the same one share the partitions."""
    client_id: str = Field(default_factory=socket.gethostname, min_length=1)
    """Name of this client in the broker's logs and quotas."""
    group_instance_id: str | None = None
    """Static membership: a name that stays the same over restarts calms rolling ones."""
    client_rack: str | None = None
    """Rack of this client, to fetch from the nearest replica."""
    isolation_level: Literal["read_committed", "read_uncommitted"] = "read_committed"
    """read_committed never publishes probabilities of aborted logits."""
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "none"
    """Compression of what the service writes."""
    idempotent_producer: bool = True
    """Keep the broker from storing a retried batch twice or out of order."""
    whole_batches: bool = True
    """Read and write whole record batches past aiokafka's public interface, which makes an object of each record."""
    session_timeout_ms: Milliseconds = 30_000
    """Silence after which the group considers this member dead."""
    metadata_max_age_ms: Milliseconds = 60_000
    """How old what is known of the topics may become: so long it takes until new partitions are noticed."""
    request_timeout_ms: Milliseconds = 10_000
    """How long one request to a broker may take."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """How to speak to the broker."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER", "AWS_MSK_IAM"] = "PLAIN"
    """How to authenticate under SASL. OAUTHBEARER gets its tokens by client credentials; AWS_MSK_IAM needs the extra
    `aws`."""
    sasl_username: str | None = None
    """User name under SASL."""
    sasl_password: SecretStr | None = None
    """Password under SASL; better given as a file in SOFTMAX_KAFKA__SASL_PASSWORD_FILE."""
    sasl_oauth_token_url: Annotated[str, AfterValidator(_http_url)] | None = None
    """Token endpoint for OAUTHBEARER."""
    sasl_oauth_client_id: str | None = None
    """Client id at the token endpoint."""
    sasl_oauth_client_secret: SecretStr | None = None
    """Client secret at the token endpoint; better given as a file."""
    sasl_oauth_scope: str = ""
    """Scope to ask the token endpoint for; empty: its own choice."""
    sasl_aws_region: str | None = None
    """AWS region of the cluster, for AWS_MSK_IAM; the credentials are those that the AWS SDK finds."""
    ssl_cafile: Path | None = None
    """Certificates to trust, PEM; the system's if absent."""
    ssl_certfile: Path | None = None
    """This client's certificate, PEM."""
    ssl_keyfile: Path | None = None
    """Key of this client's certificate, PEM."""
    ssl_keyfile_password: SecretStr | None = None
    """Password of that key."""
    ssl_check_hostname: bool = True
    """Whether the broker's certificate must name its host."""

    @model_validator(mode="after")
    def _complete(self) -> KafkaSettings:
        if self.security_protocol.startswith("SASL"):
            missing = [name for name in NEEDED_BY_SASL[self.sasl_mechanism] if not getattr(self, name)]
            if missing:
                raise ValueError(
                    f"security_protocol {self.security_protocol} with sasl_mechanism {self.sasl_mechanism} needs"
                    f" {' and '.join(missing)}"
                )
        if self.ssl_keyfile and not self.ssl_certfile:
            raise ValueError("ssl_keyfile needs ssl_certfile")
        return self


class TopicsSettings(Section):
    """Where messages come from and go to."""

    input: TopicName = "logits"
    """Topic of the logits."""
    output: TopicName = "probabilities"
    """Topic of the probabilities."""
    dead_letter: TopicName = "logits.dead-letter"
    """Topic of the records that were refused."""
    tombstones: Literal["dead_letter", "forward", "drop"] = "dead_letter"
    """What becomes of records without a value."""

    @model_validator(mode="after")
    def _distinct(self) -> TopicsSettings:
        if self.output == self.input or self.dead_letter in {self.input, self.output}:
            raise ValueError("input, output and dead_letter must be three different topics")
        return self


class HeadersSettings(Section):
    """What becomes of record headers."""

    drop: tuple[str, ...] = ()
    """Names of headers that are not passed on; * stands for anything, as in ce_*."""


class DeliverySettings(Section):
    """What is promised and within which time."""

    guarantee: Literal["at_least_once", "exactly_once"] = "at_least_once"
    """at_least_once: nothing is lost; after a crash a tail may be repeated. exactly_once: nor is anything repeated, for
    readers of committed records; the same for all members of a group."""
    partitioning: Literal["same", "key"] = "same"
    """same: output partition = input partition. key: by hash of the key, as the Java client does."""
    commit_interval_ms: Milliseconds = 1000
    """How often progress is committed."""
    drain_timeout_ms: Milliseconds = 10_000
    """How long a stop or a rebalance may wait for deliveries under way."""
    retry_deadline_ms: Milliseconds = 120_000
    """How long to wait for a broker that is away before giving up."""
    transaction_timeout_ms: int = Field(default=60_000, ge=2_000, le=900_000)
    """With exactly_once: how long Kafka keeps a transaction open whose owner is gone and has no successor."""
    start_offset: Literal["earliest", "latest"] = "earliest"
    """Where to begin on a partition for which the group has no commit."""
    on_offset_lost: Literal["stop", "earliest", "latest"] = "stop"
    """What to do where the next record has fallen off the log."""


class BatchSettings(Section):
    """When a micro-batch is full."""

    max_records: int = Field(default=16384, ge=1, le=1_000_000)
    """Most records in one."""
    max_bytes: int = Field(default=4 * MIB, ge=1)
    """Most bytes of values in one."""
    max_delay_ms: int = Field(default=0, ge=0, le=60_000)
    """How long to wait for more; 0: what has arrived while the last one was delivered."""


class LimitsSettings(Section):
    """What a message may ask of the service, and the service of its machine."""

    max_message_bytes: int = Field(default=MIB, ge=16)
    """Longest value; longer ones are refused."""
    max_classes: int = Field(default=1_000_000, ge=1)
    """Most classes; more are refused."""
    dead_letter_max_run: int = Field(default=1000, ge=0)
    """So many refused records in a row on a partition end the service with exit code 4; 0: no limit."""
    dead_letter_max_ratio: float = Field(default=0.5, gt=0, le=1)
    """A higher share of the last 10,000 records, refused, ends it too; 1: no limit."""
    in_flight_bytes: int = Field(default=64 * MIB, ge=MIB)
    """Most bytes of inputs whose outputs are not yet acknowledged."""


class OutputSettings(Section):
    """How probabilities leave."""

    dtype: Literal["auto", "float32", "float64"] = "auto"
    """Their width; auto: float64 where the logits are float64, else float32."""


class ModelSettings(Section):
    """How the messages of one model are read, and what their outputs hold."""

    temperature: float = 1.0
    """The logits' distances are divided by it."""
    classes: int | None = None
    """How many classes there must be; others are refused. The labels' number, if they are given."""
    labels: Labels = ()
    """Names of the classes in order: a list, or a file with one a line."""
    masked: tuple[int, ...] = ()
    """Indices of classes whose probability is forced to 0."""
    top_k: int | None = None
    """How many of the likeliest classes the output top_k holds."""
    outputs: tuple[str, ...] = ("probabilities",)
    """Fields that leave, in this order: probabilities, log_probabilities, predicted, label, confidence,
    entropy, margin, top_k."""

    @model_validator(mode="after")
    def _agrees(self) -> ModelSettings:
        self.profile(None)
        return self

    def profile(self, dtype: str | None) -> Profile:
        """These settings as the transform takes them."""
        return Profile(
            temperature=self.temperature,
            classes=self.classes,
            labels=self.labels,
            masked=self.masked,
            top_k=self.top_k,
            outputs=self.outputs,
            dtype=dtype,
        )


class HttpSettings(Section):
    """Where metrics and health are served."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=8080, ge=0, le=MAX_PORT)
    """Port to listen on; 0: any free one, which the log tells."""
    stall_seconds: float = Field(default=60, gt=0)
    """/livez fails after this long without progress although records wait and the broker answers."""
    show_payloads: bool = False
    """Whether the status page shows the first bytes of what was refused: whoever can open the page can read them."""


class MetricsSettings(Section):
    """What is measured beside the service's own work."""

    predictions: bool = True
    """Confidence and entropy of a sample of the distributions, to see a model drift."""


class TracingSettings(Section):
    """Where traces go."""

    endpoint: Annotated[str, AfterValidator(_http_url)] | None = None
    """OTLP over HTTP, as http://collector:4318/v1/traces; none: no traces. Needs the extra `otel`."""
    sample_ratio: float = Field(default=1.0, ge=0, le=1)
    """Share of the micro-batches that leave a trace."""


class LogSettings(Section):
    """What is logged and how."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severity that is logged."""
    format: Literal["auto", "console", "json"] = "auto"
    """auto: console on a terminal, else json."""


class Settings(Section):
    """All settings of Softmax Service."""

    kafka: KafkaSettings = KafkaSettings()
    topics: TopicsSettings = TopicsSettings()
    headers: HeadersSettings = HeadersSettings()
    delivery: DeliverySettings = DeliverySettings()
    batch: BatchSettings = BatchSettings()
    limits: LimitsSettings = LimitsSettings()
    output: OutputSettings = OutputSettings()
    models: dict[str, ModelSettings] = Field(default_factory=dict)
    """Profiles by the model's name, which a message gives in its field or header `model`; `default` is for the rest."""
    models_strict: bool = False
    """Whether a message that names a model without a profile is refused."""
    http: HttpSettings = HttpSettings()
    metrics: MetricsSettings = MetricsSettings()
    tracing: TracingSettings = TracingSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _keeps_its_promise(self) -> Settings:
        if self.delivery.guarantee == "exactly_once":
            if not self.kafka.idempotent_producer:
                raise ValueError("delivery.guarantee exactly_once needs kafka.idempotent_producer")
            if self.kafka.isolation_level != "read_committed":
                raise ValueError("delivery.guarantee exactly_once needs kafka.isolation_level read_committed")
        return self

    @model_validator(mode="after")
    def _drains_in_time(self) -> Settings:
        if self.delivery.drain_timeout_ms >= self.kafka.session_timeout_ms:
            raise ValueError("delivery.drain_timeout_ms must be less than kafka.session_timeout_ms")
        return self

    def profiles(self) -> Profiles:
        """The model profiles as the transform takes them."""
        dtype = None if self.output.dtype == "auto" else self.output.dtype
        profiles = {name: model.profile(dtype) for name, model in self.models.items()}
        default = profiles.pop(DEFAULT, Profile(dtype=dtype))
        return Profiles(profiles, default=default, strict=self.models_strict)

    def shown(self) -> dict[str, Any]:
        """The tree as plain values, secrets masked."""
        return self.model_dump(mode="json")


def load(file: Path | None = None, environment: Mapping[str, str] | None = None) -> Settings:
    """Read the settings; the environment wins over the file.

    Args:
        file: a YAML file.
        environment: the process's environment if absent.

    Raises:
        ConfigurationError: naming each setting that is unknown or wrong and where it came from.
    """
    sources: dict[tuple[str, ...], str] = {}
    tree = _from_file(file) if file else {}
    _merge(tree, _from_environment(os.environ if environment is None else environment, sources))
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        problems = _problems(error, sources, str(file) if file else "")
        raise ConfigurationError("\n".join(["The settings are wrong", *problems])) from None


def _from_file(file: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"Cannot read {file}: {error.strerror}", "Give --config a readable file") from None
    # A date or number that Python cannot make is a ValueError; nesting without end a RecursionError.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise ConfigurationError(f"{file} is not YAML{where}", "See the example in README.md") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigurationError(f"{file} does not hold a mapping of sections", "See the example in README.md")
    return tree


def _from_environment(environment: Mapping[str, str], sources: dict[tuple[str, ...], str]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, given in environment.items():
        if not name.startswith(PREFIX) or name in _NOT_SETTINGS or name.startswith(_NOT_SETTINGS_PREFIX):
            continue
        path = tuple(name.removeprefix(PREFIX).lower().split("__"))
        value: Any = given
        secret = (*path[:-1], path[-1].removesuffix("_file"))
        if secret != path and SecretStr in getattr(_kind(secret), "__args__", ()):
            if environment_name(".".join(secret)) in environment:
                raise ConfigurationError(f"Both {environment_name('.'.join(secret))} and {name} are set", "Keep one")
            path, value = secret, _secret(name, given)
        elif getattr(_kind(path), "__origin__", None) is tuple and given[:1] == "[":
            value = _list(name, given)
        sources[path] = name
        _merge(tree, _nest(path, value))
    return tree


def _secret(name: str, given: str) -> str:
    file = Path(given)
    try:
        return file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, ValueError):
        # What is no path may be the secret itself.
        known = file.is_absolute() and file.parent != Path(file.anchor) and file.parent.is_dir()
        what = str(file) if known else "the file, whose folder does not exist"
        raise ConfigurationError(f"{name}: cannot read {what}", "Let it name a readable text file") from None


def _list(name: str, given: str) -> Any:
    try:
        return json.loads(given)
    except (ValueError, RecursionError):
        raise ConfigurationError(f"{name} begins like a JSON list but is none", 'Write it as ["a", "b"]') from None


def _nest(path: tuple[str, ...], value: object) -> dict[str, Any]:
    for name in reversed(path):
        value = {name: value}
    return value  # type: ignore[return-value]


def _merge(tree: dict[str, Any], over: Mapping[str, Any]) -> None:
    for name, value in over.items():
        below = tree.get(name)
        if isinstance(below, dict) and isinstance(value, dict):
            _merge(below, value)
        elif below is not None and isinstance(below, dict) is not isinstance(value, dict):
            raise ConfigurationError(f"{name} is given both as a section and as a value", "Give only one of them")
        else:
            tree[name] = value


def _leaves(section: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _leaves(kind, (*path, name))
        else:
            yield (*path, name), kind


def _kind(path: tuple[str, ...]) -> Any:
    """The annotation of the setting at `path`, or `None` where there is none."""
    kind: Any = Settings
    for name in path:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            field = kind.model_fields.get(name)
            kind = field.annotation if field else None
        elif getattr(kind, "__origin__", None) is dict:
            kind = kind.__args__[1]
        else:
            return None
    return kind


def _problems(error: ValidationError, sources: Mapping[tuple[str, ...], str], file: str) -> Iterator[str]:
    names = [".".join(path) for path, _ in _leaves(Settings)]
    for problem in error.errors(include_url=False, include_input=False):
        place = tuple(map(str, problem["loc"]))
        path = ".".join(place)
        origin = [name for at, name in sources.items() if at[: len(place)] == place or place[: len(at)] == at] or [file]
        where = f" (from {', '.join(origin)})" if any(origin) else ""
        if problem["type"] == "extra_forbidden":
            of_models = [f"models.{name}.{field}" for name in place[1:2] for field in ModelSettings.model_fields]
            known = of_models if place[0] == "models" else [*names, *Settings.model_fields]
            close = difflib.get_close_matches(path, known, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]} ({environment_name(close[0])})?" if close else ""
            yield f"  {_name_alone(path) or origin[0]} is no setting{hint}{where}"
        else:
            said = problem["msg"].removeprefix("Value error, ")
            yield f"  {path or 'settings'}: {said[:1].lower()}{said[1:]}{where}"


def _name_alone(path: str) -> str:
    """A name as far as it can be one: in `{sasl_password:x}` YAML takes all of it for the name."""
    return re.split(r"[^\w.-]", path, maxsplit=1)[0]


def environment_name(path: str) -> str:
    """The environment variable of the setting `path`, as in `kafka.group_id`."""
    return PREFIX + path.upper().replace(".", "__")
