"""Every way to come in, on a real broker: right credentials serve, wrong ones end with exit code 3 and the cure."""

from __future__ import annotations

import base64
import datetime as dt
import uuid
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import pytest
from aiohttp import web
from broker_security import Certificates, Sasl, Tls, TokenSigner
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from harness import Bus, ServiceProcess, pack

from service.broker import Broker, BrokerConfig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path

    MakeService = Callable[..., ServiceProcess]

PASSWORD: Final = "planted-right-secret"
WRONG: Final = "planted-wrong-secret"
GUARANTEES: Final = ("at_least_once", "exactly_once")
MECHANISMS: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
# A broker that is only away is waited for; not here.
HASTY: Final = {"kafka__request_timeout_ms": 5000, "delivery__retry_deadline_ms": 3000, "log__level": "debug"}
AUTHORIZER: Final = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "super.users": "User:ANONYMOUS",
}
# The user of a client's certificate is its common name.
COMMON_NAME: Final = {"ssl.principal.mapping.rules": "RULE:^.*CN=([^,]+).*$/$1/"}

Right = tuple[ResourceType, str, AclOperation]


class Secured:
    """A broker whose second listener asks who is there."""

    def __init__(self, broker: Broker, certificates: Certificates, signer: TokenSigner) -> None:
        self.broker = broker
        self.certificates = certificates
        self.signer = signer
        self.admin = AdminClient({"bootstrap.servers": broker.admin_servers, "log_level": 0})

    def settings(self, **more: object) -> dict[str, object]:
        """How a service comes in, but for who it is."""
        where = {
            "kafka__bootstrap_servers": self.broker.bootstrap_servers,
            "kafka__security_protocol": "SASL_SSL",
            "kafka__ssl_cafile": self.certificates.cafile,
        }
        return {**where, **HASTY, **more}

    def allow(self, rights: Sequence[Right], user: str = "softmax") -> None:
        """Give a user rights; those on transactional ids by their prefix."""
        bindings = [
            AclBinding(
                kind,
                name,
                ResourcePatternType.PREFIXED if kind is ResourceType.TRANSACTIONAL_ID else ResourcePatternType.LITERAL,
                f"User:{user}",
                "*",
                operation,
                AclPermissionType.ALLOW,
            )
            for kind, name, operation in rights
        ]
        for done in self.admin.create_acls(bindings).values():
            done.result(30)


def rights(bus: Bus) -> dict[str, Right]:
    """All that the service needs, as docs/delivery.md tells it."""
    topic, group = ResourceType.TOPIC, f"{bus.name}.group"
    return {
        "describe input": (topic, bus.input, AclOperation.DESCRIBE),
        "read input": (topic, bus.input, AclOperation.READ),
        "describe output": (topic, bus.output, AclOperation.DESCRIBE),
        "write output": (topic, bus.output, AclOperation.WRITE),
        "describe dead letters": (topic, bus.dead_letter, AclOperation.DESCRIBE),
        "write dead letters": (topic, bus.dead_letter, AclOperation.WRITE),
        "group": (ResourceType.GROUP, group, AclOperation.READ),
        "transactional ids": (ResourceType.TRANSACTIONAL_ID, f"{group}.", AclOperation.WRITE),
    }


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """All SASL mechanisms over TLS, and access control."""
    folder = tmp_path_factory.mktemp("sasl")
    certificates, signer = Certificates(folder), TokenSigner()
    keys = folder / "keys.json"
    keys.write_text(signer.key_set(), encoding="utf-8")
    url = keys.as_uri()
    config = BrokerConfig(
        tmpfs=True,
        security=Sasl(certificates, url, {"softmax": PASSWORD}),
        properties=AUTHORIZER,
        jvm_arguments=(f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={url}",),
    )
    with Broker(config) as broker:
        found = Secured(broker, certificates, signer)
        for mechanism in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512):
            user = UserScramCredentialUpsertion("softmax", ScramCredentialInfo(mechanism, 4096), PASSWORD.encode())
            for done in found.admin.alter_user_scram_credentials([user]).values():
                done.result(30)
        yield found


@asynccontextmanager
async def topics(broker: Broker) -> AsyncIterator[Bus]:
    async with Bus(broker.admin_servers, f"s{uuid.uuid4().hex[:8]}", 2) as bus:
        yield bus


async def serves(bus: Bus, service: ServiceProcess) -> None:
    """It comes in, answers, and tells no secret at any level."""
    await service.start().ready(within=60)
    await bus.send([pack([1.0, 2.0], id=1), b"\xc1"])
    await bus.outputs(1)
    await bus.dead_letters(1)
    status = service.get("/status.json")[1]
    assert await service.stop() == 0
    assert "planted" not in service.log + status


