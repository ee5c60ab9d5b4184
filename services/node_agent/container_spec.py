"""What a container job may ask for, read from its payload; and what the owner of this machine allows of it."""

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from libs.common.contracts.work_marshaling import WorkError
from libs.common.errors import Malformed

MOST_FILES = 64
MOST_INPUT_BYTES = 512 * 1024
MOST_OUTPUT_BYTES = 256 * 1024
LONGEST_PATH, DEEPEST_PATH = 256, 16
MOST_WORDS, LONGEST_COMMAND = 256, 64 * 1024
MOST_VARIABLES, LONGEST_VARIABLE = 128, 32 * 1024
LEAST_MEMORY_MB = 6
MOST_MEMORY_MB = 64 * 1024 * 1024
MOST_CPUS = 1024.0
MOST_GPUS = 64

_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,255}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """One container as its submitter wants it. What is None is left to the image or to the owner of the machine."""

    image: str
    command: tuple[str, ...] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    cpus: float | None = None
    memory_mb: int | None = None
    gpus: int = 0
    network: bool = False
    success_exit_codes: tuple[int, ...] = (0,)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerRules:
    """What the owner allows each container. `images` are patterns; an image that matches none does not run here."""

    images: tuple[str, ...]
    cpus: float
    memory_mb: int
    disk_mb: int
    gpus: tuple[str, ...]
    network: bool


def read_spec(payload: Mapping[str, Any]) -> ContainerSpec:
    """Raises `Malformed`, naming the field, what is wrong with it and what is allowed."""
    unknown = sorted(set(payload) - set(_READERS))
    if unknown:
        raise Malformed(
            f"`{unknown[0][:64]}` is no field of a container; the fields are {', '.join(_READERS)}",
            field=unknown[0][:64],
        )
    if "image" not in payload:
        raise Malformed("`image` is missing: the name of a container image", field="image")
    return ContainerSpec(**{name: _READERS[name](payload[name]) for name in payload if payload[name] is not None})


def refused_by_owner(spec: ContainerSpec, rules: ContainerRules) -> WorkError | None:
    """Why this machine's owner does not let it run here. Another machine's owner may: each may be tried elsewhere."""
    if not any(fnmatchcase(spec.image, pattern) for pattern in rules.images):
        return _elsewhere("image_not_allowed", f"`image` is {spec.image}, which CONTAINER_IMAGES does not allow here")
    if spec.network and not rules.network:
        return _elsewhere("network_not_allowed", "`network` is true, which CONTAINER_NETWORK does not allow here")
    for name, wanted, most, setting in (
        ("cpus", spec.cpus, rules.cpus, "CONTAINER_CPUS"),
        ("memory_mb", spec.memory_mb, rules.memory_mb, "CONTAINER_MEMORY_MB"),
        ("gpus", spec.gpus, len(rules.gpus), "CONTAINER_GPUS"),
    ):
        if wanted is not None and wanted > most:
            return _elsewhere("limit_exceeded", f"`{name}` is {wanted:g}; {setting} gives a container {most:g} here")
    return None


def is_safe_path(path: str) -> bool:
    """Whether it stays inside the work folder, whatever is in there."""
    parts = path.split("/")
    return (
        0 < len(path) <= LONGEST_PATH
        and len(parts) <= DEEPEST_PATH
        and "\0" not in path
        and not any(part in ("", ".", "..") for part in parts)
    )


def encoded(content: bytes) -> dict[str, str]:
    """A file as JSON: its text, or in base64 what is no text."""
    try:
        return {"text": content.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(content).decode()}


def _elsewhere(code: str, message: str) -> WorkError:
    return WorkError(code=code, message=message, retryable=True)


def _wrong(name: str, wanted: str) -> Malformed:
    return Malformed(f"`{name}` must be {wanted}", field=name)


def _image(value: Any) -> str:
    if not isinstance(value, str) or not _IMAGE.fullmatch(value):
        raise _wrong("image", "the name of a container image, such as busybox:1.36, of at most 256 characters")
    return value


