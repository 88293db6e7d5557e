"""No secret is told: each one planted in every way, the service run with it, and all that it says looked through."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import html
import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, get_args
from urllib.parse import quote, quote_plus

import pytest
import yaml
from aiohttp import web
from broker_security import Certificates, Sasl, TokenSigner
from confluent_kafka.admin import AdminClient, ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion
from harness import ServiceProcess, clean_environment, environment
from pydantic import BaseModel, SecretBytes, SecretStr, ValidationError

from service.broker import Broker, BrokerConfig
from service.settings import Settings, environment_name

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
    from pathlib import Path

# --- which secrets there are ------------------------------------------------------------------


def leaves(kind: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All settings and their types, through optional ones and mappings of sections."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        for name, found in kind.model_fields.items():
            yield from leaves(found.annotation, f"{path}.{name}".lstrip("."))
    elif arguments := get_args(kind):
        for each in arguments:
            yield from leaves(each, path)
    else:
        yield path, kind


SECRETS: Final = sorted({path for path, kind in leaves(Settings) if kind in {SecretStr, SecretBytes}})
SOUNDS_SECRET: Final = re.compile(
    r"passw|secret|token|credential|api_?key|authorization|private|keyfile", re.IGNORECASE
)
# An address and a path.
ONLY_SOUND_SO: Final = {"kafka.sasl_oauth_token_url", "kafka.ssl_keyfile"}
# Where each is used by what follows: as `Entered` and `CASES` have it.
TRIED: Final = {"kafka.sasl_password", "kafka.sasl_oauth_client_secret", "kafka.ssl_keyfile_password"}


def test_every_secret_setting_is_tried() -> None:
    assert set(SECRETS) == TRIED, "a secret setting is new: let the cases of this file use it, right and wrong"


def test_what_sounds_like_a_secret_is_held_as_one() -> None:
    sounding = {path for path, _ in leaves(Settings) if SOUNDS_SECRET.search(path)}
    assert sounding - set(SECRETS) == ONLY_SOUND_SO


# --- what a leak is ---------------------------------------------------------------------------

# A part of a secret is one, too: what is told may be cut or wrapped.
PIECE: Final = 12


def planted(path: str, kind: str = "right") -> str:
    """A secret that stands nowhere else, with characters that change when it is quoted."""
    digits = hashlib.sha256(f"{kind} {path}".encode()).hexdigest()
    return "".join(f"{digits[8 * part :][:8]}{between}" for part, between in enumerate(("@:", "+/", " %", "&=", "")))


def word(of: str) -> str:
    """One without such characters, to stand in addresses and names."""
    return hashlib.sha256(of.encode()).hexdigest()[:32]


def forms(secret: str) -> Iterator[str]:
    """A secret as it is, and as it travels or is written down."""
    data = secret.encode()
    yield from (secret, quote(secret, safe=""), quote(secret), quote_plus(secret))
    yield from (json.dumps(secret), repr(secret), html.escape(secret), data.hex())
    for before in range(3):  # in front of it, as in a user name and a colon, or SASL PLAIN's zero bytes
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            inner = encode(b"." * before + data).decode()[4:-4]
            yield from (inner, quote(inner, safe=""))


def leaks(told: bytes, secrets: Iterable[str]) -> set[str]:
    """The pieces of secrets that stand in it."""
    text = told.decode(errors="replace")
    of_all = chain.from_iterable(map(forms, secrets))
    return {
        form[at : at + PIECE] for form in of_all for at in range(len(form) - PIECE + 1) if form[at : at + PIECE] in text
    }


@pytest.mark.parametrize(
    "tell",
    [
        lambda secret: secret,
        lambda secret: secret[3:20],
        lambda secret: f"{{'password': {secret!r}}}",
        lambda secret: quote(secret, safe=""),
        lambda secret: json.dumps({"x": secret}),
        lambda secret: repr(b"\0softmax\0" + secret.encode()),
        lambda secret: base64.b64encode(b"\0softmax\0" + secret.encode()).decode(),
        lambda secret: base64.b64encode(f"softmax:{secret}".encode()).decode(),
        lambda secret: base64.urlsafe_b64encode(f"id:{secret}".encode()).decode(),
        lambda secret: secret.encode().hex(),
    ],
    ids=["as it is", "cut", "repr", "URL", "JSON", "SASL", "SASL in base64", "Basic", "base64url", "hexadecimal"],
)
def test_a_leak_would_be_found(tell: Callable[[str], str]) -> None:
    for path in SECRETS:
        told = f"before {tell(planted(path))} after".encode()
        assert leaks(told, [planted(path)])
        assert not leaks(told, [planted(path, "wrong")])


# --- where it runs ----------------------------------------------------------------------------

# Every logger below this package's own tells all that it can: only what the service does against it holds it.
LOUD: Final = """
import logging
import aiokafka, aiohttp, asyncio, botocore.session, botocore.auth, botocore.parsers, urllib3
for name in [*logging.root.manager.loggerDict, "aiokafka.conn", "aiokafka.client", "asyncio"]:
    logging.getLogger(name).setLevel(logging.DEBUG)
{more}
from service.cli import main
main()
"""
# What it does against it, undone; and a text is told each time, or the first request would hide those behind it.
UNGUARDED: Final = """
import service.observability.logs as logs
logs._no_library_s_debug = lambda record: True
logs._Quieten.filter = lambda self, record: True
"""
HASTY: Final = {"kafka__request_timeout_ms": 5000, "delivery__retry_deadline_ms": 3000, "log__level": "debug"}
PAGES: Final = ("/", "/status.json", "/metrics", "/readyz", "/livez", "/status.js", "/nothing?here")
WAYS: Final = ("environment", "file", "yaml")


class TokenEndpoint:
    """Gives tokens to who knows the secret, and keeps them; others it answers as it is told to."""

    def __init__(self, signer: TokenSigner) -> None:
        self.tokens: list[str] = []
        self.traces: list[bytes] = []
        self._signer = signer

    async def take(self, request: web.Request) -> web.Response:
        login = base64.b64decode(request.headers["Authorization"].removeprefix("Basic ")).decode()
        # As badly as it can be done: all that was sent is in the answer.
        echo = f"{login} {request.headers['Authorization']}"
        answer = request.match_info["answer"]
        if answer == "page":
            return web.Response(text=echo)
        if answer == "redirection":
            return web.Response(status=302, headers={"Location": f"/token/sign?login={quote(echo)}"})
        if login != f"softmax:{planted('kafka.sasl_oauth_client_secret')}":
            return web.json_response({"error": echo}, status=500 if answer == "failure" else 401)
        self.tokens.append(self._signer.token("softmax"))
        return web.json_response({"access_token": self.tokens[-1], "expires_in": 300})

    async def collect(self, request: web.Request) -> web.Response:
        self.traces.append(await request.read())
        return web.Response()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        app = web.Application()
        app.add_routes([web.post("/token/{answer}", self.take), web.post("/v1/traces", self.collect)])
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


@dataclass
class Secured:
    """A broker that asks who is there, by every mechanism, over TLS; and what comes in with."""

    broker: Broker
    signer: TokenSigner
    cafile: Path
    client: tuple[Path, Path]


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secrets")
    certificates, signer = Certificates(folder), TokenSigner()
    keys = folder / "keys.json"
    keys.write_text(signer.key_set(), encoding="utf-8")
    password = planted("kafka.sasl_password")
    config = BrokerConfig(
        tmpfs=True,
        security=Sasl(certificates, keys.as_uri(), {"softmax": password}),
        jvm_arguments=(f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={keys.as_uri()}",),
    )
    with Broker(config) as broker:
        admin = AdminClient({"bootstrap.servers": broker.admin_servers, "log_level": 0})
        for mechanism in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512):
            user = UserScramCredentialUpsertion("softmax", ScramCredentialInfo(mechanism, 4096), password.encode())
            for done in admin.alter_user_scram_credentials([user]).values():
                done.result(30)
        client = certificates.client(password=planted("kafka.ssl_keyfile_password"))
        yield Secured(broker, signer, certificates.cafile, client)


@dataclass
class Terminal:
    """Runs commands with secrets given in one of the ways, and keeps all that they say."""

    folder: Path
    settings: Mapping[str, object]
    secrets: Mapping[str, str]
    way: str
    more: Mapping[str, str] = field(default_factory=dict)
    told: bytes = b""

    @property
    def environment(self) -> dict[str, str]:
        given = clean_environment() | environment(**self.settings) | dict(self.more)
        for path, secret in self.secrets.items():
            if self.way == "environment":
                given[environment_name(path)] = secret
            elif self.way == "file":
                file = self.folder / path
                file.write_text(secret + "\n", encoding="utf-8")
                given[f"{environment_name(path)}_FILE"] = str(file)
        return given

    @property
    def config(self) -> list[str]:
        if self.way != "yaml":
            return []
        tree: dict[str, dict[str, str]] = {}
        for path, secret in self.secrets.items():
            section, _, name = path.partition(".")
            tree.setdefault(section, {})[name] = secret
        file = self.folder / "settings.yaml"
        file.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return ["--config", str(file)]

    async def run(self, *arguments: str, loudly: str = "", **settings: object) -> int:
        """Run a command to its end; its exit code."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", LOUD.format(more=loudly), *arguments, *self.config),
            env=self.environment | environment(**settings),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            said, _ = await asyncio.wait_for(process.communicate(), 90)
        finally:
            if process.returncode is None:
                process.kill()
        self.told += said
        assert process.returncode is not None
        return process.returncode

    async def get(self, address: str) -> None:
        """Keep all that the HTTP port shows."""
        for page in PAGES:
            self.told += await asyncio.to_thread(_get, address + page)


