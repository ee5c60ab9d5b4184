"""Where a nats-server is, and who we are there."""

import base64
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from libs.common.errors import WrongSetting

_JWT = re.compile(rb"-----BEGIN NATS USER JWT-----\s+(\S+)\s+-")
_SEED = re.compile(rb"-----BEGIN USER NKEY SEED-----\s+(\S+)\s+-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """`servers` hold no secrets, so they may be shown; `user` and `password`, or `token`, come from the URL."""

    servers: tuple[str, ...]
    name: str
    user: str | None = None
    password: str | None = None
    token: str | None = None
    credentials: Path | None = None
    inbox_prefix: str = "_INBOX"

    def __str__(self) -> str:
        return ",".join(self.servers)

    @property
    def who(self) -> str:
        """How we are known to the server, for sentences."""
        if self.credentials is not None:
            return f"the user of {self.credentials}"
        if self.user is not None:
            return f"user {self.user!r}"
        return "the owner of the token" if self.token is not None else "a client without credentials"


def address(url: str, *, name: str, credentials: Path | None = None, inbox_prefix: str = "_INBOX") -> Address:
    """Read `nats://[user:password@|token@]host[:port][,…]`. Raises `WrongSetting`."""
    parts = [_split(part.strip()) for part in url.split(",") if part.strip()]
    if not parts:
        raise WrongSetting("The NATS URL is empty; it looks like nats://127.0.0.1:4222")
    user, password = next(((user, password) for _, user, password in parts if user is not None), (None, None))
    return Address(
        servers=tuple(server for server, _, _ in parts),
        name=name,
        user=user if password is not None else None,
        password=password,
        token=user if password is None else None,
        credentials=credentials,
        inbox_prefix=inbox_prefix,
    )


def _split(part: str) -> tuple[str, str | None, str | None]:
    url = urlsplit(part if "://" in part else f"nats://{part}")
    try:
        port = url.port or 4222
    except ValueError:
        port = 0
    if url.scheme not in ("nats", "tls") or not url.hostname or not port:
        shown = f"{url.scheme}://{url.netloc.rpartition('@')[2]}"
        raise WrongSetting(f"{shown!r} is no address of a nats-server; it looks like nats://127.0.0.1:4222")
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    user = unquote(url.username) if url.username else None
    password = unquote(url.password) if url.password is not None else None
    return f"{url.scheme}://{host}:{port}", user, password


def sign_in(address: Address) -> dict[str, Any]:
    """How to prove who we are, as nats-py's arguments. The credentials file is read anew for every connection.

    nats-py's own reader is not used: it never returns from a file without a JWT in it, as a file is while it is being
    replaced. Raises `WrongSetting`.
    """
    if address.credentials is None:
        return {"user": address.user, "password": address.password, "token": address.token}
    jwt, seed = _read(address.credentials)
    return {"user_jwt_cb": lambda: bytearray(jwt), "signature_cb": _signer(address.credentials, seed)}


def _read(path: Path) -> tuple[bytes, bytes]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WrongSetting(f"The NATS credentials file {path} cannot be read: {error.strerror}") from error
    jwt, seed = _JWT.search(content), _SEED.search(content)
    if jwt is None or seed is None:
        raise WrongSetting(f"The NATS credentials file {path} holds no user JWT with its seed")
    return jwt[1], seed[1]


def _signer(path: Path, seed: bytes) -> Callable[[str], bytes]:
    try:
        import nkeys  # type: ignore[import-untyped]  # only who has a credentials file needs it
    except ImportError as error:
        raise WrongSetting("A NATS credentials file needs the package nkeys: pip install nkeys") from error
    try:
        keys = nkeys.from_seed(bytearray(seed))
    except (nkeys.NkeysError, ValueError) as error:
        raise WrongSetting(f"The NATS credentials file {path} holds no valid seed") from error
    return lambda nonce: base64.b64encode(keys.sign(nonce.encode()))


def user_name(address: Address) -> str:
    """Like `who`, with the name that a JWT carries."""
    if address.credentials is None:
        return address.who
    try:
        body = _read(address.credentials)[0].split(b".")[1]
        name = json.loads(base64.urlsafe_b64decode(body + b"=" * (-len(body) % 4)))["name"]
    except (WrongSetting, ValueError, KeyError, IndexError):
        return address.who
    return f"user {name!r}"
