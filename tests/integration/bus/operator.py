"""A nats-server's operator mode in the small: one operator, one account, users with a JWT that may expire."""

import base64
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import nkeys

PREFIXES = {
    "operator": nkeys.PREFIX_BYTE_OPERATOR,
    "account": nkeys.PREFIX_BYTE_ACCOUNT,
    "user": nkeys.PREFIX_BYTE_USER,
}
UNLIMITED = {
    "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": True, "conn": -1, "leaf": -1,
}  # fmt: skip
STORAGE = {"mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1}


class Operator:
    """Makes what a nats-server in operator mode and its users need."""

    def __init__(self) -> None:
        self._operator = _keys("operator")
        self._account = _keys("account")
        self._system = _keys("account")
        self._user = _keys("user")

    @property
    def configuration(self) -> str:
        operator = _public(self._operator)
        system = _public(self._system)
        operator_jwt = self._sign(self._operator, operator, "operator", "operator", {"system_account": system})
        accounts = {
            _public(keys): self._sign(self._operator, _public(keys), name, "account", {"limits": limits})
            for keys, name, limits in (
                (self._account, "mesh", UNLIMITED | STORAGE),
                (self._system, "system", UNLIMITED),
            )
        }
        preload = "\n".join(f"  {account}: {jwt}" for account, jwt in accounts.items())
        return (
            f"operator: {operator_jwt}\nsystem_account: {system}\n"
            f"resolver: MEMORY\nresolver_preload: {{\n{preload}\n}}\n"
        )

    def write_credentials(self, path: Path, *, valid_seconds: int | None) -> None:
        """Credentials of the user `node-1`, put in place at once as a renewal would."""
        claims = {"subs": -1, "data": -1, "payload": -1, "pub": {"deny": ["test.Denied.>"]}}
        expires = None if valid_seconds is None else int(time.time()) + valid_seconds
        jwt = self._sign(self._account, _public(self._user), "node-1", "user", claims, expires)
        fresh = path.with_suffix(".fresh")
        fresh.write_text(
            f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{self._user.seed.decode()}\n------END USER NKEY SEED------\n"
        )
        fresh.replace(path)

    def _sign(
        self, by: nkeys.KeyPair, subject: str, name: str, kind: str, nats: dict[str, Any], expires: int | None = None
    ) -> str:
        claims = {
            "iat": int(time.time()),
            "iss": _public(by),
            "name": name,
            "sub": subject,
            "nats": {**nats, "type": kind, "version": 2},
            **({} if expires is None else {"exp": expires}),
        }
        claims["jti"] = base64.b32encode(hashlib.sha256(_json(claims)).digest()).decode().rstrip("=")
        head = _url64(_json({"typ": "JWT", "alg": "ed25519-nkey"}))
        body = _url64(_json(claims))
        return f"{head}.{body}.{_url64(by.sign(f'{head}.{body}'.encode()))}"


def _keys(kind: str) -> nkeys.KeyPair:
    return nkeys.from_seed(bytearray(nkeys.encode_seed(os.urandom(32), PREFIXES[kind])))


def _public(keys: nkeys.KeyPair) -> str:
    return str(keys.public_key.decode())


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def _url64(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).decode().rstrip("=")
