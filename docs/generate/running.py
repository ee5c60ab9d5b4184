"""The services as they are built, without a network: what the references on REST, metrics and settings look into."""

from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules, walk_packages

import libs
import services


@cache
def service_names() -> tuple[str, ...]:
    """Every service there is, in alphabetical order."""
    return tuple(sorted(found.name for found in iter_modules(services.__path__) if found.ispkg))


@cache
def import_everything() -> None:
    """So that classes are known that only importing makes known. Programs that run as children are left alone."""
    for package in (libs, *(import_module(f"services.{name}") for name in service_names())):
        for found in walk_packages(package.__path__, f"{package.__name__}."):
            if not _is_program(found.name):
                import_module(found.name)


def _is_program(module: str) -> bool:
    root = Path(services.__file__ or "").parents[1]
    file = root.joinpath(*module.split(".")).with_suffix(".py")
    return file.is_file() and "__name__ ==" in file.read_text(encoding="utf-8")