def _command(value: Any) -> tuple[str, ...]:
    words = value if isinstance(value, list) else []
    if not 1 <= len(words) <= MOST_WORDS or not all(isinstance(word, str) and "\0" not in word for word in words):
        raise _wrong("command", f"a list of 1 to {MOST_WORDS} texts without NUL: the program and its arguments")
    if sum(len(word.encode()) for word in words) > LONGEST_COMMAND:
        raise _wrong("command", f"at most {LONGEST_COMMAND} bytes long, all words together")
    return tuple(words)


def _environment(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or len(value) > MOST_VARIABLES:
        raise _wrong("environment", f"an object of at most {MOST_VARIABLES} variables")
    for name, text in value.items():
        if not _VARIABLE.fullmatch(name):
            raise _wrong("environment", f"an object of variables; {name[:64]!r} is no name of one")
        if not isinstance(text, str) or "\0" in text or len(text.encode()) > LONGEST_VARIABLE:
            raise _wrong(f"environment.{name}", f"a text of at most {LONGEST_VARIABLE} bytes without NUL")
    return value


def _files(value: Any) -> dict[str, bytes]:
    if not isinstance(value, dict) or len(value) > MOST_FILES:
        raise _wrong("files", f"an object of at most {MOST_FILES} files, by their paths")
    found = {_path("files", path): _content(path, given) for path, given in value.items()}
    if (size := sum(map(len, found.values()))) > MOST_INPUT_BYTES:
        raise _wrong("files", f"at most {MOST_INPUT_BYTES} bytes together; these are {size}")
    for path in found:
        parts = path.split("/")
        for parent in ("/".join(parts[:depth]) for depth in range(1, len(parts))):
            if parent in found:
                raise _wrong("files", f"such that no file is another one's folder; {parent!r} is both")
    return found


def _content(path: str, given: Any) -> bytes:
    name = f"files.{path}"
    if isinstance(given, dict) and len(given) == 1:
        text, encoded_text = given.get("text"), given.get("base64")
        if isinstance(text, str):
            return text.encode()
        if isinstance(encoded_text, str):
            try:
                return base64.b64decode(encoded_text, validate=True)
            except ValueError:
                raise _wrong(name, "in base64, as it says") from None
    raise _wrong(name, 'of the form {"text": "…"} or {"base64": "…"}')


def _outputs(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > MOST_FILES:
        raise _wrong("outputs", f"a list of at most {MOST_FILES} paths")
    return tuple(dict.fromkeys(_path("outputs", path) for path in value))


def _path(name: str, path: Any) -> str:
    if not isinstance(path, str) or not is_safe_path(path):
        shown = repr(path[:64] if isinstance(path, str) else path)[:80]
        raise _wrong(
            name,
            f"paths inside the work folder: relative, without `.` and `..`, at most {LONGEST_PATH} characters and "
            f"{DEEPEST_PATH} levels; {shown} is not",
        )
    return path


def _cpus(value: Any) -> float:
    if not _is_number(value) or not 0.01 <= value <= MOST_CPUS:
        raise _wrong("cpus", f"a number from 0.01 to {MOST_CPUS:g}")
    return float(value)


def _whole(name: str, least: int, most: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise _wrong(name, f"a whole number from {least} to {most}")
        return value

    return read


def _network(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong("network", "true or false")
    return value


def _exit_codes(value: Any) -> tuple[int, ...]:
    codes = value if isinstance(value, list) else []
    if not 1 <= len(codes) <= 256 or not all(_is_number(code) and code in range(256) for code in codes):
        raise _wrong("success_exit_codes", "a list of whole numbers from 0 to 255")
    return tuple(int(code) for code in codes)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "image": _image,
    "command": _command,
    "environment": _environment,
    "files": _files,
    "outputs": _outputs,
    "cpus": _cpus,
    "memory_mb": _whole("memory_mb", LEAST_MEMORY_MB, MOST_MEMORY_MB),
    "gpus": _whole("gpus", 0, MOST_GPUS),
    "network": _network,
    "success_exit_codes": _exit_codes,
}
