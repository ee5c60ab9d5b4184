"""Who this machine and this process are."""

import fcntl
import os
import re
import secrets
import socket
import uuid
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from libs.common.contracts.base import Identifier
from libs.common.errors import WrongSetting
from libs.common.kit.settings import PlatformSettings

_UNFIT = re.compile(r"[^A-Za-z0-9_-]+")
_KERNELS_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_LONGEST_HOST = 48


def data_directory(settings: PlatformSettings) -> Path:
    """Where everything kept on this machine is; made for its owner alone. Raises `WrongSetting`."""
    directory = settings.mesh_data_dir.expanduser().absolute()
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise WrongSetting(_not_writable(directory, error)) from None
    return directory


def node_id(settings: PlatformSettings) -> str:
    """The machine's name in the mesh: `NODE_ID`, else the one kept in the data directory, made at the first start.

    Services that start together agree on it: it is made under a lock. Raises `WrongSetting`.
    """
    if settings.node_id is not None:
        return settings.node_id
    directory = data_directory(settings)
    try:
        with (directory / "node_id.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return _kept(directory / "node_id") or _make(directory / "node_id")
    except OSError as error:
        raise WrongSetting(_not_writable(directory, error)) from None


def new_boot_id() -> str:
    """Tells one run of this process from the next."""
    return uuid.uuid4().hex


def machine_boot() -> str:
    """What the kernel calls the time since it started; where it has no name for it, all starts are one."""
    return _KERNELS_BOOT_ID.read_text(encoding="ascii").strip() if _KERNELS_BOOT_ID.exists() else "unknown"


def _kept(file: Path) -> str | None:
    try:
        text = file.read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        return None
    if not text:  # the machine stopped while it was written for the first time: nobody has seen it
        return None
    try:
        return TypeAdapter(Identifier).validate_python(text)
    except ValidationError:
        raise WrongSetting(
            f"{file} does not hold a node id; delete it to have a new one made, or set NODE_ID."
        ) from None


def _make(file: Path) -> str:
    host = _UNFIT.sub("-", socket.gethostname().split(".")[0]).strip("-")[:_LONGEST_HOST] or "node"
    made = f"{host}-{secrets.token_hex(4)}"
    fresh = file.with_suffix(".new")
    with fresh.open("w", encoding="utf-8") as out:
        out.write(made + "\n")
        out.flush()
        os.fsync(out.fileno())
    fresh.replace(file)
    return made


def _not_writable(directory: Path, error: OSError) -> str:
    return f"MESH_DATA_DIR is '{directory}', which cannot be written ({error.strerror}); choose another folder."
