"""Tokens for SASL OAUTHBEARER: from a token endpoint by client credentials, or signed for AWS."""

from __future__ import annotations

import asyncio
import base64
import ssl
import time
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import aiohttp
from aiokafka import conn, errors
from aiokafka.abc import AbstractTokenProvider
from aiokafka.conn import OAuthAuthenticator

from service.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

    from service.settings import KafkaSettings

# A token is fetched anew when this share of its life is over: the brokers ask again before it ends.
FRESH_SHARE: Final = 0.8
# For a token whose answer does not say how long it lives.
DEFAULT_LIFE_SECONDS: Final = 300.0
TOKEN_SECONDS: Final = 10.0
SERVER_ERROR: Final = 500


class TokenRefusedError(errors.AuthenticationFailedError):  # type: ignore[misc]  # aiokafka is not typed
    """The token endpoint does not accept the client: no waiting cures that."""


class _Authenticator(OAuthAuthenticator):  # type: ignore[misc]  # aiokafka is not typed
    """Ends the exchange as RFC 7628, section 3.2.3, asks for it.

    A broker that refuses a token says so in a challenge, and only then, when that is acknowledged, in an error.
    aiokafka 0.14 takes the challenge for success, and then the broker's error for an answer to its first request.
    """

    async def step(self, payload: bytes | None) -> tuple[bytes, bool] | None:
        if self._token_sent and payload:
            return b"\x01", True
        following: tuple[bytes, bool] | None = await super().step(payload)
        return following


conn.OAuthAuthenticator = _Authenticator


class TokenProvider(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka is not typed
    """Keeps a token as long as it is fresh; however many clients ask, one request is made for it."""

    def __init__(self) -> None:
        """Have none."""
        self._token = ""
        self._fresh_until = 0.0
        self._fetching: asyncio.Task[None] | None = None

    async def token(self) -> str:
        """A token that is valid now.

        Raises:
            TokenRefusedError: the client's credentials are not accepted.
            errors.KafkaConnectionError: nobody could be asked.
        """
        if time.monotonic() >= self._fresh_until:
            if self._fetching is None or self._fetching.done():
                self._fetching = asyncio.create_task(self._renew())
            # Who gives up waiting does not take the token from the others.
            await asyncio.shield(self._fetching)
        return self._token

    async def _renew(self) -> None:
        begun = time.monotonic()
        self._token, life = await self._fetch()
        self._fresh_until = begun + FRESH_SHARE * life

    async def _fetch(self) -> tuple[str, float]:
        """A new token, and for how many seconds it is valid."""
        raise NotImplementedError


@dataclass(eq=False)
class ClientCredentials(TokenProvider):
    """OAuth 2.0's grant for services: RFC 6749, section 4.4.

    Attributes:
        url: of the token endpoint.
        client_id: who asks.
        client_secret: and proves it.
        scope: what is asked for; empty for the endpoint's own choice.
        cafile: certificates to trust besides the system's.
    """

    url: str
    client_id: str
    client_secret: str = field(repr=False)
    scope: str = ""
    cafile: Path | None = None

    def __post_init__(self) -> None:
        """Have no token."""
        super().__init__()

    async def _fetch(self) -> tuple[str, float]:
        asked = {"grant_type": "client_credentials", **({"scope": self.scope} if self.scope else {})}
        trust = ssl.create_default_context()
        if self.cafile is not None:
            trust.load_verify_locations(self.cafile)
        timeout = aiohttp.ClientTimeout(total=TOKEN_SECONDS)
        # As they are, not URL-encoded first: so do Kafka's own clients by default.
        login = base64.b64encode(f"{self.client_id}:{self.client_secret}".encode()).decode()
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, headers={"Authorization": f"Basic {login}"}) as session,
                session.post(self.url, data=asked, ssl=trust, allow_redirects=False) as response,
            ):
                if response.status >= SERVER_ERROR:
                    raise errors.KafkaConnectionError(f"the token endpoint answers {response.status}")
                if response.status != 200:  # noqa: PLR2004 - OK
                    raise TokenRefusedError(f"the token endpoint answers {response.status}")
                return _token_of(await _json(response))
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise errors.KafkaConnectionError(f"the token endpoint cannot be asked: {type(error).__name__}") from error


async def _json(response: aiohttp.ClientResponse) -> Any:
    try:
        return await response.json(content_type=None)
    except ValueError:
        # Neither what it is instead nor the parser's word for it: it may hold what was sent.
        raise TokenRefusedError("the token endpoint's answer is not JSON") from None


def _token_of(answer: Any) -> tuple[str, float]:
    token = answer.get("access_token") if isinstance(answer, dict) else None
    if not isinstance(token, str) or not token:
        raise TokenRefusedError("the token endpoint's answer holds no access_token")
    life = answer.get("expires_in", DEFAULT_LIFE_SECONDS)
    return token, float(life) if isinstance(life, int | float) and life > 0 else DEFAULT_LIFE_SECONDS


@dataclass(eq=False)
class AwsMskIam(TokenProvider):
    """Amazon MSK's IAM access control: a token signed with the credentials that the AWS SDK finds.

    Attributes:
        region: of the cluster.
    """

    region: str

    def __post_init__(self) -> None:
        """Have no token.

        Raises:
            ConfigurationError: the extra is not installed.
        """
        super().__init__()
        try:
            from aws_msk_iam_sasl_signer import MSKAuthTokenProvider  # noqa: PLC0415 - an extra that may not be there
        except ImportError as error:
            raise ConfigurationError(
                f"kafka.sasl_mechanism AWS_MSK_IAM is set, but {error.name} is not installed",
                "Install softmax-service[aws]",
            ) from error
        self._sign = MSKAuthTokenProvider.generate_auth_token

    async def _fetch(self) -> tuple[str, float]:
        # The SDK may ask a metadata service or a file for its credentials: not in the event loop.
        token, expires_ms = await asyncio.to_thread(self._sign, self.region)
        return str(token), max(1.0, expires_ms / 1000 - time.time())


def token_provider(kafka: KafkaSettings) -> TokenProvider | None:
    """Who gives tokens; the same one for all clients with these settings, `None` for other mechanisms.

    Raises:
        ConfigurationError: the mechanism needs an extra that is not installed.
    """
    if not kafka.security_protocol.startswith("SASL"):
        return None
    if kafka.sasl_mechanism == "AWS_MSK_IAM":
        return _aws(kafka.sasl_aws_region or "")
    if kafka.sasl_mechanism != "OAUTHBEARER":
        return None
    secret = kafka.sasl_oauth_client_secret
    return _client_credentials(
        kafka.sasl_oauth_token_url or "",
        kafka.sasl_oauth_client_id or "",
        secret.get_secret_value() if secret else "",
        kafka.sasl_oauth_scope,
        kafka.ssl_cafile,
    )


@cache
def _client_credentials(url: str, client_id: str, secret: str, scope: str, cafile: Path | None) -> ClientCredentials:
    return ClientCredentials(url, client_id, secret, scope, cafile)


@cache
def _aws(region: str) -> AwsMskIam:
    return AwsMskIam(region)