def _get(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:  # noqa: S310 - our own
            content: bytes = response.read()
            return str(response.headers).encode() + content
    except urllib.error.HTTPError as error:
        return str(error.headers).encode() + error.read()


class Entered(ServiceProcess):
    """`run` in a terminal of these."""

    def __init__(self, terminal: Terminal, log: Path) -> None:
        self.program = ["-c", LOUD.format(more="")]
        self.arguments = ["run", *terminal.config]
        self._environment = terminal.environment
        self._log = log
        self._process = None

    @property
    def address(self) -> str:
        """Where it listens, whatever the log's form."""
        found = re.search(r"http://127\.0\.0\.1:\d+", self.log)
        return found.group() if found else ""

    def get(self, path: str) -> tuple[int, str]:
        """See `ServiceProcess`."""
        return (200, "") if self.address and b'"ready": true' in _get(self.address + "/status.json") else (0, path)


def login(secured: Secured, **more: object) -> dict[str, object]:
    """How to come in, but for secrets; names of topics that nobody else has."""
    certificate, key = secured.client
    name = f"s{uuid.uuid4().hex[:8]}"
    return {
        "kafka__bootstrap_servers": secured.broker.bootstrap_servers,
        "kafka__group_id": name,
        "topics__input": f"{name}.in",
        "topics__output": f"{name}.out",
        "topics__dead_letter": f"{name}.dead",
        "http__port": 0,
        "http__show_payloads": "true",
        "kafka__security_protocol": "SASL_SSL",
        "kafka__sasl_username": "softmax",
        "kafka__sasl_oauth_client_id": "softmax",
        "kafka__ssl_cafile": secured.cafile,
        "kafka__ssl_certfile": certificate,
        "kafka__ssl_keyfile": key,
        **HASTY,
        **more,
    }


RIGHT: Final = {path: planted(path) for path in SECRETS}
WRONG: Final = {path: planted(path, "wrong") for path in SECRETS}
ALL: Final = [*RIGHT.values(), *WRONG.values()]

# --- what is told -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "mechanism", "form", "more"),
    [
        ("environment", "PLAIN", "json", {}),
        ("file", "SCRAM-SHA-512", "console", {"PYTHONASYNCIODEBUG": "1"}),
        ("yaml", "OAUTHBEARER", "json", {"PYTHONASYNCIODEBUG": "1"}),
    ],
)
async def test_who_comes_in_tells_no_secret(
    secured: Secured, tmp_path: Path, way: str, mechanism: str, form: str, more: dict[str, str]
) -> None:
    """Every command, the service at work, all that its port shows, and its traces."""
    endpoint = TokenEndpoint(secured.signer)
    async with endpoint.listening() as url:
        settings = login(
            secured,
            kafka__sasl_mechanism=mechanism,
            kafka__sasl_oauth_token_url=f"{url}/token/sign",
            tracing__endpoint=f"{url}/v1/traces",
            log__format=form,
        )
        terminal = Terminal(tmp_path, settings, RIGHT, way, more)
        assert await terminal.run("topics", "create") == 0, terminal.told
        assert await terminal.run("check") == 0, terminal.told
        assert await terminal.run("config", "show") == 0
        assert terminal.told.count(b"**********") == len(SECRETS)
        service = Entered(terminal, tmp_path / "service.log")
        try:
            await service.start().ready(within=60)
            assert await terminal.run("produce", "--count", "200", "--malformed", "0.1") == 0
            assert await terminal.run("tail", "--from-beginning", "--count", "3") == 0
            assert await terminal.run("dead-letters", "list") == 0
            await terminal.get(service.address)
            assert await service.stop() == 0, service.log
        finally:
            service.destroy()
        terminal.told += service.log.encode() + b"".join(endpoint.traces)
    assert f"{settings['topics__output']}-".encode() in terminal.told
    assert b"stopped" in terminal.told
    assert endpoint.traces
    assert bool(endpoint.tokens) is (mechanism == "OAUTHBEARER")
    assert leaks(terminal.told, [*ALL, *endpoint.tokens]) == set()


