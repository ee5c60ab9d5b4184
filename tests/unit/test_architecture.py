"""The import rules hold, and each rule finds what it is there to find."""

import re
import tomllib
from importlib.metadata import packages_distributions

import pytest

from tests.unit.house_rules import ROOT, Source, sources, undeclared_imports, violations

BAD_LINES = [
    ("libs/common/contracts/base.py", "import libs.common.errors", "must not know"),
    ("libs/common/contracts/base.py", "from libs.common.kit import service", "must not know"),
    ("libs/common/contracts/base.py", "import os", "pure file"),
    ("libs/common/errors.py", "from libs.common.contracts.base import Message", "must not know"),
    ("libs/common/clock.py", "from libs.common import errors", "must not know"),
    ("libs/common/bus/bus.py", "from libs.common.kit.service import Service", "must not know"),
    ("libs/common/bus/bus.py", "import nats", "only libs/common/bus/nats/*.py may"),
    ("libs/common/kit/service.py", "import services.sample.wiring", "must not know"),
    ("libs/common/kit/service.py", "from nats.aio.client import Client", "may"),
    ("libs/common/log/writer.py", "import libs.common.kit.service", "must not know"),
    ("libs/hardware/inventory.py", "from libs.common.kit import service", "must not know"),
    ("libs/hardware/inventory.py", "import pynvml", "only libs/hardware/*nvml*.py"),
    ("libs/hardware/inventory_nvml.py", "import pynvml", "at its top"),
    ("libs/inference/planner.py", "import random", "pure file"),
    ("services/sample/model.py", "from libs.common.clock import Clock", "pure file"),
    ("services/sample/model.py", "from services.sample.machine import step", "(model) imports"),
    ("services/sample/machine.py", "import nats", "may"),
    ("services/sample/machine.py", "import asyncio", "pure file"),
    ("services/sample/machine.py", "def now() -> object:\n    import time\n    return time.time()", "pure file"),
    ("services/sample/machine.py", "def read() -> str:\n    return open('x').read()", "calls open"),
    ("services/sample/machine.py", "from datetime import datetime\nNOW = datetime.now()", "calls datetime.now"),
    ("services/sample/machine.py", "from services.sample.store import Store", "(pure) imports"),
    ("services/sample/matching.py", "import logging", "pure file"),
    ("services/sample/store.py", "from services.sample.use_cases import Cases", "(port) imports"),
    ("services/sample/store_sqlite.py", "from services.sample.use_cases import Cases", "(adapter) imports"),
    ("services/sample/use_cases.py", "from services.sample.settings import Settings", "(use_cases) imports"),
    ("services/sample/use_cases.py", "from services.sample.store_sqlite import SqliteStore", "(use_cases) imports"),
    ("services/sample/use_cases.py", "from libs.common.bus.nats import transport", "only wiring chooses"),
    ("services/sample/use_cases.py", "import sqlite3", "may"),
    ("services/sample/use_cases.py", "import httpx", "may"),
    ("services/sample/use_cases.py", "from rich.table import Table", "may"),
    ("services/sample/model.py", "import uvloop", "may"),
    ("services/sample/use_cases.py", "from fastapi import APIRouter", "may"),
    ("services/sample/use_cases.py", "import services.other.model", "services never import one another"),
    ("services/sample/use_cases.py", "from services.up import main", "services never import one another"),
    ("services/sample/use_cases.py", "SUBJECT = 'compute.work.submit.v1'", "writes the subject"),
    ("services/sample/wiring.py", "import os\nNAME = os.environ['NAME']", "reads the environment"),
    ("services/sample/store_sqlite.py", "from os import getenv", "reads the environment"),
    ("libs/common/bus/bus.py", "import os\nNAME = os.getenv('NAME')", "reads the environment"),
    ("services/sample/use_cases.py", "from services import other", "services never import one another"),
    ("services/sample/use_cases.py", "from tests.unit import house_rules", "must not know"),
    ("services/sample/http_api.py", "from services.sample.store import Store", "(http_api) imports"),
    ("services/sample/http_api.py", "from services.sample.nats_api import open_door", "(http_api) imports"),
    ("services/sample/nats_api.py", "from services.sample.machine import step", "(nats_api) imports"),
    ("services/sample/nats_api.py", "from fastapi import HTTPException", "may"),
    ("services/sample/settings.py", "from services.sample.model import Thing", "(settings) imports"),
    ("services/sample/wiring.py", "import uvicorn", "may"),
    ("services/sample/wiring.py", "import numpy", "at its top"),
    ("services/sample/__main__.py", "from services.sample.use_cases import Cases", "(__main__) imports"),
    ("services/sample/engine_program.py", "from services.sample.use_cases import Cases", "(program) imports"),
    ("services/sample/use_cases.py", "\n" * 401, "400 are the limit"),
    ("services/sample/use_cases.py", "def long() -> None:\n" + "    x = 1\n" * 60, "60 are the limit"),
]

