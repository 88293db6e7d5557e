"""Settings: what they are without any, where they come from, and how a wrong one is told."""

from __future__ import annotations

import json
import socket
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr, ValidationError

from service.errors import ConfigurationError, ExitCode
from service.settings import Settings, environment_name, load

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB: Final = 1 << 20
PLANTED: Final = "pl4nted-s3cret"

DEFAULTS: Final[dict[str, object]] = {
    "kafka.bootstrap_servers": "localhost:9092",
    "kafka.group_id": "softmax-service",
    "kafka.client_id": socket.gethostname(),
    "kafka.isolation_level": "read_committed",
    "kafka.group_instance_id": None,
    "kafka.client_rack": None,
    "kafka.security_protocol": "PLAINTEXT",
    "kafka.sasl_username": None,
    "kafka.sasl_password": None,
    "kafka.sasl_oauth_token_url": None,
    "kafka.sasl_oauth_client_id": None,
    "kafka.sasl_oauth_client_secret": None,
    "kafka.sasl_oauth_scope": "",
    "kafka.sasl_aws_region": None,
    "kafka.ssl_cafile": None,
    "kafka.ssl_certfile": None,
    "kafka.ssl_keyfile": None,
    "kafka.ssl_keyfile_password": None,
    "kafka.compression": "none",
    "kafka.idempotent_producer": True,
    "kafka.whole_batches": True,
    "kafka.session_timeout_ms": 30_000,
    "kafka.request_timeout_ms": 10_000,
    "kafka.metadata_max_age_ms": 60_000,
    "topics.input": "logits",
    "topics.output": "probabilities",
    "topics.dead_letter": "logits.dead-letter",
    "topics.tombstones": "dead_letter",
    "headers.drop": (),
    "delivery.guarantee": "at_least_once",
    "delivery.partitioning": "same",
    "delivery.commit_interval_ms": 1000,
    "delivery.drain_timeout_ms": 10_000,
    "delivery.retry_deadline_ms": 120_000,
    "delivery.transaction_timeout_ms": 60_000,
    "delivery.start_offset": "earliest",
    "delivery.on_offset_lost": "stop",
    "batch.max_records": 16_384,
    "batch.max_bytes": 4 * MIB,
    "batch.max_delay_ms": 0,
    "limits.max_message_bytes": MIB,
    "limits.max_classes": 1_000_000,
    "limits.in_flight_bytes": 64 * MIB,
    "limits.dead_letter_max_run": 1000,
    "limits.dead_letter_max_ratio": 0.5,
    "output.dtype": "auto",
    "models": {},
    "models_strict": False,
    "http.host": "127.0.0.1",
    "http.port": 8080,
    "http.show_payloads": False,
    "metrics.predictions": True,
    "tracing.endpoint": None,
    "tracing.sample_ratio": 1.0,
    "log.level": "info",
}