AWS: Final = {"aws secret": planted("aws secret"), "aws session": planted("aws session")}
# What is wrong, by settings and by the secrets that are; and the exit code.
CASES: Final = {
    "wrong password, PLAIN": ({"kafka__sasl_mechanism": "PLAIN"}, ["kafka.sasl_password"], 3),
    "wrong password, SCRAM-SHA-256": ({"kafka__sasl_mechanism": "SCRAM-SHA-256"}, ["kafka.sasl_password"], 3),
    "wrong password, SCRAM-SHA-512": ({"kafka__sasl_mechanism": "SCRAM-SHA-512"}, ["kafka.sasl_password"], 3),
    "wrong client secret": ({"token": "sign"}, ["kafka.sasl_oauth_client_secret"], 3),
    "token endpoint that fails": ({"token": "failure"}, ["kafka.sasl_oauth_client_secret"], 3),
    "token endpoint that answers a page": ({"token": "page"}, [], 3),
    "token endpoint that redirects": ({"token": "redirection"}, [], 3),
    "token of another signer": ({"token": "sign", "signer": "another"}, [], 3),
    "token signed for AWS": ({"kafka__sasl_mechanism": "AWS_MSK_IAM", "kafka__sasl_aws_region": "eu-west-1"}, [], 3),
    "wrong password of the key": ({}, ["kafka.ssl_keyfile_password"], 2),
    "secured where it is open": ({"port": "open"}, [], 3),
    "open where it is secured": ({"kafka__security_protocol": "SASL_PLAINTEXT"}, [], 3),
    "nobody there": ({"kafka__bootstrap_servers": "127.0.0.1:9"}, [], 3),
}

