"""The two examples work together, as somebody outside would run them."""

import ast
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.mesh_process import MeshProcess, mesh_process

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NEEDED = ("node_registry", "work_marshaling")


def _environment(mesh: MeshProcess) -> dict[str, str]:
    return {**os.environ, "NATS_URL": mesh.nats_url, "WORK_MARSHALING_URL": mesh.url("work_marshaling")}


WORKERS = {
    "python": (sys.executable, str(EXAMPLES / "external_worker.py")),
    "javascript": ("node", str(EXAMPLES / "external_worker.js")),
}


@contextlib.contextmanager
def _worker(mesh: MeshProcess, command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, env=_environment(mesh), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "waiting for work\n"
            yield process
        finally:
            process.kill()


def _submit(mesh: MeshProcess, text: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / "external_submitter.py"), text]
    return subprocess.run(command, env=_environment(mesh), capture_output=True, text=True, timeout=80, check=False)


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshProcess]:
    with mesh_process(tmp_path_factory.mktemp("mesh") / "data") as running:
        yield running.start(("-m", "services", *NEEDED)).wait_ready(NEEDED)


@pytest.mark.parametrize("language", WORKERS)
def test_an_outside_worker_completes_what_an_outside_submitter_sent(mesh, language):
    if not shutil.which(WORKERS[language][0]):
        pytest.skip(f"there is no {WORKERS[language][0]} here: apt-get install nodejs")
    with _worker(mesh, WORKERS[language]) as worker:
        first, second = _submit(mesh, "hello"), _submit(mesh, "again")

        assert "{'text': 'HELLO'}" in first.stdout, first.stderr
        assert "{'text': 'AGAIN'}" in second.stdout, second.stderr
        assert worker.stdout is not None
        assert worker.stdout.readline().startswith("completed srv-")


def _follow(mesh: MeshProcess, item: dict[str, object]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / "follow_and_replay.py"), json.dumps(item)]
    return subprocess.run(command, env=_environment(mesh), capture_output=True, text=True, timeout=80, check=False)


def test_an_item_is_followed_to_its_result(mesh: MeshProcess):
    external = {"work_type": "shout", "payload": {"text": "hello"}, "requirements": {"node_ids": ["external"]}}
    with _worker(mesh, WORKERS["python"]):
        told = _follow(mesh, external)

    assert told.stdout.endswith("{'text': 'HELLO'}\n"), told.stderr
    assert " completed\n" in told.stdout


def test_an_item_that_nobody_could_do_is_run_once_more(mesh: MeshProcess):
    external = {"work_type": "shout", "max_attempts": 1, "timeout_seconds": 0.3}
    told = _follow(mesh, external | {"requirements": {"node_ids": ["external"]}})

    assert told.stdout.count(" dead\n") == 2, told.stderr


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda example: example.name)
def test_an_example_is_short_and_uses_nothing_of_ours(example: Path):
    text = example.read_text(encoding="utf-8")
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {alias.name if isinstance(node, ast.Import) else node.module for node in nodes for alias in node.names}
    roots = {str(name).split(".")[0] for name in names}

    assert text.count("\n") < 40
    assert roots - set(sys.stdlib_module_names) <= {"nats", "httpx"}


def test_the_example_in_javascript_is_short_and_needs_no_package():
    text = (EXAMPLES / "external_worker.js").read_text(encoding="utf-8")

    assert text.count("\n") < 40
    assert set(re.findall(r'require\("([^"]+)"\)', text)) == {"node:net"}
