"""The command line: help, settings, exit codes and messages; all that needs no broker."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

import jsonschema  # type: ignore[import-untyped]  # it ships no types
import pytest
import yaml

import service
from service import cli
from service.errors import (
    BrokerUnusableError,
    ConfigurationError,
    DeadLetterLimitError,
    ExitCode,
    LostProgressError,
    ServiceError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PLANTED: Final = "pl4nted-s3cret"

# What each command says of itself.
COMMANDS: Final = {
    "": "probabilities",
    "run": "Serve",
    "check": "Reach the broker",
    "topics": "topics of the settings",
    "topics create": "Create the topics",
    "produce": "sample messages",
    "tail": "Print outputs",
    "transform": "without Kafka",
    "explain": "understands messages",
    "demo": "on this machine",
    "dead-letters": "refused records",
    "dead-letters list": "how many for each reason",
    "dead-letters show": "how the service understands its value",
    "dead-letters replay": "back to the input topic",
    "config": "the settings",
    "config check": "whether the settings are right",
    "config show": "effective settings",
    "config schema": "JSON schema",
}


def environment(settings: dict[str, str]) -> dict[str, str]:
    """The environment of a process that sees no settings but these."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SOFTMAX_")}
    return {**inherited, **{f"SOFTMAX_{name}": value for name, value in settings.items()}}


