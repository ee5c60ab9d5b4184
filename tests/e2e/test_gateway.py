"""A TensorZero gateway on the configuration that a mesh writes: it answers with what was deployed over REST."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorzero

from tests.deploying import Deploying
from tests.mesh_process import mesh_process

FUNCTION = """
[functions.greet]
type = "chat"
[functions.greet.variants.tiny]
type = "chat_completion"
model = "tiny-llama"
"""


def test_a_gateway_answers_with_what_was_deployed(tmp_path: Path):
    """The real gateway, in this process, on what is live: before, while and after a model is served."""
    folder = tmp_path / "tensorzero"
    (folder / "own").mkdir(parents=True)
    own = folder / "own" / "functions.toml"
    own.write_text(FUNCTION)
    reloaded = tmp_path / "reloaded"
    with mesh_process(
        tmp_path / "data",
        ENGINE="none",
        ENGINE_PROGRAMS="llama.cpp",
        TENSORZERO_FOLDER=str(folder),
        TENSORZERO_RELOAD=f"command:touch {reloaded}",
        TENSORZERO_SETTLE_SECONDS="0.2",
    ) as mesh:
        mesh.start().wait_ready()
        mesh.wait_until_listed()
        deploying = Deploying(mesh, tmp_path)
        with deploying.client:
            _registers(deploying, folder, own)
            assert reloaded.exists()


def _registers(deploying: Deploying, folder: Path, own: Path) -> None:
    for name in ("one", "two"):
        deploying.deploy(instance_name=name, engine="llama.cpp", model_name="tiny-llama")
    told = _until_told(deploying, lambda told: len(told["providers"]) == 2)
    assert (told["problem"], told["checked_by"]) == ("", "TensorZero's gateway")
    asked = {"messages": [{"role": "user", "content": "Hello"}]}
    with tensorzero.TensorZeroGateway.build_embedded(config_file=f"{folder}/live/**/*.toml") as gateway:
        for target in ({"model_name": "tiny-llama"}, {"function_name": "greet"}):
            answer = gateway.inference(input=asked, params={"chat_completion": {"max_tokens": 4}}, **target)
            assert answer.usage.output_tokens == 4

    own.write_text("[functions.broken")
    broken = _until_told(deploying, lambda told: told["problem"])
    assert "functions.toml: it is not TOML" in broken["problem"]
    deploying.call("DELETE", "/instances/one")
    _until_told(deploying, lambda told: len(told["providers"]) == 1)
    assert (folder / "live" / "functions.toml").read_text() == FUNCTION
    ready = deploying.client.get(f"{deploying.mesh.url('vllm_orchestrator')}/readyz")
    assert ready.is_success
    assert "functions.toml" in ready.text


def _until_told(deploying: Deploying, holds: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    until = time.monotonic() + 60
    while not holds(told := deploying.call("GET", "/gateway").json()):
        assert time.monotonic() < until, f"{told}\n{deploying.mesh.output}"
        time.sleep(0.05)
    return told
