"""Which command line an engine that is asked for becomes."""

import re
from collections.abc import Mapping, Sequence

from libs.common.contracts.engine_hosting import EngineProgram, StartEngine
from libs.common.errors import Forbidden, Malformed

HOST = "127.0.0.1"
GATE = 'read -r _ && exec "$@" </dev/null'
"""Waits for a line, then becomes the engine, with the same process id; ends when whoever would write it is gone."""

_VARIABLES = re.compile(
    r"(VLLM|NCCL|GLOO|CUDA|HIP|ROCR|HF|RAY|OMP|TORCH|TORCHINDUCTOR)_[A-Z0-9_]+|TOKENIZERS_PARALLELISM"
)


def program_of(asked: StartEngine, allowed: Mapping[str, str]) -> str:
    """Raises `Forbidden` for a program or a variable that the owner of this machine does not let others use."""
    program = allowed.get(asked.program)
    if program is None:
        may = ", ".join(sorted(allowed)) or "none"
        raise Forbidden(f"{asked.program} may not be started here; ENGINE_PROGRAMS allows: {may}", field="program")
    for name in asked.environment:
        if not _VARIABLES.fullmatch(name):
            raise Forbidden(f"an engine's environment may not set {name}", field="environment")
    return program


def command_of(
    asked: StartEngine, program: str, *, port: int, python: str, report: str, test_model: str
) -> Sequence[str]:
    """The whole command line. Raises `Malformed` for arguments that are the agent's to choose."""
    for word in asked.arguments:
        if word.split("=", 1)[0] in ("--host", "--port", "--uds", "--report", "--fingerprint"):
            raise Malformed(f"arguments may not hold {word}: the node chooses it", field="arguments")
    variables = [f"{name}={value}" for name, value in sorted(asked.environment.items())]
    if asked.program is EngineProgram.LLAMA:
        found = [python, "-m", "services.node_agent.llama_server", "--report", report]
        whose = f"{asked.instance}.{asked.replica}.{asked.generation}.{asked.rank}"
        found += ["--fingerprint", whose, "--port", str(port)]
        found += [*asked.arguments] + ([] if "--model" in asked.arguments else ["--model", test_model])
    else:
        found = [program, "serve", *asked.arguments]
        found += ["--host", HOST, "--port", str(port)] if asked.serves else []
    return ["env", *variables, *found]


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


def gated(command: Sequence[str]) -> Sequence[str]:
    return ["/bin/sh", "-c", GATE, "engine", *command]
