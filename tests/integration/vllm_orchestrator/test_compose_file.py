"""The file for Docker Compose, read by Docker Compose itself."""

import shutil
import subprocess
from pathlib import Path

import pytest

from libs.common.contracts.vllm_instances import EngineChoice, InstancePart
from services.vllm_orchestrator.compose import compose_file

TOGETHER = ("--nnodes", "2", "--node-rank", "0", "--master-addr", "10.0.0.2")


def run(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def plugin() -> list[list[str]]:
    """Compose v2, where it is installed beside v1."""
    installed = (
        shutil.which("docker") is not None and run("docker", "compose", "version", folder=Path()).returncode == 0
    )
    return [["docker", "compose"]] if installed else []


@pytest.mark.parametrize("arguments", [("some/model",), ("some/model", *TOGETHER)], ids=["alone", "over nodes"])
def test_docker_compose_reads_the_file_and_keeps_what_it_says(tmp_path: Path, arguments: tuple[str, ...]):
    program = shutil.which("docker-compose")
    if program is None:
        pytest.skip("docker-compose is not installed: apt-get install docker-compose")
    part = InstancePart(
        rank=0,
        node_id="a",
        arguments=arguments,
        environment={"VLLM_PP_LAYER_PARTITION": "20,12"},
        gpu_uuids=("GPU-a", "GPU-b"),
        reservation_id="one/1/a",
    )
    (tmp_path / "compose.json").write_text(compose_file("one", EngineChoice.VLLM, part).model_dump_json())

    for words in ([program], *plugin()):
        read = run(*words, "-f", "compose.json", "config", folder=tmp_path)
        assert read.returncode == 0, read.stderr
        told = [line.strip() for line in read.stdout.splitlines()]
        for line in ("driver: nvidia", "- GPU-a", "- GPU-b", "- some/model", "VLLM_PP_LAYER_PARTITION: 20,12", "- gpu"):
            assert line in told, read.stdout
        assert ("network_mode: host" in told) == ("--nnodes" in arguments)
