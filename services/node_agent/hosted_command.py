"""Which command line an engine that is asked for becomes."""

import re
from collections.abc import Mapping, Sequence

from libs.common.contracts.engine_hosting import EngineContainer, EngineProgram, RayNode, StartEngine
from libs.common.errors import Forbidden, Malformed
from services.node_agent.model import ContainedEngine

GATE = 'while IFS= read -r line; do [ -n "$line" ] || exec "$@" </dev/null; export "$line"; done'
"""Takes variables, a line each, and after an empty line becomes the engine, with the same process id; ends when whoever
would write that is gone. Command lines are open to everybody on the machine, and some variables are secrets."""

OF_THE_MACHINE = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")
_VARIABLES = re.compile(
    r"(VLLM|NCCL|GLOO|CUDA|HIP|ROCR|HF|RAY|OMP|TORCH|TORCHINDUCTOR)_[A-Z0-9_]+|TOKENIZERS_PARALLELISM"
)


def program_of(asked: StartEngine, allowed: Mapping[str, str]) -> str:
    """Raises `Forbidden` for a program or a variable that this machine's owner does not let others use, `Malformed`
    for a variable that is not one line."""
    program = allowed.get(asked.program)
    if program is None:
        may = ", ".join(sorted(allowed)) or "none"
        raise Forbidden(f"{asked.program} may not be started here; ENGINE_PROGRAMS allows: {may}", field="program")
    for name in asked.environment:
        if not _VARIABLES.fullmatch(name):
            raise Forbidden(f"an engine's environment may not set {name}", field="environment")
    for name, value in asked.environment.items():
        if "\n" in value:
            raise Malformed(f"environment: the value of {name} has more than one line", field="environment")
    return program


def command_of(
    asked: StartEngine,
    program: str,
    *,
    host: str,
    port: int,
    python: str,
    report: str,
    key_file: str,
    scratch: str,
    test_model: str,
) -> Sequence[str]:
    """The whole command line. `key_file` is empty where clients need no key, `scratch` a folder that is not there yet.

    Raises `Malformed` for arguments that are the agent's to choose.
    """
    for word in asked.arguments:
        if word.split("=", 1)[0] in ("--host", "--port", "--uds", "--report", "--fingerprint", "--key-file"):
            raise Malformed(f"arguments may not hold {word}: the node chooses it", field="arguments")
    if asked.program is EngineProgram.LLAMA:
        found = [python, "-m", "services.node_agent.llama_server", "--report", report]
        whose = f"{asked.instance}.{asked.replica}.{asked.generation}.{asked.rank}"
        found += ["--fingerprint", whose, "--host", host, "--port", str(port)]
        found += ["--key-file", key_file] if key_file else []
        found += [*asked.arguments] + ([] if "--model" in asked.arguments else ["--model", test_model])
    else:
        found = [program, "serve", *asked.arguments] if asked.arguments or asked.ray is None else []
        found += ["--host", host, "--port", str(port)] if asked.serves else []
        found = found if asked.ray is None else [*_over_ray(asked.ray, program, python, scratch), "--", *found]
    return found


def container_name(asked: StartEngine) -> str:
    return f"mesh-{asked.instance}.{asked.replica}.{asked.generation}.{asked.rank}"


def contained(
    asked: StartEngine, container: EngineContainer, *, host: str, port: int, environment: Mapping[str, str]
) -> ContainedEngine:
    """In a container, whose image begins with `vllm serve`. It sees its own GPUs alone, so which of the machine's they
    are is not told. Raises `Malformed` for what does not go together."""
    if asked.ray is not None or asked.program is not EngineProgram.VLLM:
        raise Malformed("container is for vLLM without Ray", field="container")
    door = ["--host", host, "--port", str(port)] if asked.serves else []
    return ContainedEngine(
        name=container_name(asked),
        image=container.image,
        command=[*asked.arguments, *door],
        environment={name: value for name, value in environment.items() if name not in OF_THE_MACHINE},
        gpu_uuids=container.gpu_uuids,
    )


def _over_ray(ray: RayNode, program: str, python: str, scratch: str) -> list[str]:
    """Ray is the one beside vLLM: both have to come from one environment."""
    if ray.arguments[0] != "start" or any(word.split("=", 1)[0] == "--temp-dir" for word in ray.arguments):
        raise Malformed("ray.arguments must begin with start and may not hold --temp-dir", field="ray")
    folder, slash, _ = program.rpartition("/")
    found = [python, "-m", "services.node_agent.ray_launch", "--folder", scratch, "--address", ray.address]
    found += ["--nodes", str(ray.nodes), "--gpus", str(ray.gpus), "--seconds", f"{ray.join_seconds:g}"]
    return [*found, "--", f"{folder}{slash}ray", *ray.arguments]


def model_of(asked: StartEngine) -> str | None:
    """The model file of llama.cpp; None for the test model, and for engines that find theirs themselves."""
    words = asked.arguments
    if asked.program is not EngineProgram.LLAMA or "--model" not in words[:-1]:
        return None
    return words[words.index("--model") + 1]


def check_claim(claimed_mb: int, needed_mb: int) -> None:
    """Raises `Malformed` where an engine would take more RAM than was claimed for it."""
    if claimed_mb < needed_mb:
        raise Malformed(
            f"ram_mb: {claimed_mb} MiB are claimed, but the model with its context takes {needed_mb}; ask for as much,"
            " or for less context",
            field="ram_mb",
            limit=needed_mb,
        )


def opening(environment: Mapping[str, str]) -> str:
    """What the gate waits for."""
    return "".join(f"{name}={value}\n" for name, value in environment.items()) + "\n"


def gated(command: Sequence[str]) -> Sequence[str]:
    return ["/bin/sh", "-c", GATE, "engine", *command]