# By all that speak to Kafka; others by two of them, as each takes a second of processor time.
BY_EVERY_COMMAND: Final = {"wrong password, PLAIN", "wrong client secret", "wrong password of the key", "nobody there"}


@pytest.mark.parametrize("case", CASES)
async def test_who_does_not_come_in_tells_no_secret(secured: Secured, tmp_path: Path, case: str) -> None:
    """Each in another way, by turns."""
    differing, wrong, code = CASES[case]
    given = dict(differing)
    number = list(CASES).index(case)
    endpoint = TokenEndpoint(TokenSigner() if given.pop("signer", "") else secured.signer)
    async with endpoint.listening() as url:
        if answer := given.pop("token", ""):
            given |= {"kafka__sasl_mechanism": "OAUTHBEARER", "kafka__sasl_oauth_token_url": f"{url}/token/{answer}"}
        if given.pop("port", ""):
            given["kafka__bootstrap_servers"] = secured.broker.admin_servers
        terminal = Terminal(
            tmp_path,
            login(secured, log__format=("json", "console")[number % 2], **given),
            RIGHT | {path: WRONG[path] for path in wrong},
            WAYS[number % 3],
            {
                "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
                "AWS_SECRET_ACCESS_KEY": AWS["aws secret"],
                "AWS_SESSION_TOKEN": AWS["aws session"],
                "AWS_EC2_METADATA_DISABLED": "true",
                "PYTHONASYNCIODEBUG": str(number % 2),
            },
        )
        commands = [["run"], ["check"]]
        if case in BY_EVERY_COMMAND:
            commands += [["topics", "create"], ["tail"], ["dead-letters", "list"], ["produce"]]
        ended = await asyncio.gather(*(terminal.run(*command) for command in commands))
    assert ended == [code] * len(commands), terminal.told.decode()
    assert terminal.told.count(b"softmax-service: ") == len(commands)
    assert b"Traceback" not in terminal.told
    assert leaks(terminal.told, [*ALL, *AWS.values(), *endpoint.tokens]) == set()