# A value for each setting that is not its default: as text in the environment, and what becomes of it.
OTHERS: Final[dict[str, tuple[str, object]]] = {
    "kafka.bootstrap_servers": ("a:1,b:2", "a:1,b:2"),
    "kafka.group_id": ("g", "g"),
    "kafka.client_id": ("c-1", "c-1"),
    "kafka.group_instance_id": ("i", "i"),
    "kafka.client_rack": ("r", "r"),
    "kafka.isolation_level": ("read_uncommitted", "read_uncommitted"),
    "kafka.compression": ("zstd", "zstd"),
    "kafka.idempotent_producer": ("false", False),
    "kafka.whole_batches": ("false", False),
    "kafka.session_timeout_ms": ("45000", 45_000),
    "kafka.request_timeout_ms": ("500", 500),
    "kafka.metadata_max_age_ms": ("700", 700),
    "kafka.security_protocol": ("SSL", "SSL"),
    "kafka.sasl_mechanism": ("SCRAM-SHA-512", "SCRAM-SHA-512"),
    "kafka.sasl_username": ("u", "u"),
    "kafka.sasl_password": ("p", SecretStr("p")),
    "kafka.sasl_oauth_token_url": ("https://login/token", "https://login/token"),
    "kafka.sasl_oauth_client_id": ("i", "i"),
    "kafka.sasl_oauth_client_secret": ("s", SecretStr("s")),
    "kafka.sasl_oauth_scope": ("kafka", "kafka"),
    "kafka.sasl_aws_region": ("eu-west-1", "eu-west-1"),
    "kafka.ssl_cafile": ("/ca.pem", Path("/ca.pem")),
    "kafka.ssl_certfile": ("/crt.pem", Path("/crt.pem")),
    "kafka.ssl_keyfile": ("/key.pem", Path("/key.pem")),
    "kafka.ssl_keyfile_password": ("q", SecretStr("q")),
    "kafka.ssl_check_hostname": ("false", False),
    "topics.input": ("in.1", "in.1"),
    "topics.output": ("out_1", "out_1"),
    "topics.dead_letter": ("dead-1", "dead-1"),
    "topics.tombstones": ("forward", "forward"),
    "headers.drop": ('["ce_*", "x"]', ("ce_*", "x")),
    "delivery.guarantee": ("exactly_once", "exactly_once"),
    "delivery.partitioning": ("key", "key"),
    "delivery.commit_interval_ms": ("50", 50),
    "delivery.drain_timeout_ms": ("2000", 2000),
    "delivery.retry_deadline_ms": ("3000", 3000),
    "delivery.transaction_timeout_ms": ("2500", 2500),
    "delivery.start_offset": ("latest", "latest"),
    "delivery.on_offset_lost": ("latest", "latest"),
    "batch.max_records": ("7", 7),
    "batch.max_bytes": ("8", 8),
    "batch.max_delay_ms": ("9", 9),
    "limits.max_message_bytes": ("1000", 1000),
    "limits.max_classes": ("10", 10),
    "limits.in_flight_bytes": (str(2 * MIB), 2 * MIB),
    "limits.dead_letter_max_run": ("0", 0),
    "limits.dead_letter_max_ratio": ("0.25", 0.25),
    "http.host": ("::1", "::1"),
    "http.port": ("0", 0),
    "http.stall_seconds": ("1.5", 1.5),
    "http.show_payloads": ("true", True),
    "metrics.predictions": ("false", False),
    "tracing.endpoint": ("https://collector:4318/v1/traces", "https://collector:4318/v1/traces"),
    "tracing.sample_ratio": ("0.25", 0.25),
    "output.dtype": ("float64", "float64"),
    "models_strict": ("true", True),
    "log.level": ("debug", "debug"),
    "log.format": ("json", "json"),
}
# A section for each name that the user gives; has its own tests.
NAMED: Final = {"models"}
# What else must be set for a value to be allowed.
COMPANIONS: Final = {"kafka.ssl_keyfile": {"SOFTMAX_KAFKA__SSL_CERTFILE": "/crt.pem"}}


