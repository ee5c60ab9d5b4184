"""Markdown as GitHub reads it."""

import json
import re
from collections.abc import Iterable, Sequence

NOTE = "<!-- Written by `make docs` from the code. Changes made here are lost. -->"


def page(title: str, introduction: str, *parts: str) -> str:
    return "\n\n".join([f"# {title}", NOTE, introduction, *(part for part in parts if part)]) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def code(text: str) -> str:
    return f"`{text}`" if text else ""


def json_block(value: object) -> str:
    return f"```json\n{json.dumps(value, indent=2, ensure_ascii=False)}\n```"


def link(heading: str, page: str = "") -> str:
    return f"[{heading}]({page}#{anchor(heading)})"


def anchor(heading: str) -> str:
    """Where a heading is found on its page."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def sentence(text: str | None) -> str:
    """A docstring on one line."""
    return " ".join((text or "").split())


def _cell(text: str) -> str:
    return text.replace("\n", " ").replace("|", "\\|")