async def ends(service: ServiceProcess, *told: str) -> None:
    """It ends with exit code 3, says what to look at, and tells no secret at any level."""
    assert await service.start().wait(60) == 3, service.log
    for text in told:
        assert text in service.log, service.log
    assert "Traceback" not in service.log
    assert "planted" not in service.log


# --- passwords --------------------------------------------------------------------------------


@pytest.mark.parametrize("guarantee", GUARANTEES)
@pytest.mark.parametrize("mechanism", MECHANISMS)
async def test_the_right_password_serves(
    secured: Secured, make_service: MakeService, tmp_path: Path, mechanism: str, guarantee: str
) -> None:
    """As a file, which is how a secret should come."""
    file = tmp_path / "password"
    file.write_text(PASSWORD + "\n", encoding="utf-8")
    async with topics(secured.broker) as bus:
        secured.allow([*rights(bus).values()])
        login = secured.settings(
            kafka__sasl_mechanism=mechanism, kafka__sasl_username="softmax", kafka__sasl_password_file=file
        )
        await serves(bus, make_service(bus, delivery__guarantee=guarantee, **login))


@pytest.mark.parametrize("mechanism", MECHANISMS)
async def test_a_wrong_password_is_told(secured: Secured, make_service: MakeService, mechanism: str) -> None:
    async with topics(secured.broker) as bus:
        login = secured.settings(
            kafka__sasl_mechanism=mechanism, kafka__sasl_username="softmax", kafka__sasl_password=WRONG
        )
        await ends(make_service(bus, **login), "refuses the credentials", "kafka.sasl_password")


# --- tokens -----------------------------------------------------------------------------------


@asynccontextmanager
async def token_endpoint(signer: TokenSigner, subject: str = "softmax") -> AsyncIterator[str]:
    """A token endpoint that knows one client."""

    async def take(request: web.Request) -> web.Response:
        form = await request.post()
        known = request.headers["Authorization"] == f"Basic {_basic('softmax', PASSWORD)}"
        if not known or form["grant_type"] != "client_credentials":
            return web.json_response({"error": "invalid_client"}, status=401)
        return web.json_response({"access_token": signer.token(subject), "expires_in": 300})

    app = web.Application()
    app.add_routes([web.post("/token", take)])
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/token"
    finally:
        await runner.cleanup()


def _basic(name: str, password: str) -> str:
    return base64.b64encode(f"{name}:{password}".encode()).decode()


def _oauth(secured: Secured, url: str, secret: str) -> dict[str, object]:
    return secured.settings(
        kafka__sasl_mechanism="OAUTHBEARER",
        kafka__sasl_oauth_token_url=url,
        kafka__sasl_oauth_client_id="softmax",
        kafka__sasl_oauth_client_secret=secret,
    )


@pytest.mark.parametrize("guarantee", GUARANTEES)
async def test_a_token_serves(secured: Secured, make_service: MakeService, guarantee: str) -> None:
    async with topics(secured.broker) as bus, token_endpoint(secured.signer) as url:
        secured.allow([*rights(bus).values()])
        await serves(bus, make_service(bus, delivery__guarantee=guarantee, **_oauth(secured, url, PASSWORD)))


async def test_a_client_that_gets_no_token_is_told(secured: Secured, make_service: MakeService) -> None:
    async with topics(secured.broker) as bus, token_endpoint(secured.signer) as url:
        service = make_service(bus, **_oauth(secured, url, WRONG))
        await ends(service, "There is no token", "answers 401", "kafka.sasl_oauth_client_secret")


async def test_a_token_that_the_broker_does_not_accept_is_told(secured: Secured, make_service: MakeService) -> None:
    async with topics(secured.broker) as bus, token_endpoint(TokenSigner()) as url:
        service = make_service(bus, **_oauth(secured, url, PASSWORD))
        await ends(service, "refuses the credentials", "kafka.sasl_oauth_token_url")


