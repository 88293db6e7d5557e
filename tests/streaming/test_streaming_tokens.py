"""Tokens: asked for once, kept while they are fresh, and what is told where there are none."""

from __future__ import annotations

import asyncio
import base64
import sys
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, urlsplit

import pytest
from aiohttp import web
from aiokafka import errors

from service.errors import ConfigurationError
from service.settings import load
from service.streaming import tokens
from service.streaming.tokens import AwsMskIam, ClientCredentials, TokenRefusedError, token_provider

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SECRET: Final = "pl4nted-s3cret"


class Endpoint:
    """A token endpoint."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.status = 200
        self.answer: Any = None
        self.text: str | None = None
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        form = {name: str(value) for name, value in (await request.post()).items()}
        self.asked.append((request.headers["Authorization"], form))
        await asyncio.sleep(0.01)
        if self.text is not None:
            return web.Response(text=self.text, content_type="text/html")
        answer = self.answer or {"access_token": f"token-{len(self.asked)}", "expires_in": 100}
        return web.json_response(answer, status=self.status, headers={"Location": "http://127.0.0.1:9/"})


@asynccontextmanager
async def endpoint() -> AsyncIterator[Endpoint]:
    found, app = Endpoint(), web.Application()
    app.add_routes([web.post("/token", found.take)])
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        found.url = f"http://127.0.0.1:{runner.addresses[0][1]}/token"
        yield found
    finally:
        await runner.cleanup()


async def test_it_asks_as_the_standard_says() -> None:
    async with endpoint() as there:
        assert await ClientCredentials(there.url, "me", SECRET, "kafka").token() == "token-1"
        ((login, form),) = there.asked
    assert base64.b64decode(login.removeprefix("Basic ")).decode() == f"me:{SECRET}"
    assert form == {"grant_type": "client_credentials", "scope": "kafka"}


async def test_many_clients_make_one_request() -> None:
    async with endpoint() as there:
        provider = ClientCredentials(there.url, "me", SECRET)
        assert set(await asyncio.gather(*(provider.token() for _ in range(50)))) == {"token-1"}
        assert there.asked[0][1] == {"grant_type": "client_credentials"}
        assert len(there.asked) == 1


async def test_who_gives_up_waiting_does_not_take_it_from_others() -> None:
    async with endpoint() as there:
        provider = ClientCredentials(there.url, "me", SECRET)
        hasty = asyncio.create_task(provider.token())
        patient = asyncio.create_task(provider.token())
        await asyncio.sleep(0)
        hasty.cancel()
        assert await patient == "token-1"


async def test_it_is_renewed_before_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(tokens, "time", SimpleNamespace(monotonic=lambda: clock.now))
    async with endpoint() as there:
        provider = ClientCredentials(there.url, "me", SECRET)
        seen = []
        for later in (0, 79, 2):
            clock.now += later
            seen.append(await provider.token())
    assert seen == ["token-1", "token-1", "token-2"]


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404])
async def test_a_refusal_is_final(status: int) -> None:
    async with endpoint() as there:
        there.status = status
        with pytest.raises(TokenRefusedError, match=f"answers {status}"):
            await ClientCredentials(there.url, "me", SECRET).token()


@pytest.mark.parametrize("answer", [["x"], {"token": "x"}, {"access_token": ""}, {"access_token": 5}])
async def test_an_answer_without_a_token_is_a_refusal(answer: object) -> None:
    async with endpoint() as there:
        there.answer = answer
        with pytest.raises(TokenRefusedError, match="holds no access_token"):
            await ClientCredentials(there.url, "me", SECRET).token()


async def test_an_answer_that_is_not_json_is_a_refusal_and_not_repeated() -> None:
    async with endpoint() as there:
        there.text = f"<html>{SECRET}</html>"
        with pytest.raises(TokenRefusedError, match="is not JSON") as caught:
            await ClientCredentials(there.url, "me", SECRET).token()
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("life", [None, 0, -5, "soon"])
async def test_a_life_that_makes_no_sense_is_five_minutes(life: object) -> None:
    async with endpoint() as there:
        there.answer = {"access_token": "x", "expires_in": life}
        assert await ClientCredentials(there.url, "me", SECRET)._fetch() == ("x", 300)


async def test_an_endpoint_that_fails_or_is_away_is_tried_again() -> None:
    async with endpoint() as there:
        there.status = 503
        provider = ClientCredentials(there.url, "me", SECRET)
        with pytest.raises(errors.KafkaConnectionError, match="answers 503"):
            await provider.token()
        there.status = 200
        assert await provider.token() == "token-2"
    with pytest.raises(errors.KafkaConnectionError, match="cannot be asked"):
        await ClientCredentials("http://127.0.0.1:9/token", "me", SECRET).token()


async def test_no_secret_is_in_what_is_told() -> None:
    provider = ClientCredentials("http://127.0.0.1:9/token", "me", SECRET)
    with pytest.raises(errors.KafkaConnectionError) as caught:
        await provider.token()
    assert SECRET not in f"{caught.value!r} {caught.value} {provider!r} {caught.value.__cause__!r}"


def test_clients_with_the_same_settings_share_a_provider() -> None:
    given = {
        "SOFTMAX_KAFKA__SECURITY_PROTOCOL": "SASL_SSL",
        "SOFTMAX_KAFKA__SASL_MECHANISM": "OAUTHBEARER",
        "SOFTMAX_KAFKA__SASL_OAUTH_TOKEN_URL": "https://login/token",
        "SOFTMAX_KAFKA__SASL_OAUTH_CLIENT_ID": "me",
        "SOFTMAX_KAFKA__SASL_OAUTH_CLIENT_SECRET": SECRET,
    }
    one, other = (token_provider(load(environment=given).kafka) for _ in range(2))
    assert isinstance(one, ClientCredentials)
    assert one is other
    assert token_provider(load(environment={}).kafka) is None


async def test_for_aws_a_token_is_signed_for_the_region() -> None:
    """By the AWS library itself, with credentials from the environment: no request is made."""
    with pytest.MonkeyPatch.context() as given:
        given.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
        given.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        given.setenv("AWS_EC2_METADATA_DISABLED", "true")
        token, life = await AwsMskIam("eu-west-1")._fetch()
    signed = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode()
    assert urlsplit(signed).hostname == "kafka.eu-west-1.amazonaws.com"
    query = parse_qs(urlsplit(signed).query)
    assert query["Action"] == ["kafka-cluster:Connect"]
    assert query["X-Amz-Credential"][0].startswith("AKIDEXAMPLE/")
    assert 600 < life <= 900
    assert SECRET not in signed


def test_without_the_aws_library_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aws_msk_iam_sasl_signer", None)
    with pytest.raises(ConfigurationError, match=r"Install softmax-service\[aws\]"):
        AwsMskIam("eu-west-1")
