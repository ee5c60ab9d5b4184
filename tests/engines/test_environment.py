"""What `make test-engines` does where the environment cannot be made."""

import os
import subprocess
import sys
import venv
from pathlib import Path

SCRIPT = Path("tools/engines_environment.sh")
TORCH = "2.13.0"


def made_in(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    told = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    return subprocess.run(
        ["sh", SCRIPT, folder],
        env=told | {"PYTHON": sys.executable, "PIP_CONFIG_FILE": os.devnull} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_pytorch_for_cuda_is_refused_with_the_command_that_gets_the_other(tmp_path):
    venv.create(tmp_path / "env")
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    kept = site / f"torch-{TORCH}+cu130.dist-info"
    kept.mkdir()
    (kept / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {TORCH}+cu130\n")
    done = made_in(tmp_path / "env")

    assert done.returncode == 1
    assert f"has torch {TORCH}+cu130" in done.stderr
    assert f"{tmp_path}/env/bin/python -m pip install --no-deps --force-reinstall torch=={TORCH}+cpu" in done.stderr


def test_where_there_is_only_one_for_cuda_nothing_is_installed(tmp_path):
    done = made_in(tmp_path / "env", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path))

    assert done.returncode == 1
    assert f"no torch=={TORCH}+cpu" in done.stderr
    assert "pip install --no-deps" in done.stderr
    assert not list((tmp_path / "env").glob("lib/python*/site-packages/torch*"))