# --- rights -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missing", "guarantee", "told"),
    [
        (["describe input", "read input"], "at_least_once", ["may not describe topic", "Grant it Describe"]),
        (["read input"], "at_least_once", ["may not read the input topic", "Grant it Read"]),
        (["write output"], "at_least_once", ["refuses what is written", "topics.output"]),
        (["write output"], "exactly_once", ["refuses what is written", "topics.output"]),
        (["write dead letters"], "at_least_once", ["refuses what is written", "topics.dead_letter"]),
        (["group"], "at_least_once", ["may not use the group", "Grant it Read on kafka.group_id"]),
        (["group"], "exactly_once", ["may not use the group", "Grant it Read on kafka.group_id"]),
        (["transactional ids"], "exactly_once", ["transactional id", "Grant it Write and Describe on the prefix"]),
    ],
    ids=lambda each: each if isinstance(each, str) else each[0],
)
async def test_a_missing_right_is_told(
    secured: Secured, make_service: MakeService, missing: list[str], guarantee: str, told: list[str]
) -> None:
    async with topics(secured.broker) as bus:
        given = rights(bus)
        secured.allow([right for name, right in given.items() if name not in missing])
        await bus.send([pack([1.0, 2.0], id=1), b"\xc1"])
        login = secured.settings(kafka__sasl_username="softmax", kafka__sasl_password=PASSWORD)
        await ends(make_service(bus, delivery__guarantee=guarantee, **login), *told)


# --- certificates -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mutual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """TLS in both directions, and access control by the names in certificates."""
    certificates = Certificates(tmp_path_factory.mktemp("tls"))
    config = BrokerConfig(
        tmpfs=True, security=Tls(certificates, clients_too=True), properties={**AUTHORIZER, **COMMON_NAME}
    )
    with Broker(config) as broker:
        yield Secured(broker, certificates, TokenSigner())


def _tls(secured: Secured, **more: object) -> dict[str, object]:
    return secured.settings(kafka__security_protocol="SSL", **more)


@pytest.mark.parametrize("guarantee", GUARANTEES)
async def test_a_client_s_certificate_serves(mutual: Secured, make_service: MakeService, guarantee: str) -> None:
    certificate, key = mutual.certificates.client()
    async with topics(mutual.broker) as bus:
        mutual.allow([*rights(bus).values()])
        login = _tls(mutual, kafka__ssl_certfile=certificate, kafka__ssl_keyfile=key)
        await serves(bus, make_service(bus, delivery__guarantee=guarantee, **login))


async def test_a_client_without_a_certificate_is_told(mutual: Secured, make_service: MakeService) -> None:
    async with topics(mutual.broker) as bus:
        await ends(make_service(bus, **_tls(mutual)), "kafka.ssl_certfile")


async def test_a_client_of_another_authority_is_told(
    mutual: Secured, make_service: MakeService, tmp_path: Path
) -> None:
    certificate, key = Certificates(tmp_path).client("stranger")
    async with topics(mutual.broker) as bus:
        login = _tls(mutual, kafka__ssl_certfile=certificate, kafka__ssl_keyfile=key)
        await ends(make_service(bus, **login), "kafka.ssl_certfile")


async def test_a_broker_of_an_unknown_authority_is_not_trusted(
    mutual: Secured, make_service: MakeService, tmp_path: Path
) -> None:
    stranger = Certificates(tmp_path)
    async with topics(mutual.broker) as bus:
        service = make_service(bus, **_tls(mutual, kafka__ssl_cafile=stranger.cafile))
        await ends(service, "is not accepted", "kafka.ssl_cafile")


async def test_tls_with_an_open_port_is_told(mutual: Secured, make_service: MakeService) -> None:
    async with topics(mutual.broker) as bus:
        login = _tls(mutual, kafka__bootstrap_servers=mutual.broker.admin_servers)
        await ends(make_service(bus, **login), "kafka.security_protocol")


async def test_no_tls_with_a_secured_port_is_told(mutual: Secured, make_service: MakeService) -> None:
    async with topics(mutual.broker) as bus:
        login = mutual.settings(kafka__security_protocol="PLAINTEXT")
        await ends(make_service(bus, **login), "kafka.security_protocol")


@pytest.mark.parametrize(
    ("flaw", "told"),
    [
        ({"not_after": dt.datetime(2020, 1, 1, tzinfo=dt.UTC)}, "certificate has expired"),
        ({"host": "elsewhere.invalid"}, "kafka.ssl_check_hostname"),
    ],
    ids=["expired", "another host"],
)
async def test_a_broker_s_flawed_certificate_is_told(
    make_service: MakeService, tmp_path: Path, flaw: dict[str, Any], told: str
) -> None:
    certificates = Certificates(tmp_path, **flaw)
    with Broker(BrokerConfig(tmpfs=True, security=Tls(certificates))) as broker:
        found = Secured(broker, certificates, TokenSigner())
        async with topics(broker) as bus:
            await ends(make_service(bus, **_tls(found)), "is not accepted", told, "kafka.ssl_cafile")
            if "host" in flaw:
                await serves(bus, make_service(bus, **_tls(found, kafka__ssl_check_hostname="false")))
