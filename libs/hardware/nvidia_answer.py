"""What the NVML process answered, in the words of the contracts. What makes no sense costs its field and is told."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from libs.common.contracts.node_registry import Gpu, GpuLink, MigDevice, Problem
from libs.hardware.reading import mib

SOURCE = "nvidia"
_UNIFIED = ("gb10", "orin", "thor", "xavier", "tegra")
_SIZES = ("total", "used", "free", "reserved")
_MOST_BYTES = 1 << 46
"""No GPU has 64 TiB; libraries say "unknown" with numbers near 2^64."""
_BELIEVABLE = {
    "temperature_celsius": (-100, 300),
    "power_watts": (0, 100_000),
    "power_limit_watts": (0, 100_000),
    "utilization_ratio": (0, 1),
    "clock_mhz": (0, 100_000),
    "clock_max_mhz": (0, 100_000),
}
_PLAIN = (
    *(
        "uuid",
        "index",
        "name",
        "compute_capability",
        "pci_address",
        "thermal_slowdown",
        "ecc_enabled",
        "ecc_uncorrected_errors",
    ),
    *("retired_pages", "healthy", "problem", *_BELIEVABLE),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """`used_mb` is None when the driver does not tell."""

    pid: int
    kind: str
    name: str | None = None
    used_mb: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Nvidia:
    """`processes` by GPU; a GPU whose processes the driver does not tell is missing there."""

    gpus: tuple[Gpu, ...] = ()
    processes: Mapping[str, tuple[GpuProcess, ...]]
    links: tuple[GpuLink, ...] = ()
    driver_version: str | None = None
    cuda_version: str | None = None
    problems: tuple[Problem, ...] = ()


def pids_of(answer: Mapping[str, Any]) -> set[int]:
    """Who uses any of the GPUs. Raises as `from_answer`."""
    return {process["pid"] for gpu in answer["gpus"] for process in gpu.get("processes") or ()}


def links_of(answer: Mapping[str, Any]) -> tuple[GpuLink, ...]:
    """How the GPUs are connected. Raises as `from_answer`."""
    return tuple(GpuLink.model_validate(link) for link in answer.get("links", ()))


def from_answer(answer: Mapping[str, Any], names: Mapping[int, str | None], links: tuple[GpuLink, ...]) -> Nvidia:
    """`names`: of processes. Raises what a damaged answer makes Python raise (KeyError, TypeError, ValueError)."""
    problems = [Problem(source=each["source"], message=each["message"]) for each in answer["problems"]]
    gpus = [gpu for told in answer["gpus"] if (gpu := _gpu(told, problems)) is not None]
    return Nvidia(
        gpus=tuple(gpus),
        processes={
            gpu["uuid"]: tuple(_process(process, names) for process in gpu["processes"])
            for gpu in answer["gpus"]
            if gpu.get("processes") is not None
        },
        links=links,
        driver_version=answer.get("driver_version"),
        cuda_version=answer.get("cuda_version"),
        problems=tuple(problems),
    )


def _gpu(told: Mapping[str, Any], problems: list[Problem]) -> Gpu | None:
    """A machine whose GPU uses the processor's memory may tell no VRAM: that is marked, never guessed."""
    source = str(told["uuid"])
    sizes = _sizes(told, source, problems)
    fields = {name: _believed(name, told.get(name), source, problems) for name in _PLAIN if name in told}
    fields |= {f"vram_{name}_mb": mib(sizes[name]) for name in _SIZES}
    fields["mig_devices"] = tuple(_mig(part, problems) for part in told.get("migs", ()))
    fields["unified_memory"] = any(word in str(told["name"]).lower() for word in _UNIFIED)
    return _valid(fields | {"vendor": "nvidia"}, source, problems)


def _valid(fields: dict[str, Any], source: str, problems: list[Problem]) -> Gpu | None:
    """Without the fields that break the contract; None when without them it is no GPU."""
    try:
        return Gpu.model_validate(fields)
    except ValidationError as error:
        broken = sorted({str(each["loc"][0]) for each in error.errors()})
    problems.extend(Problem(source=source, message=f"{name} makes no sense") for name in broken)
    kept = {name: value for name, value in fields.items() if name not in broken}
    try:
        return Gpu.model_validate({"name": "NVIDIA GPU", **kept})
    except ValidationError:
        return None


def _sizes(told: Mapping[str, Any], source: str, problems: list[Problem]) -> dict[str, int | None]:
    """All or nothing: of amounts that contradict one another none is to be believed."""
    sizes = {name: told.get(name) for name in _SIZES}
    known = [amount for amount in sizes.values() if amount is not None]
    most = sizes["total"] if sizes["total"] is not None else _MOST_BYTES
    if all(0 <= amount <= min(most, _MOST_BYTES) for amount in known):
        return sizes
    problems.append(Problem(source=source, message=f"its memory makes no sense: {sizes} bytes"))
    return dict.fromkeys(_SIZES)


def _believed(name: str, value: Any, source: str, problems: list[Problem]) -> Any:
    least, most = _BELIEVABLE.get(name, (None, None))
    if value is None or least is None or most is None or least <= value <= most:
        return value
    problems.append(Problem(source=source, message=f"{name} makes no sense: {value}"))
    return None


def _mig(told: Mapping[str, Any], problems: list[Problem]) -> MigDevice:
    sizes = _sizes(told, str(told["uuid"]), problems)
    return MigDevice(
        uuid=told["uuid"],
        name=told["name"] or "MIG device",
        vram_total_mb=mib(sizes["total"]),
        vram_free_mb=mib(sizes["free"]),
    )


def _process(told: Mapping[str, Any], names: Mapping[int, str | None]) -> GpuProcess:
    pid = told["pid"]
    return GpuProcess(pid=pid, kind=told["kind"], name=names.get(pid), used_mb=mib(told.get("used")))
