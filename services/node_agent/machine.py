"""What the node agent decides, as functions of what it knows."""

from collections.abc import Iterable, Sequence

from services.node_agent.engine_facts import Device, DeviceChoice

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
STEADY_SECONDS = 60.0
IDLE_RENEWAL_SECONDS = 10.0
LEAST_RENEWAL_SECONDS = 0.1
MOST_TEXT_CHARACTERS = 2000
MOST_UNTOLD_CHARACTERS = 8 * MOST_TEXT_CHARACTERS
LEFT_OUT = "\n[… some output is left out here …]\n"


def pause_before_restart(failures_in_a_row: int) -> float:
    """Seconds to wait before an engine that died is started again: 0.5, 1, 2 … 30."""
    return float(min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(max(failures_in_a_row - 1, 0), 10)))


def failures_in_a_row(before: int, seconds_up: float) -> int:
    """How often the engine has failed without a steady minute in between, this time included."""
    return 1 if seconds_up >= STEADY_SECONDS else before + 1


def seems_hung(silent_seconds: float, cpu_seconds_used: float | None, *, patience_seconds: float) -> bool:
    """Whether an engine that lives but does not answer should be ended.

    One that still computes is busy, not hung: its door may be crowded.
    """
    return silent_seconds >= patience_seconds and cpu_seconds_used is not None and cpu_seconds_used < 0.05


def choose_device(choice: DeviceChoice, known: Sequence[Device], gpus_present: Sequence[str]) -> tuple[str, str]:
    """On which kind of device the engine computes, and why.

    `known` is what the engine's code can use, `gpus_present` names the GPUs that this machine has.
    """
    usable = [device for device in known if device.is_gpu]
    if usable and choice != "cpu":
        kind = usable[0].name.rstrip("0123456789").lower() or "gpu"
        return kind, f"the engine can use {usable[0].description or usable[0].name}"
    if choice == "cpu":
        return "cpu", "ENGINE_DEVICE=cpu asks for it"
    if gpus_present:
        return "cpu", (
            f"this machine has {', '.join(gpus_present)}, but the installed xllamacpp is the CPU build: "
            "it knows no GPU; install the build for this GPU to use it"
        )
    return "cpu", "this machine has no GPU"


def renewal_seconds(leases: Iterable[float]) -> float:
    """How often leases are renewed: three times within the shortest, so that two messages may get lost."""
    return max(LEAST_RENEWAL_SECONDS, min((lease / 3 for lease in leases), default=IDLE_RENEWAL_SECONDS))


def text_to_tell(untold: str) -> tuple[str, str]:
    """So much of the partial output as one message takes, and the rest."""
    told, rest = untold[:MOST_TEXT_CHARACTERS], untold[MOST_TEXT_CHARACTERS:]
    return told.encode(errors="replace").decode(), rest


def text_to_keep(untold: str) -> str:
    """What waits to be told: of a job that writes faster than is told, the end, and a word that there was more."""
    if len(untold) <= MOST_UNTOLD_CHARACTERS:
        return untold
    return LEFT_OUT + untold[-MOST_UNTOLD_CHARACTERS:]
