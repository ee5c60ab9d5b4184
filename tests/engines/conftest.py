"""A real vLLM on this machine's processor, the model that it serves, and one mesh for all that is asked of it."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.deploying import Deploying
from tests.mesh_process import MeshProcess, mesh_process
from tests.network_namespace import network_namespace

ENVIRONMENT = Path(__file__).parents[2] / ".venv-engines"
TINY_LLAMA = Path(__file__).with_name("tiny_llama.py")
PATIENCE = 600
"""Seconds for one start: about 25 without and 60 with compiling on two quiet processors, and they may not be quiet."""

QUIET = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_START_SECONDS": str(PATIENCE),
    "ENGINE": "none",
}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one model, `tiny`."""
    folder = tmp_path_factory.mktemp("models")
    program = ENVIRONMENT / "bin" / "python"
    subprocess.run([program, TINY_LLAMA, folder / "tiny"], check=True, capture_output=True, timeout=300)
    return folder


@pytest.fixture(scope="session")
def more_arguments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with words that the next start of vLLM gets beside what the mesh says."""
    file = tmp_path_factory.mktemp("vllm") / "more"
    file.write_text("")
    return file


@pytest.fixture(scope="session")
def vllm(more_arguments: Path) -> Path:
    program = more_arguments.with_name("vllm")
    real = ENVIRONMENT / "bin" / "vllm"
    program.write_text(f'#!/bin/sh\nexec {real} "$@" $(cat {more_arguments})\n')
    program.chmod(0o755)
    return program


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where vLLM keeps what it compiled, for the next start."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="session")
def deploying(
    tmp_path_factory: pytest.TempPathFactory, models: Path, vllm: Path, compiled: Path
) -> Iterator[Deploying]:
    folder = tmp_path_factory.mktemp("mesh")
    with _mesh(folder / "first", models, vllm, compiled, NODE_ID="first") as mesh:
        mesh.start().wait_ready()
        mesh.wait_until_listed()
        made = Deploying(mesh, vllm.parent, patience=PATIENCE)
        with made.client:
            yield made


@pytest.fixture(scope="session")
def served(deploying: Deploying) -> dict[str, Any]:
    """The instance `tiny`, compiled as vLLM does where nobody says otherwise, until a test deletes it."""
    deploying.deploy(instance_name="tiny", max_model_len=1024, max_num_seqs=8)
    return deploying.until_ready("tiny")


@pytest.fixture
def second_node(
    tmp_path: Path, deploying: Deploying, models: Path, vllm: Path, compiled: Path
) -> Iterator[MeshProcess]:
    """A second agent with a ledger, a detector and a network of its own, as a second machine has them."""
    services = ("node_agent", "gpu_orchestrator", "resource_detector")
    with network_namespace() as network, network.forwarded(deploying.mesh.nats_port) as port:
        environment = {"NODE_ID": "second", "NATS_URL": f"nats://{network.outside}:{port}", "ENGINE_HOST": "0.0.0.0"}
        with _mesh(tmp_path / "second", models, vllm, compiled, **environment) as mesh:
            mesh.start(network.entering((sys.executable, "-m", "services", *services)))
            deploying.until_nodes(2)
            yield mesh
            mesh.stop()


def _mesh(
    folder: Path, models: Path, vllm: Path, compiled: Path, **environment: str
) -> AbstractContextManager[MeshProcess]:
    more = {
        "ENGINE_PROGRAMS": f"vllm={vllm}",
        "VLLM_MODELS_FOLDER": str(models),
        "VLLM_CACHE_ROOT": str(compiled),
    }
    return mesh_process(folder, **QUIET, **more, **environment)