def command(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the command in this process, where it is quick; only what does not get as far as an event loop."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ, environment(settings), clear=True),
        mock.patch.object(sys, "argv", ["softmax-service", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as end,
    ):
        cli.main()
    code = end.value.code
    assert isinstance(code, int)
    return subprocess.CompletedProcess(["softmax-service", *arguments], code, out.getvalue(), err.getvalue())


def process(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a process of its own."""
    return subprocess.run(  # noqa: S603 - this very program
        [sys.executable, "-m", "service", *arguments],
        env=environment(settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port of 127.0.0.1 on which somebody else listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port of 127.0.0.1 on which nobody listens, and nobody else can for now."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


# --- help -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_describes_itself(name: str) -> None:
    asked = command(*name.split(), "--help")
    assert asked.returncode == ExitCode.DRAINED
    assert asked.stderr == ""
    assert COMMANDS[name] in " ".join(asked.stdout.split())
    usage, _, _ = asked.stdout.partition("\n\n")
    assert f"{name} [OPTIONS]".lstrip() in " ".join(usage.split())


def test_the_table_of_these_tests_names_every_command() -> None:
    def below(group: Any, above: str) -> Iterator[str]:
        yield above
        for name, child in getattr(group, "commands", {}).items():
            yield from below(child, f"{above} {name}".strip())

    import typer.main  # noqa: PLC0415 - only here

    assert set(below(typer.main.get_command(cli.app), "")) == set(COMMANDS)


def test_the_help_names_every_exit_code_that_a_command_can_end_with() -> None:
    told = {int(code) for code in re.findall(r"\b\d+\b", cli.EXIT_CODES)}
    raised = {
        kind.code
        for kind in (
            ConfigurationError,
            BrokerUnusableError,
            DeadLetterLimitError,
            LostProgressError,
            ServiceError,
        )
    }
    assert told == {*raised, ExitCode.DRAINED, ExitCode.REFUSED}


def test_help_is_instant_for_it_imports_neither_numpy_nor_a_kafka_client() -> None:
    heavy = {"numpy", "aiokafka", "aiohttp", "prometheus_client", "structlog", "msgpack", "service.settings"}
    program = f"""
import contextlib, io, sys
from service.cli import main
for arguments in {[name.split() for name in COMMANDS]!r}:
    sys.argv = ["softmax-service", *arguments, "--help"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main()
print(*(set(sys.modules) & {heavy!r}))
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)  # noqa: S603 - this very program
    assert ran.stdout.split() == []


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted where Linux shows them")
def test_numpy_starts_no_threads_although_the_settings_import_it_early() -> None:
    program = """
import os
import service.cli, service.settings, service.app
print(len(os.listdir("/proc/self/task")))
"""
    free = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=free)  # noqa: S603 - this very program
    assert ran.stdout.split() == ["1"]


def test_the_version_is_that_of_the_package() -> None:
    for asked in (command("--version"), process("--version")):
        assert (asked.returncode, asked.stdout) == (0, f"softmax-service {service.__version__}\n")


def test_the_installed_command_is_the_same_as_the_module() -> None:
    script = Path(sys.executable).with_name("softmax-service")
    ran = subprocess.run([script, "--help"], capture_output=True, text=True, check=True)  # noqa: S603 - this very program
    assert ran.stdout == process("--help").stdout.replace("python -m service", "softmax-service")


@pytest.mark.parametrize("arguments", [("nonsense",), ("topics", "nonsense"), ("run", "--nonsense"), ("run", "extra")])
def test_a_command_that_does_not_exist_ends_with_2_and_a_hint(arguments: tuple[str, ...]) -> None:
    asked = command(*arguments)
    assert asked.returncode == ExitCode.CONFIGURATION
    assert asked.stdout == ""
    assert arguments[-1] in asked.stderr
    assert "--help" in asked.stderr


@pytest.mark.parametrize("arguments", [(), ("topics",), ("config",)])
def test_without_a_command_the_commands_are_listed(arguments: tuple[str, ...]) -> None:
    asked = command(*arguments)
    assert asked.returncode == ExitCode.CONFIGURATION
    assert "Commands:" in asked.stdout + asked.stderr


@pytest.mark.parametrize(
    "arguments",
    [("produce", "--malformed", "2"), ("produce", "--count", "0"), ("tail", "--top", "0"), ("demo", "--classes", "1")],
)
def test_an_option_out_of_range_is_refused_by_its_name(arguments: tuple[str, ...]) -> None:
    asked = command(*arguments)
    assert asked.returncode == ExitCode.CONFIGURATION
    assert arguments[1] in asked.stderr


# --- config -----------------------------------------------------------------------------------


def test_right_settings_are_said_to_be_right() -> None:
    asked = command("config", "check", HTTP__PORT="1")
    assert (asked.returncode, asked.stdout, asked.stderr) == (0, "The settings are right.\n", "")


def test_what_config_show_prints_is_a_settings_file_that_shows_the_same(tmp_path: Path) -> None:
    chosen = {"KAFKA__GROUP_ID": "g: #1", "HEADERS__DROP": '["ce_*"]', "HTTP__STALL_SECONDS": "2.5"}
    shown = command("config", "show", **chosen)
    assert shown.returncode == 0
    assert yaml.safe_load(shown.stdout)["kafka"]["group_id"] == "g: #1"
    file = tmp_path / "shown.yaml"
    file.write_text(shown.stdout)
    for option in ("--config", "-c"):
        assert command("config", "show", option, str(file)).stdout == shown.stdout


def test_the_schema_is_one_and_accepts_what_config_show_prints() -> None:
    schema = json.loads(command("config", "schema").stdout)
    validator = jsonschema.validators.validator_for(schema)
    validator.check_schema(schema)
    shown = yaml.safe_load(command("config", "show", KAFKA__SASL_PASSWORD=PLANTED).stdout)
    validator(schema).validate(shown)


@pytest.mark.parametrize(
    "wrong", [{"http": {"port": 65_536}}, {"kafka": {"grop_id": "x"}}, {"nonsense": {}}, {"headers": {"drop": "x"}}]
)
def test_the_schema_refuses_what_the_service_refuses(wrong: dict[str, Any]) -> None:
    schema = json.loads(command("config", "schema").stdout)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema)


def test_every_setting_is_described_in_the_schema() -> None:
    sections = json.loads(command("config", "schema").stdout)["$defs"]
    undescribed = [
        f"{section}.{name}"
        for section, content in sections.items()
        for name, setting in content["properties"].items()
        if not setting.get("description")
    ]
    assert undescribed == []


def test_config_show_masks_secrets_wherever_they_come_from(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(PLANTED)
    file = tmp_path / "settings.yaml"
    file.write_text(f"kafka: {{ssl_keyfile_password: {PLANTED}}}\n")
    shown = command("config", "show", "--config", str(file), KAFKA__SASL_PASSWORD_FILE=str(secret))
    assert shown.returncode == 0
    assert PLANTED not in shown.stdout + shown.stderr
    masked = yaml.safe_load(shown.stdout)["kafka"]
    assert masked["sasl_password"] == masked["ssl_keyfile_password"] == "**********"


@pytest.mark.parametrize("name", ["run", "check", "topics create", "produce", "tail", "config check", "config show"])
def test_wrong_settings_end_every_command_with_2_and_a_message_without_secrets(name: str) -> None:
    asked = command(*name.split(), HTTP__PORT="eighty", KAFKA__GROP_ID="x", KAFKA__SASL_PASSWORD=PLANTED)
    assert asked.returncode == ExitCode.CONFIGURATION
    assert asked.stdout == ""
    assert asked.stderr.startswith("softmax-service: The settings are wrong")
    assert "http.port" in asked.stderr
    assert "did you mean kafka.group_id (SOFTMAX_KAFKA__GROUP_ID)?" in asked.stderr
    assert "Traceback" not in asked.stderr
    assert PLANTED not in asked.stderr


def test_a_process_ends_with_2_too_where_the_settings_are_wrong() -> None:
    asked = process("config", "check", HTTP__PORT="eighty", KAFKA__SASL_PASSWORD=PLANTED)
    assert asked.returncode == ExitCode.CONFIGURATION
    assert "http.port" in asked.stderr
    assert PLANTED not in asked.stderr


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "Cannot read"),
        ("kafka: [", "is not YAML at line 1"),
        ("- a\n", "mapping"),
        ("log: {levl: x}", "log.level"),
    ],
)
def test_a_settings_file_that_cannot_be_used_ends_with_2_and_why(text: str | None, told: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    if text is not None:
        file.write_text(text)
    asked = command("config", "check", "--config", str(file))
    assert asked.returncode == ExitCode.CONFIGURATION
    assert told in asked.stderr


# --- ends -------------------------------------------------------------------------------------


def test_a_taken_port_ends_run_with_2_before_it_looks_for_kafka(taken_port: int) -> None:
    asked = process("run", HTTP__PORT=str(taken_port))
    assert asked.returncode == ExitCode.CONFIGURATION
    assert f"Cannot listen on 127.0.0.1:{taken_port}: another process does. Set http.port" in asked.stderr
    assert "Traceback" not in asked.stderr


@pytest.mark.parametrize("name", ["run", "check", "topics create", "produce --count 1", "tail"])
def test_a_broker_that_cannot_be_reached_ends_with_3_and_the_setting_to_check(name: str, silent_port: int) -> None:
    servers = f"127.0.0.1:{silent_port}"
    asked = process(
        *name.split(),
        KAFKA__BOOTSTRAP_SERVERS=servers,
        KAFKA__REQUEST_TIMEOUT_MS="500",
        DELIVERY__RETRY_DEADLINE_MS="500",
        KAFKA__SASL_PASSWORD=PLANTED,
        HTTP__PORT="0",
        LOG__LEVEL="debug",
    )
    assert asked.returncode == ExitCode.BROKER
    last = asked.stderr.splitlines()[-1]
    assert last.startswith(f"softmax-service: Cannot reach Kafka at {servers}")
    assert "kafka.bootstrap_servers" in last
    assert "Traceback" not in asked.stderr
    assert PLANTED not in asked.stdout + asked.stderr


def test_the_exit_codes_are_those_documented() -> None:
    assert {code.name: int(code) for code in ExitCode} == {
        "DRAINED": 0,
        "REFUSED": 1,
        "CONFIGURATION": 2,
        "BROKER": 3,
        "DEAD_LETTER_LIMIT": 4,
        "LOST_PROGRESS": 5,
        "BUG": 70,
    }


@pytest.mark.parametrize(
    ("kind", "code"), [(ConfigurationError, 2), (BrokerUnusableError, 3), (LostProgressError, 5), (ServiceError, 70)]
)
def test_an_error_ends_the_command_with_its_code_its_problem_and_its_cure(
    kind: type[ServiceError], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "app", raiser(kind("It is wrong", "Set it right")))
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == code
    assert capsys.readouterr().err == "softmax-service: It is wrong. Set it right.\n"


def test_an_error_without_a_cure_is_one_sentence() -> None:
    error = ServiceError("It is wrong")
    assert (str(error), error.cure) == ("It is wrong.", "")


def test_a_bug_ends_with_70_a_traceback_and_a_request_to_report_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "app", raiser(ZeroDivisionError("never mind")))
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == ExitCode.BUG
    told = capsys.readouterr().err
    assert "ZeroDivisionError: never mind" in told
    assert told.endswith("softmax-service: this is a bug; please report it with the lines above.\n")


def test_ctrl_c_ends_with_the_shell_s_code_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "app", raiser(KeyboardInterrupt()))
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 128 + 2
    assert capsys.readouterr().err == ""


def raiser(error: BaseException) -> Callable[..., None]:
    def app(**_: object) -> None:
        raise error

    return app
