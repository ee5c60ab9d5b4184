"""`docs/reference/settings.md`: every environment variable that is read."""

from pydantic_settings import BaseSettings

from docs.generate.markdown import code, page, table
from docs.generate.running import all_settings
from libs.common.kit.settings import environment_names

INTRODUCTION = """\
All settings are environment variables. An empty one counts as not set. A wrong value ends the start with a sentence
that names the variable, its value and what is allowed. Lists are written as JSON or with commas between their parts.

A service reads the variables under its own name and those of the machine, which all services on it share."""


NOTHING = ("()", "[]", "{}")


def settings() -> str:
    return page("Settings", INTRODUCTION, *(_section(kind) for kind in all_settings() if environment_names(kind)))


def _section(kind: type[BaseSettings]) -> str:
    rows = [
        [
            " or ".join(code(name) for name in (variable.name, *variable.also)),
            variable.allowed,
            "required" if variable.required else "" if variable.default in NOTHING else code(variable.default),
            variable.description,
        ]
        for variable in environment_names(kind)
    ]
    return f"## {_title(kind)}\n\n{table(['variable', 'allowed', 'default', 'meaning'], rows)}"


def _title(kind: type[BaseSettings]) -> str:
    parts = kind.__module__.split(".")
    return parts[1] if parts[0] == "services" else "The machine"