GOOD_FILES = {
    "libs/common/log/writer.py": "from libs.common.bus.bus import Bus\n",
    "libs/hardware/inventory.py": "from libs.common.contracts.node_registry import Inventory\n",
    "libs/hardware/inventory_nvml.py": "def read() -> None:\n    import pynvml\n",
    "libs/inference/planner.py": "import math\n",
    "services/up.py": "import httpx\nimport services.sample.wiring\nimport services.other.wiring\n",
    "services/other/model.py": "",
    "services/other/wiring.py": "",
    "services/sample/__init__.py": '"""Shows every kind of file."""\n',
    "libs/common/bus/nats/transport.py": "import nats\n",
    "services/sample/__main__.py": "from libs.common.kit import runner\nfrom services.sample.wiring import build\n",
    "services/sample/model.py": "from dataclasses import dataclass\nfrom libs.common.errors import NotFound\n",
    "services/sample/machine.py": "from services.sample.model import Thing\n",
    "services/sample/matching.py": "from services.sample.machine import step\n",
    "services/sample/settings.py": "from pydantic_settings import BaseSettings\n",
    "services/sample/store.py": "from typing import Protocol\nclass Store(Protocol):\n    ...\n",
    "services/sample/store_sqlite.py": "import sqlite3\nfrom services.sample.store import Store\n",
    "services/sample/store_facts.py": "import math\n",
    "services/sample/rules.py": "from services.sample.store_facts import LIMIT\n",
    "services/sample/use_cases.py": "from libs.common.bus.bus import Bus\nfrom services.sample.store import Store\n",
    "services/sample/http_api.py": "from fastapi import APIRouter\nfrom services.sample.use_cases import Cases\n",
    "services/sample/nats_api.py": "from services.sample.use_cases import Cases\n",
    "services/sample/wiring.py": "import libs.common.bus.nats.transport\nfrom services.sample import store_sqlite\n",
    "services/sample/engine_program.py": "import xllamacpp\nif __name__ == '__main__':\n    run()\n",
}


def _house(extra: dict[str, str] | None = None) -> list[Source]:
    """The real contracts and the bus's ports, with an example service in place of the real ones."""
    kept = {file.path: file.text for file in sources() if file.path in {path for path, _, _ in BAD_LINES}}
    return [Source(path, text) for path, text in (kept | GOOD_FILES | (extra or {})).items()]


def test_the_house_keeps_its_import_rules():
    assert violations(sources()) == []


def test_a_service_that_keeps_the_rules_is_not_accused():
    assert violations(_house()) == []


@pytest.mark.parametrize(("path", "line", "accusation"), BAD_LINES)
def test_a_bad_line_is_found(path: str, line: str, accusation: str):
    before = next((file.text for file in _house() if file.path == path), "")

    found = violations(_house({path: f"{before}\n{line}\n"}))

    assert any(path in sentence and accusation in sentence for sentence in found), found


def test_every_service_has_the_files_that_make_it_one():
    services = {file.service for file in sources() if file.service}
    paths = {file.path for file in sources()}
    needed = ("__init__", "__main__", "settings", "http_api", "use_cases", "wiring")

    missing = [f"services/{service}/{name}.py" for service in sorted(services) for name in needed]
    missing = [path for path in missing if path not in paths]

    assert missing == []


def _named_in(*groups: str) -> frozenset[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = {"dependencies": project["dependencies"], **project["optional-dependencies"]}
    lines = [line for group, lines in lists.items() if not groups or group in groups for line in lines]
    return frozenset(re.split(r"[ <>=!~\[;]", line)[0].lower() for line in lines)


def _distribution_of() -> dict[str, str]:
    names = {package: found[0].lower().replace("_", "-") for package, found in packages_distributions().items()}
    # Starlette and the API half of OpenTelemetry are the public face of what we name.
    return names | {"starlette": "fastapi", "pydantic_core": "pydantic", "opentelemetry": "opentelemetry-api"}


def test_every_third_party_import_is_declared():
    declared = _named_in("dependencies", "engine")

    assert undeclared_imports(sources(), declared, _named_in(), _distribution_of()) == []


def test_an_undeclared_import_is_found():
    bad = [
        Source("services/sample/wiring.py", "import requests\n"),
        Source("services/sample/use_cases.py", "import opentelemetry\n"),
        Source("services/sample/signer.py", "def sign() -> None:\n    import nkeys\n"),
        Source("services/sample/signer_nkeys.py", "import nkeys\n"),
    ]

    found = undeclared_imports(bad, _named_in("dependencies"), _named_in(), _distribution_of())

    assert found == [
        "services/sample/wiring.py imports requests, but pyproject.toml does not name requests",
        "services/sample/use_cases.py imports opentelemetry, but pyproject.toml does not name opentelemetry-api",
    ]