async def test_without_the_guard_the_client_s_log_tells_it(secured: Secured, tmp_path: Path) -> None:
    """The control: the same run, its log's guard undone, is found out."""
    settings = login(secured, kafka__sasl_mechanism="PLAIN", log__format="json")
    for loudly, secret in (("", set()), (UNGUARDED, {WRONG["kafka.sasl_password"][:PIECE]})):
        terminal = Terminal(tmp_path, settings, RIGHT | {"kafka.sasl_password": WRONG["kafka.sasl_password"]}, "file")
        assert await terminal.run("run", loudly=loudly) == 3
        assert secret <= leaks(terminal.told, ALL)
        assert bool(leaks(terminal.told, ALL)) is bool(secret)


def test_a_key_whose_password_is_missing_asks_nobody(tmp_path: Path) -> None:
    """On a terminal, where OpenSSL would wait for it to be typed."""
    certificates = Certificates(tmp_path)
    certificate, key = certificates.client(password=planted("kafka.ssl_keyfile_password"))
    files = {"kafka__ssl_certfile": certificate, "kafka__ssl_keyfile": key, "kafka__ssl_cafile": certificates.cafile}
    command = [sys.executable, "-m", "service", "check"]
    ran = subprocess.run(  # noqa: S603 - ours
        [sys.executable, "-c", f"import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn({command!r})))"],
        env=clean_environment() | environment(kafka__security_protocol="SSL", **files),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert ran.returncode == 2
    assert b"kafka.ssl_keyfile_password" in ran.stdout


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({}, 0),
        ({"kafka__session_timeout_ms": "soon"}, 2),
        ({"kafka__sasl_pasword": word("misplaced")}, 2),
        ({"kafka__sasl_mechanism": word("misplaced")}, 2),
        ({"kafka__sasl_oauth_token_url": f"https://me:{word('misplaced')}@login/token"}, 2),
        ({"tracing__endpoint": f"https://me:{word('misplaced')}@collector/v1/traces"}, 2),
        ({"kafka__bootstrap_servers": f"me:{word('misplaced')}@broker:9092"}, 2),
        ({"headers__drop": "[" + word("misplaced")}, 2),
        ({"kafka__security_protocol": "SASL_SSL", "kafka__sasl_mechanism": "AWS_MSK_IAM"}, 2),
    ],
)
async def test_wrong_settings_beside_secrets_tell_none(
    tmp_path: Path, way: str, wrong: dict[str, object], code: int
) -> None:
    terminal = Terminal(tmp_path, wrong, RIGHT, way)
    codes = await asyncio.gather(*(terminal.run("config", command) for command in ("check", "show")))
    assert codes == [code, code]
    assert leaks(terminal.told, [*ALL, word("misplaced")]) == set()


@pytest.mark.parametrize("path", SECRETS)
async def test_a_secret_in_place_of_its_file_s_name_is_not_told(tmp_path: Path, path: str) -> None:
    for given in (planted(path), f"/{planted(path)}"):
        terminal = Terminal(tmp_path, {}, {}, "", {f"{environment_name(path)}_FILE": given})
        assert await terminal.run("config", "check") == 2
        assert f"{environment_name(path)}_FILE".encode() in terminal.told
        assert leaks(terminal.told, [planted(path)]) == set()


@pytest.mark.parametrize("text", ["{{kafka: {{sasl_password:{secret}}}}}", "kafka:\n  sasl_password {secret}: x\n"])
async def test_a_misplaced_colon_in_the_file_does_not_tell_it(tmp_path: Path, text: str) -> None:
    """YAML then takes the secret for a part of a name."""
    file = tmp_path / "settings.yaml"
    file.write_text(text.format(secret=word("misplaced")), encoding="utf-8")
    terminal = Terminal(tmp_path, {}, {}, "")
    assert await terminal.run("config", "check", "--config", str(file)) == 2
    assert leaks(terminal.told, [word("misplaced")]) == set()


def test_an_error_of_the_settings_themselves_holds_none() -> None:
    """Also where it is not caught, as by code that builds them itself."""
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"kafka": {**{p.partition(".")[2]: s for p, s in RIGHT.items()}, "group_id": ""}})
    assert leaks(f"{caught.value} {caught.value!r}".encode(), ALL) == set()
