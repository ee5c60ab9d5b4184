"""What people wrote: its links lead somewhere, it names nobody's machine, and it lists what is really installed."""

import re
import tomllib
from pathlib import Path

import pytest

from docs.generate.markdown import anchor
from tests.unit.house_rules import ROOT

PLACES = ("*.md", "docs/**/*.md", "examples/*.md", "tests/**/*.md")
PAGES = sorted(page for place in PLACES for page in ROOT.glob(place))
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def _prose(page: Path) -> str:
    return FENCED.sub("", page.read_text(encoding="utf-8"))


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", _prose(page), re.MULTILINE)
    return {anchor(re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)) for heading in headings}


def _is_dead(page: Path, target: str) -> bool:
    path, _, place = target.partition("#")
    there = (page.parent / path).resolve() if path else page
    return not there.exists() or bool(place and there.suffix == ".md" and place not in _anchors(there))


@each_page
def test_every_link_leads_somewhere(page: Path):
    targets = [target for target in LINK.findall(_prose(page)) if "://" not in target]

    assert [target for target in targets if _is_dead(page, target)] == []


@each_page
def test_no_page_names_a_path_of_somebodys_machine(page: Path):
    text = page.read_text(encoding="utf-8")

    assert re.findall(r"/(?:home|Users|root)/\w+", text) == []


@each_page
def test_no_page_has_the_marks_of_a_merge(page: Path):
    assert not re.search(r"^(<<<<<<<|>>>>>>>) ", page.read_text(), re.MULTILINE)


def test_a_dead_link_is_found(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("# Here\n[a](page.md#here) [b](gone.md) [c](#there)\n", encoding="utf-8")

    assert [target for target in LINK.findall(_prose(page)) if _is_dead(page, target)] == ["gone.md", "#there"]


def _declared() -> dict[str, list[str]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = {"Always": project["dependencies"]}
    groups |= {f"Extra: {name}": lines for name, lines in project["optional-dependencies"].items()}
    return {group: sorted(re.split(r"[ <>=!~\[;]", line)[0] for line in lines) for group, lines in groups.items()}


def _documented() -> dict[str, list[str]]:
    text = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    named = {
        section.splitlines()[0]: sorted(re.findall(r"^\| `([^`]+)`", section, re.MULTILINE)) for section in sections
    }
    return {title: names for title, names in named.items() if title == "Always" or title.startswith("Extra: ")}


def test_every_dependency_has_its_reason():
    assert _documented() == _declared()


WRITTEN = [page for page in PAGES if "reference" not in page.parts]
NAMES = re.compile(r"`([A-Z][A-Z0-9]*_[A-Z0-9_]+|mesh_[a-z_]+|compute\.[a-z_.]+\.v\d+)(?:=[^`]*)?`")


def _known() -> str:
    sources = [*(ROOT / "docs" / "reference").glob("*.md"), *(ROOT / "examples").glob("*.py")]
    return "".join(source.read_text(encoding="utf-8") for source in sources)


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_names_exists(page: Path):
    """Settings, streams, states, metrics, subjects: each is in a reference made from the code, or an example."""
    known = _known()

    named = NAMES.findall(page.read_text(encoding="utf-8"))

    assert [name for name in named if not re.search(rf"\b{re.escape(name)}\b", known)] == []
