"""Secured listeners for the tests' brokers: TLS with certificates of a CA of its own, SASL in all its kinds."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import trustme
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Mapping
    from pathlib import Path

LOGIN: Final = "org.apache.kafka.common.security"
ISSUER: Final = "https://tests.invalid/"
AUDIENCE: Final = "kafka"
KEY_ID: Final = "the-key"


class Certificates:
    """A CA, the broker's certificate, and what clients need, as files."""

    def __init__(self, folder: Path, *, not_after: dt.datetime | None = None, host: str = "127.0.0.1") -> None:
        self._authority = trustme.CA()
        self._broker = self._authority.issue_cert(host, not_after=not_after)
        self._folder = folder
        self.cafile = folder / "ca.pem"
        self._authority.cert_pem.write_to_path(str(self.cafile))

    def client(self, name: str = "softmax", password: str = "") -> tuple[Path, Path]:
        """A client's certificate and its key, which a password may keep."""
        issued = self._authority.issue_cert(f"{name}@tests.invalid", common_name=name)
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        issued.cert_chain_pems[0].write_to_path(str(certificate))
        kept = issued.private_key_pem.bytes()
        if password:
            kept = serialization.load_pem_private_key(kept, None).private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(password.encode()),
            )
        key.write_bytes(kept)
        return certificate, key

    def properties(self, prefix: str) -> dict[str, str]:
        """The broker's side."""
        key = serialization.load_pem_private_key(self._broker.private_key_pem.bytes(), None)
        pkcs8 = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        chain = b"".join(pem.bytes() for pem in self._broker.cert_chain_pems)
        return {
            f"{prefix}.ssl.keystore.type": "PEM",
            f"{prefix}.ssl.keystore.certificate.chain": chain.decode(),
            f"{prefix}.ssl.keystore.key": pkcs8.decode(),
            f"{prefix}.ssl.truststore.type": "PEM",
            f"{prefix}.ssl.truststore.certificates": self._authority.cert_pem.bytes().decode(),
        }


@dataclass(frozen=True)
class Tls:
    """TLS, and if they are required the clients' certificates, whose names become users."""

    certificates: Certificates
    clients_too: bool = False
    protocol: str = "SSL"

    def properties(self, listener: str) -> Mapping[str, str]:
        prefix = f"listener.name.{listener.lower()}"
        return {
            **self.certificates.properties(prefix),
            f"{prefix}.ssl.client.auth": "required" if self.clients_too else "none",
        }


class TokenSigner:
    """Makes tokens, and the key set by which a broker knows them."""

    def __init__(self) -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def token(self, subject: str, life: float = 300, **claims: object) -> str:
        """A signed JSON Web Token."""
        now = int(time.time())
        about = {"iss": ISSUER, "aud": AUDIENCE, "sub": subject, "iat": now, "exp": now + life, **claims}
        signed = f"{_part({'alg': 'RS256', 'kid': KEY_ID})}.{_part(about)}"
        signature = self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{_encoded(signature)}"

    def key_set(self) -> str:
        """The public key as a JSON Web Key Set."""
        numbers = self._key.public_key().public_numbers()
        n, e = (_encoded(x.to_bytes((x.bit_length() + 7) // 8)) for x in (numbers.n, numbers.e))
        return json.dumps({"keys": [{"kty": "RSA", "use": "sig", "alg": "RS256", "kid": KEY_ID, "n": n, "e": e}]})


def _part(content: Mapping[str, Any]) -> str:
    return _encoded(json.dumps(content).encode())


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


@dataclass(frozen=True)
class Sasl:
    """Every SASL mechanism on one listener, over TLS.

    SCRAM's users are made by an administrator, once the broker runs; a token's are whoever it names.
    """

    certificates: Certificates
    key_set_url: str
    users: Mapping[str, str] = field(repr=False)
    protocol: str = "SASL_SSL"

    def properties(self, listener: str) -> Mapping[str, str]:
        prefix = f"listener.name.{listener.lower()}"
        users = " ".join(f'user_{name}="{password}"' for name, password in self.users.items())
        oauth = f"{prefix}.oauthbearer.sasl"
        return {
            **self.certificates.properties(prefix),
            f"{prefix}.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
            f"{prefix}.plain.sasl.jaas.config": f"{LOGIN}.plain.PlainLoginModule required {users};",
            f"{prefix}.scram-sha-256.sasl.jaas.config": f"{LOGIN}.scram.ScramLoginModule required;",
            f"{prefix}.scram-sha-512.sasl.jaas.config": f"{LOGIN}.scram.ScramLoginModule required;",
            f"{oauth}.jaas.config": f"{LOGIN}.oauthbearer.OAuthBearerLoginModule required;",
            f"{oauth}.server.callback.handler.class": f"{LOGIN}.oauthbearer.OAuthBearerValidatorCallbackHandler",
            f"{oauth}.oauthbearer.jwks.endpoint.url": self.key_set_url,
            f"{oauth}.oauthbearer.expected.audience": AUDIENCE,
            f"{oauth}.oauthbearer.expected.issuer": ISSUER,
        }
