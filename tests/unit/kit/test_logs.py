"""Logs: one line per event, ours and those of libraries alike. Run in a process of their own: logging is global."""

import json
import subprocess
import sys
from typing import Any

from libs.common.kit.logs import BoundedFile

SAY = """
import logging, warnings, structlog
from libs.common.bus.observer import Correlated
from libs.common.kit.logs import configure
configure({format!r}, {level!r})
log = structlog.get_logger()
log.debug("hidden")
with structlog.contextvars.bound_contextvars(service="work_marshaling"), Correlated("abc"):
    log.info("work_accepted", work_id="w\\n1", count=2)
    logging.getLogger("some.library").warning("it %s", "happened")
    logging.getLogger("httpx").info("a request")
    try:
        1 / 0
    except ZeroDivisionError:
        log.exception("went_wrong")
"""


def said(format: str, level: str = "info") -> str:
    script = SAY.format(format=format, level=level)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return done.stderr


def lines(level: str = "info") -> list[dict[str, Any]]:
    return [json.loads(line) for line in said("json", level).splitlines()]


def test_every_event_is_one_line_of_json_with_service_and_correlation_id() -> None:
    accepted, _, wrong = lines()
    assert accepted.pop("timestamp").endswith("Z")
    assert accepted == {
        "event": "work_accepted",
        "level": "info",
        "service": "work_marshaling",
        "correlation_id": "abc",
        "work_id": "w\n1",
        "count": 2,
    }
    assert "ZeroDivisionError: division by zero" in wrong["exception"]


def test_libraries_take_the_same_way() -> None:
    library = lines()[1]
    assert (library["event"], library["logger"], library["level"]) == ("it happened", "some.library", "warning")
    assert library["correlation_id"] == "abc"


def test_libraries_are_a_step_quieter_than_we_are() -> None:
    assert "a request" not in [line["event"] for line in lines()]
    assert "a request" in [line["event"] for line in lines("debug")]


def test_the_level_hides_what_is_below_it() -> None:
    assert [line["event"] for line in lines("error")] == ["went_wrong"]


def test_the_console_is_for_people() -> None:
    first = said("console").splitlines()[0]
    assert "work_accepted" in first
    assert "service=work_marshaling" in first
    assert "\x1b[" not in first


def test_a_log_file_that_has_grown_large_is_put_aside_and_the_one_before_forgotten(tmp_path):
    path = tmp_path / "mesh.log"
    with BoundedFile(path, large_bytes=100) as lines:
        for number in range(30):
            lines.write(f"line {number:03} of thirty\n")

    kept = (tmp_path / "mesh.log.1").read_text() + path.read_text()
    assert kept.endswith("line 029 of thirty\n")
    assert path.stat().st_size <= 120
    assert len(list(tmp_path.iterdir())) == 2
