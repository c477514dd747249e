"""Access to the public port of a deployment: its address, its certificate, and the tokens that clients send."""

import dataclasses
import ipaddress
import os
import re
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dagster_mlops.core.extras import LazyModule
from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.errors import DeploymentError

_x509: Any = LazyModule("cryptography.x509")
# RFC 6750, section 2.1. A shorter one can be guessed.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{16,}=*")


_MOST_BYTES = 2**28


@lazy_dataclass(frozen=True, kw_only=True)
class Access:
    """The address of the public port, its TLS, and the tokens that clients send as ``Authorization: Bearer …``.

        Access(host="0.0.0.0", certificate="tls/server.pem", key="tls/server.key", tokens="SERVING_TOKENS")

    Args:
        host: IP address to listen on. One that other machines reach needs a certificate and tokens.
        certificate: PEM file: the server's certificate, and after it those that lead to its authority.
        key: PEM file of its private key, without a passphrase.
        tokens: Name of a variable in the run's environment with tokens of at least 16 characters, separated by spaces.
        token_file: File of tokens in place of the variable, separated by spaces or lines.
        request_bytes: The most bytes of a request's body, which Envoy has before the server gets any.
    """

    host: str = "127.0.0.1"
    certificate: str = ""
    key: str = ""
    tokens: str = ""
    token_file: str = ""
    request_bytes: int = 16 * 2**20

    @property
    def is_guarded(self) -> bool:
        """True if clients need a token."""
        return bool(self.tokens or self.token_file)

    def faults(self) -> dict[str, bool]:
        """Texts of what has no meaning, each with True if it is so."""
        try:
            is_local, is_address = ipaddress.ip_address(self.host).is_loopback, True
        except ValueError:
            is_local, is_address = True, False
        return {
            f"host={self.host!r} is not an IP address": not is_address,
            f"host={self.host!r} is for other machines, and needs certificate=, key=, and tokens= or token_file=": (
                not is_local and not (self.certificate and self.is_guarded)
            ),
            "certificate= and key= need each other": bool(self.certificate) != bool(self.key),
            "tokens= and token_file= exclude each other": bool(self.tokens and self.token_file),
            f"request_bytes={self.request_bytes!r} is not from 1 to {_MOST_BYTES:,}": (
                not 1 <= self.request_bytes <= _MOST_BYTES
            ),
        }

    def absolute(self) -> "Access":
        """The same with absolute paths, for processes that work elsewhere."""
        places = {name: getattr(self, name) for name in ("certificate", "key", "token_file")}
        paths = {name: str(Path(place).expanduser().absolute()) for name, place in places.items() if place}
        return dataclasses.replace(self, **paths)

    def url(self, port: int) -> str:
        """The public port as this machine reaches it."""
        address = ipaddress.ip_address(self.host)
        local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(str(address), str(address))
        host = f"[{local}]" if address.version == 6 else local
        return f"{'https' if self.certificate else 'http'}://{host}:{port}"

    def read_tokens(self) -> tuple[str, ...]:
        """The tokens; none where clients need none.

        Raises:
            DeploymentError: there are none where there must be, or one is not a token; no token is in the message.
        """
        if not self.is_guarded:
            return ()
        place = f"token_file={self.token_file!r}" if self.token_file else f"tokens={self.tokens!r}"
        if self.token_file:
            text = _text(self.token_file, "token_file")
        elif (value := os.environ.get(self.tokens)) is not None:
            text = value
        else:
            raise DeploymentError(f"{place} names no variable of the run's environment. Set it, or use token_file=.")
        tokens = tuple(dict.fromkeys(text.split()))
        wrong = [number for number, token in enumerate(tokens, 1) if not _TOKEN.fullmatch(token)]
        if wrong or not tokens:
            problem = f"number {wrong[0]} is not a token" if wrong else "the list is empty"
            raise DeploymentError(
                f"{place} must hold tokens, separated by spaces or lines, but {problem}. A token has at least 16 "
                "letters, digits or characters of -._~+/, such as those of `openssl rand -hex 32`."
            )
        return tokens

    def read_pair(self) -> tuple[str, str]:
        """The certificate and its key, after a check that clients can use them.

        Raises:
            DeploymentError: one cannot be read, they do not belong together, or the certificate is not valid now.
        """
        pair = _text(self.certificate, "certificate"), _text(self.key, "key")
        try:
            # Without this, OpenSSL would ask a terminal for a passphrase.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.certificate, self.key, password=lambda: "")
            certificate = _x509.load_pem_x509_certificates(pair[0].encode())[0]
        except (ssl.SSLError, ValueError, OSError) as error:
            reason = getattr(error, "reason", None) or type(error).__name__
            raise DeploymentError(
                f"certificate={self.certificate!r} and key={self.key!r} are not a certificate and its key in PEM, "
                f"without a passphrase ({reason}). Compare them: `openssl x509 -noout -pubkey -in …`, `openssl pkey "
                "-pubout -in …`."
            ) from None
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if not start <= datetime.now(UTC) < end:
            raise DeploymentError(f"certificate={self.certificate!r} is valid from {start} to {end} only. Renew it.")
        return pair


LOOPBACK = Access()


def trust(certificate: str) -> ssl.SSLContext:
    """Trust in a server that has this certificate, whatever its name: it is asked by an address of this machine."""
    context = ssl.create_default_context(cadata=certificate)
    context.check_hostname = False
    context.verify_flags = ssl.VERIFY_X509_PARTIAL_CHAIN  # its authority may be one that this machine does not know
    return context


def _text(place: str, option: str) -> str:
    try:
        return Path(place).read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text"
        raise DeploymentError(f"{option}={place!r} cannot be read: {reason}.") from None
