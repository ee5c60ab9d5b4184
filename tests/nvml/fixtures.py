"""A simulated NVML for each test that asks for one."""

from pathlib import Path

import pytest

from tests.nvml.simulator import Simulator, build, compiler


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if compiler() is None:
        pytest.skip("no C compiler is installed, so the simulated NVML cannot be built: apt-get install gcc libc6-dev")
    return build(tmp_path_factory.getbasetemp() / "nvml")


@pytest.fixture
def simulator(nvml_library: Path, tmp_path: Path) -> Simulator:
    return Simulator(nvml_library, tmp_path / "machine.txt")