def paths(section: type[BaseModel] = Settings, above: str = "") -> Iterator[str]:
    """The dotted name of every setting."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from paths(field.annotation, f"{above}{name}.")
        else:
            yield above + name


def value_of(settings: Settings, path: str) -> object:
    value: object = settings
    for name in path.split("."):
        value = getattr(value, name)
    return value


def nested(path: str, value: object) -> dict[str, Any]:
    for name in reversed(path.split(".")):
        value = {name: value}
    return value  # type: ignore[return-value]


def refusal(environment: dict[str, str] | None = None, file: Path | None = None) -> str:
    """The message with which settings are refused; with all that a traceback would show."""
    with pytest.raises(ConfigurationError) as caught:
        load(file, environment or {})
    assert caught.value.code is ExitCode.CONFIGURATION
    shown = "".join(traceback.format_exception(caught.value))
    assert PLANTED not in shown
    return str(caught.value)


@pytest.fixture
def yaml_file(tmp_path: Path) -> Path:
    return tmp_path / "softmax.yaml"


# --- values -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DEFAULTS)
def test_a_setting_that_nobody_sets_has_its_documented_default(path: str) -> None:
    assert value_of(load(environment={}), path) == DEFAULTS[path]


@pytest.mark.parametrize("path", OTHERS)
def test_every_setting_can_be_set_from_the_environment(path: str) -> None:
    given_text, expected = OTHERS[path]
    settings = load(environment={environment_name(path): given_text, **COMPANIONS.get(path, {})})
    assert value_of(settings, path) == expected
    assert value_of(load(environment={}), path) != expected


@pytest.mark.parametrize("path", OTHERS)
def test_every_setting_can_be_set_in_the_file(path: str, yaml_file: Path) -> None:
    given_text, expected = OTHERS[path]
    in_file = expected if isinstance(expected, bool | int | float) else given_text
    in_file = json.loads(given_text) if isinstance(expected, tuple) else in_file
    yaml_file.write_text(json.dumps(nested(path, in_file)))  # JSON is YAML
    assert value_of(load(yaml_file, COMPANIONS.get(path, {})), path) == expected


def test_the_tables_of_these_tests_name_every_setting() -> None:
    assert {*OTHERS, *NAMED} == set(paths())


def test_the_environment_wins_over_the_file_setting_by_setting(yaml_file: Path) -> None:
    yaml_file.write_text("kafka: {group_id: file, client_id: file}\nhttp: {port: 1}\n")
    settings = load(yaml_file, {"SOFTMAX_KAFKA__GROUP_ID": "environment"})
    assert (settings.kafka.group_id, settings.kafka.client_id, settings.http.port) == ("environment", "file", 1)


def test_without_an_argument_the_process_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTMAX_KAFKA__GROUP_ID", "of-the-process")
    assert load().kafka.group_id == "of-the-process"


def test_a_section_left_empty_in_the_file_is_filled_by_the_environment(yaml_file: Path) -> None:
    yaml_file.write_text("kafka:\n")
    assert load(yaml_file, {"SOFTMAX_KAFKA__GROUP_ID": "g"}).kafka.group_id == "g"


def test_an_empty_file_sets_nothing(yaml_file: Path) -> None:
    yaml_file.write_text("# nothing yet\n")
    assert load(yaml_file, {}) == load(environment={})


@pytest.mark.parametrize("name", ["SOFTMAX_CACHE_DIR", "SOFTMAX_TEST_REQUIRE_ALL", "SOFTMAX_TEST_", "OTHER__PORT"])
def test_variables_of_the_tools_around_the_service_are_no_settings(name: str) -> None:
    assert load(environment={name: "anything"}) == load(environment={})


def test_a_list_in_the_environment_is_written_as_json() -> None:
    assert load(environment={"SOFTMAX_HEADERS__DROP": '["ce_*"]'}).headers.drop == ("ce_*",)
    assert load(environment={"SOFTMAX_HEADERS__DROP": "[]"}).headers.drop == ()


def test_a_list_that_is_no_json_is_refused_with_how_to_write_it() -> None:
    message = refusal({"SOFTMAX_HEADERS__DROP": "[ce_*]"})
    assert "SOFTMAX_HEADERS__DROP" in message
    assert '["a", "b"]' in message


def test_nothing_of_the_settings_can_be_changed() -> None:
    settings = load(environment={})
    with pytest.raises(ValidationError, match="frozen"):
        settings.http.port = 1
    with pytest.raises(ValidationError, match="frozen"):
        settings.http = settings.http
    assert isinstance(settings.headers.drop, tuple)


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("SOFTMAX_KAFKA__GROP_ID", "kafka.group_id (SOFTMAX_KAFKA__GROUP_ID)"),
        ("SOFTMAX_KAFKA_GROUP_ID", "kafka.group_id (SOFTMAX_KAFKA__GROUP_ID)"),
        ("SOFTMAX_BATCH__MAX_RECORD", "batch.max_records (SOFTMAX_BATCH__MAX_RECORDS)"),
        ("SOFTMAX_TOPICS__DEADLETTER", "topics.dead_letter (SOFTMAX_TOPICS__DEAD_LETTER)"),
        ("SOFTMAX_HTPP__PORT", "http"),
    ],
)
def test_an_unknown_variable_is_refused_with_a_suggestion(name: str, suggestion: str) -> None:
    message = refusal({name: PLANTED})
    assert "is no setting; did you mean " in message
    assert suggestion in message


@pytest.mark.parametrize(
    ("text", "unknown", "suggestion"),
    [
        ("kafka: {grop_id: x}", "kafka.grop_id", "kafka.group_id (SOFTMAX_KAFKA__GROUP_ID)"),
        ("kafak: {group_id: x}", "kafak", "kafka"),
        ("kafka: {sasl_password_file: x}", "kafka.sasl_password_file", "kafka.sasl_password"),
    ],
)
def test_an_unknown_key_in_the_file_is_refused_with_a_suggestion(
    text: str, unknown: str, suggestion: str, yaml_file: Path
) -> None:
    yaml_file.write_text(text)
    assert f"{unknown} is no setting; did you mean {suggestion}" in refusal(file=yaml_file)


def test_what_resembles_no_setting_gets_no_suggestion() -> None:
    message = refusal({"SOFTMAX_QQQQQQQQ": "x"})
    assert "qqqqqqqq is no setting" in message
    assert "did you mean" not in message


def test_all_that_is_wrong_is_told_at_once() -> None:
    message = refusal({"SOFTMAX_HTTP__PORT": "x", "SOFTMAX_LOG__LEVEL": "loud", "SOFTMAX_NONSENSE": "1"})
    assert all(name in message for name in ("http.port", "log.level", "nonsense"))


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"SOFTMAX_HTTP__PORT": "eighty"}, ["http.port"]),
        ({"SOFTMAX_HTTP__PORT": "65536"}, ["http.port"]),
        ({"SOFTMAX_HTTP__PORT": "-1"}, ["http.port"]),
        ({"SOFTMAX_HTTP__PORT": ""}, ["http.port"]),
        ({"SOFTMAX_HTTP__STALL_SECONDS": "nan"}, ["http.stall_seconds"]),
        ({"SOFTMAX_HTTP__STALL_SECONDS": "0"}, ["http.stall_seconds"]),
        ({"SOFTMAX_TRACING__ENDPOINT": "collector:4318"}, ["tracing.endpoint", "http or https URL"]),
        ({"SOFTMAX_TRACING__SAMPLE_RATIO": "1.1"}, ["tracing.sample_ratio"]),
        ({"SOFTMAX_KAFKA__BOOTSTRAP_SERVERS": ""}, ["kafka.bootstrap_servers"]),
        ({"SOFTMAX_KAFKA__GROUP_ID": ""}, ["kafka.group_id"]),
        ({"SOFTMAX_KAFKA__COMPRESSION": "brotli"}, ["kafka.compression", "zstd"]),
        ({"SOFTMAX_KAFKA__IDEMPOTENT_PRODUCER": "perhaps"}, ["kafka.idempotent_producer"]),
        ({"SOFTMAX_KAFKA__REQUEST_TIMEOUT_MS": "0"}, ["kafka.request_timeout_ms"]),
        ({"SOFTMAX_KAFKA": "localhost"}, ["kafka"]),
        ({"SOFTMAX_BATCH__MAX_RECORDS": "0"}, ["batch.max_records"]),
        ({"SOFTMAX_HEADERS__DROP": "ce_*"}, ["headers.drop"]),
        ({"SOFTMAX_HEADERS__DROP": '["a", 1]'}, ["headers.drop.1"]),
        ({"SOFTMAX_TOPICS__INPUT": ""}, ["topics.input"]),
        ({"SOFTMAX_TOPICS__INPUT": ".."}, ["topics.input"]),
        ({"SOFTMAX_TOPICS__INPUT": "a b"}, ["topics.input"]),
        ({"SOFTMAX_TOPICS__INPUT": "grüße"}, ["topics.input"]),
        ({"SOFTMAX_TOPICS__INPUT": "a\n"}, ["topics.input"]),
        ({"SOFTMAX_TOPICS__INPUT": "x" * 250}, ["topics.input"]),
        ({"SOFTMAX_TOPICS__OUTPUT": "logits"}, ["topics", "input", "output", "dead_letter"]),
        ({"SOFTMAX_TOPICS__DEAD_LETTER": "probabilities"}, ["topics", "dead_letter"]),
        ({"SOFTMAX_KAFKA__SECURITY_PROTOCOL": "SASL_SSL"}, ["kafka", "sasl_username", "sasl_password"]),
        (
            {"SOFTMAX_KAFKA__SECURITY_PROTOCOL": "SASL_SSL", "SOFTMAX_KAFKA__SASL_MECHANISM": "OAUTHBEARER"},
            ["sasl_oauth_token_url", "sasl_oauth_client_id", "sasl_oauth_client_secret"],
        ),
        (
            {"SOFTMAX_KAFKA__SECURITY_PROTOCOL": "SASL_SSL", "SOFTMAX_KAFKA__SASL_MECHANISM": "AWS_MSK_IAM"},
            ["sasl_aws_region"],
        ),
        ({"SOFTMAX_KAFKA__SASL_OAUTH_TOKEN_URL": "login/token"}, ["kafka.sasl_oauth_token_url"]),
        ({"SOFTMAX_KAFKA__SSL_KEYFILE": "/key.pem"}, ["kafka", "ssl_keyfile", "ssl_certfile"]),
        ({"SOFTMAX_DELIVERY__DRAIN_TIMEOUT_MS": "30000"}, ["delivery.drain_timeout_ms", "kafka.session_timeout_ms"]),
        ({"SOFTMAX_DELIVERY__GUARANTEE": "at_most_once"}, ["delivery.guarantee"]),
        (
            {"SOFTMAX_DELIVERY__GUARANTEE": "exactly_once", "SOFTMAX_KAFKA__IDEMPOTENT_PRODUCER": "false"},
            ["delivery.guarantee", "kafka.idempotent_producer"],
        ),
        (
            {"SOFTMAX_DELIVERY__GUARANTEE": "exactly_once", "SOFTMAX_KAFKA__ISOLATION_LEVEL": "read_uncommitted"},
            ["delivery.guarantee", "kafka.isolation_level"],
        ),
        ({"SOFTMAX_DELIVERY__TRANSACTION_TIMEOUT_MS": "1000000"}, ["delivery.transaction_timeout_ms"]),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_setting(environment: dict[str, str], named: list[str]) -> None:
    message = refusal(environment)
    assert all(name in message for name in named), message


@pytest.mark.parametrize("length", [1, 249])
def test_topic_names_may_be_as_long_as_kafka_allows(length: int) -> None:
    assert load(environment={"SOFTMAX_TOPICS__INPUT": "x" * length}).topics.input == "x" * length


@pytest.mark.parametrize("text", ["- kafka\n- http\n", "just words\n", "42\n"])
def test_a_file_that_holds_no_mapping_is_refused(text: str, yaml_file: Path) -> None:
    yaml_file.write_text(text)
    message = refusal(file=yaml_file)
    assert str(yaml_file) in message
    assert "mapping" in message


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("kafka: [\n", 2),
        ("kafka:\n  group_id: x\n bad\n", 3),
        ("http:\n\tport: 1\n", 2),
        ("http: {port: 1}\n---\nhttp: {port: 2}\n", 2),
        ("http: !!python/object:os.system {}\n", 1),
    ],
)
def test_broken_yaml_is_refused_with_the_line(text: str, line: int, yaml_file: Path) -> None:
    yaml_file.write_text(text)
    assert f"{yaml_file} is not YAML at line {line}." in refusal(file=yaml_file)


@pytest.mark.parametrize("data", [b"\xff\xfe\xff", b"\x00", b"kafka: {group_id: \xe9}"])
def test_a_file_that_is_no_text_is_refused(data: bytes, yaml_file: Path) -> None:
    yaml_file.write_bytes(data)
    assert f"{yaml_file} is not YAML" in refusal(file=yaml_file)


def test_a_file_that_cannot_be_read_is_refused_with_the_reason(tmp_path: Path) -> None:
    missing = refusal(file=tmp_path / "absent.yaml")
    assert "absent.yaml" in missing
    assert "No such file" in missing
    assert "--config" in missing
    assert "directory" in refusal(file=tmp_path)


def test_keys_that_are_no_text_are_refused(yaml_file: Path) -> None:
    yaml_file.write_text("http: {8080: port}\n")
    assert "http.8080" in refusal(file=yaml_file)


# --- secrets ----------------------------------------------------------------------------------

SECRETS: Final = ("kafka.sasl_password", "kafka.sasl_oauth_client_secret", "kafka.ssl_keyfile_password")


def assert_masked(settings: Settings) -> None:
    for shown in (repr(settings), str(settings), repr(settings.kafka), json.dumps(settings.shown())):
        assert PLANTED not in shown
    assert "***" in json.dumps(settings.shown())


@pytest.mark.parametrize("path", SECRETS)
def test_a_secret_is_known_to_the_code_and_shown_to_nobody(path: str) -> None:
    settings = load(environment={environment_name(path): PLANTED})
    secret = value_of(settings, path)
    assert isinstance(secret, SecretStr)
    assert secret.get_secret_value() == PLANTED
    assert_masked(settings)


@pytest.mark.parametrize("path", SECRETS)
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_secret_may_come_from_a_file_whose_last_line_end_is_no_part_of_it(
    path: str, end: str, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    file.write_bytes(f" {PLANTED} {end}".encode())
    settings = load(environment={f"{environment_name(path)}_FILE": str(file)})
    secret = value_of(settings, path)
    assert isinstance(secret, SecretStr)
    assert secret.get_secret_value() == f" {PLANTED} "
    assert_masked(settings)


def test_a_secret_file_that_is_missing_or_no_text_is_refused_by_the_variable_and_the_file(tmp_path: Path) -> None:
    name = "SOFTMAX_KAFKA__SASL_PASSWORD_FILE"
    for file in (tmp_path / "absent", tmp_path):
        message = refusal({name: str(file)})
        assert name in message
        assert str(file) in message
    binary = tmp_path / "binary"
    binary.write_bytes(PLANTED.encode() + b"\xff")
    assert name in refusal({name: str(binary)})


def test_only_secrets_may_come_from_files() -> None:
    message = refusal({"SOFTMAX_KAFKA__GROUP_ID_FILE": "/etc/hostname"})
    assert "kafka.group_id_file is no setting" in message


@pytest.mark.parametrize(
    "wrong",
    [
        {"SOFTMAX_KAFKA__SESSION_TIMEOUT_MS": "soon"},
        {"SOFTMAX_KAFKA__SECURITY_PROTOCOL": "SASL_SSL"},
        {"SOFTMAX_KAFKA__SECURITY_PROTOCOL": "sasl"},
        {"SOFTMAX_KAFKA__SSL_KEYFILE": "/key.pem"},
        {"SOFTMAX_DELIVERY__DRAIN_TIMEOUT_MS": "30000"},
        {"SOFTMAX_KAFKA__SASL_PASWORD": PLANTED},
        {"SOFTMAX_KAFKA__SASL_PASSWORD__X": PLANTED},
        {"SOFTMAX_KAFKA": f"sasl_password={PLANTED}"},
    ],
)
def test_a_wrong_neighbour_does_not_tell_a_secret(wrong: dict[str, str]) -> None:
    planted = {"SOFTMAX_KAFKA__SASL_PASSWORD": PLANTED, "SOFTMAX_KAFKA__SSL_KEYFILE_PASSWORD": PLANTED}
    assert refusal(planted | wrong)


@pytest.mark.parametrize(
    "text",
    [
        f"kafka:\n  sasl_password: {PLANTED}\n  session_timeout_ms: soon\n",
        f"kafka:\n  sasl_password: {PLANTED}\n bad\n",
        f"kafka:\n  sasl_password: [{PLANTED}]\n",
        f'kafka:\n  sasl_password: "{PLANTED}\n',
        f"kafka: {PLANTED}\n",
        f"{PLANTED}\n",
    ],
)
def test_a_wrong_file_does_not_tell_a_secret_that_is_in_it(text: str, yaml_file: Path) -> None:
    yaml_file.write_text(text)
    assert refusal(file=yaml_file)


def test_a_wrong_neighbour_does_not_tell_a_secret_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(PLANTED)
    message = refusal({"SOFTMAX_KAFKA__SASL_PASSWORD_FILE": str(file), "SOFTMAX_KAFKA__SESSION_TIMEOUT_MS": "soon"})
    assert "kafka.session_timeout_ms" in message


# --- anything ---------------------------------------------------------------------------------

NAMES: Final = st.sampled_from(
    [
        *map(environment_name, paths()),
        *(environment_name(path) + "_FILE" for path in SECRETS),
        *map(environment_name, Settings.model_fields),
        "SOFTMAX_",
        "SOFTMAX___",
        "SOFTMAX_KAFKA__",
        "SOFTMAX_KAFKA__SASL_PASSWORD__FILE",
        "SOFTMAX_HEADERS__DROP__0",
    ]
) | st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0="), max_size=12).map("SOFTMAX_".__add__)
# The environment holds anything but NUL; undecodable bytes appear as lone surrogates.
ANYTHING: Final = st.text(st.characters(blacklist_characters="\0"), max_size=40)
VALUES: Final = ANYTHING | ANYTHING.map("[".__add__) | st.integers().map(str) | st.lists(ANYTHING).map(json.dumps)


@hypothesis_settings(deadline=None)
@example({"SOFTMAX_KAFKA__GROUP_ID": "\udcff"})
@example({"SOFTMAX_HTTP__PORT": "9" * 5000})
@example({"SOFTMAX_HEADERS__DROP": "[" + "9" * 5000 + "]"})
@given(st.dictionaries(NAMES, VALUES, max_size=6))
def test_no_environment_whatever_raises_anything_but_a_configuration_error(environment: dict[str, str]) -> None:
    try:
        settings = load(environment=environment)
    except ConfigurationError as error:
        assert str(error).endswith(".")  # noqa: PT017 - which of the two happens is open
    else:
        assert isinstance(settings, Settings)


@pytest.mark.parametrize("secret", ["[pass", "[1]"])
def test_a_password_may_begin_with_a_bracket(secret: str) -> None:
    settings = load(environment={"SOFTMAX_KAFKA__SASL_PASSWORD": secret})
    assert settings.kafka.sasl_password == SecretStr(secret)


def test_a_list_nested_too_deep_is_refused() -> None:
    assert "SOFTMAX_HEADERS__DROP" in refusal({"SOFTMAX_HEADERS__DROP": "[" * 100_000})


def test_a_file_nested_too_deep_is_refused(yaml_file: Path) -> None:
    yaml_file.write_text("[" * 5000 + "]" * 5000)
    assert str(yaml_file) in refusal(file=yaml_file)


@pytest.mark.parametrize("scalar", ["2020-13-45", "0b_", "1" * 5000])
def test_a_file_with_an_impossible_date_or_number_is_refused(scalar: str, yaml_file: Path) -> None:
    yaml_file.write_text(f"kafka: {{client_id: {scalar}}}\n")
    assert str(yaml_file) in refusal(file=yaml_file)


def test_a_value_for_a_whole_section_is_refused_in_whatever_order() -> None:
    names = ("SOFTMAX_KAFKA__GROUP_ID", "SOFTMAX_KAFKA")
    assert "kafka" in refusal(dict.fromkeys(names, "x"))
    assert "kafka" in refusal(dict.fromkeys(reversed(names), "x"))


def test_a_section_that_is_no_mapping_is_refused_although_the_environment_sets_it_too(yaml_file: Path) -> None:
    yaml_file.write_text("kafka: nonsense\n")
    assert "kafka" in refusal({"SOFTMAX_KAFKA__GROUP_ID": "g"}, yaml_file)


def test_a_secret_given_both_directly_and_as_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("one")
    name = "SOFTMAX_KAFKA__SASL_PASSWORD"
    assert name in refusal({f"{name}_FILE": str(file), name: "another"})


def test_a_wrong_value_is_told_with_where_it_came_from(yaml_file: Path) -> None:
    yaml_file.write_text("http: {port: x}\n")
    assert str(yaml_file) in refusal(file=yaml_file)
    assert "SOFTMAX_HTTP__PORT" in refusal({"SOFTMAX_HTTP__PORT": "x"})


def test_the_bare_prefix_is_refused_by_its_name() -> None:
    assert "SOFTMAX_" in refusal({"SOFTMAX_": "x"})
