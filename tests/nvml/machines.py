"""Machines with NVIDIA GPUs, described for the simulator."""

from dataclasses import dataclass, replace
from pathlib import Path

SYSTEM, NODE, HOST_BRIDGE, MULTIPLE, SINGLE = 50, 40, 30, 20, 10


@dataclass(frozen=True, kw_only=True)
class SimulatedGpu:
    """Sizes are MiB, power is milliwatts. `links` and `near`: by the other GPU's number. Itself: to a switch."""

    name: str
    uuid: str | None = None
    pci: str | None = None
    capability: tuple[int, int]
    memory: tuple[int, int, int]
    load: int = 0
    temperature: int = 40
    power: tuple[int, int] = (70_000, 350_000)
    clock: tuple[int, int] = (1200, 1980)
    ecc: tuple[int, int] = (0, 0)
    retired: int = 0
    remap_failed: int = 0
    slowdown: int = 0
    processes: tuple[tuple[int, int, str], ...] = ()
    migs: tuple[tuple[int, int, int, int], ...] = ()
    links: tuple[tuple[int, int], ...] = ()
    near: tuple[tuple[int, int], ...] = ()
    xid: tuple[int, int] = (0, 0)
    lost: bool = False
    unsupported: tuple[str, ...] = ()

    def lines(self, number: int) -> list[str]:
        pairs = (
            *(("process", process) for process in self.processes),
            *(("mig", mig) for mig in self.migs),
            *(("link", link) for link in self.links),
            *(("near", near) for near in self.near),
            *(("unsupported", (call,)) for call in self.unsupported),
        )
        return [
            "gpu",
            f"uuid {self.uuid or uuid(number)}",
            f"name {self.name}",
            f"pci {self.pci or pci(number)}",
            *(f"{word} {a} {b}" for word, (a, b) in (("capability", self.capability), ("power", self.power))),
            *(f"{word} {a} {b}" for word, (a, b) in (("clock", self.clock), ("ecc", self.ecc), ("xid", self.xid))),
            "memory {} {} {}".format(*self.memory),
            f"load {self.load}",
            f"temperature {self.temperature}",
            f"retired {self.retired}",
            f"remap_failed {self.remap_failed}",
            f"slowdown {self.slowdown}",
            f"lost {int(self.lost)}",
            *(f"{word} {' '.join(map(str, values))}" for word, values in pairs),
        ]


@dataclass(frozen=True, kw_only=True)
class Machine:
    gpus: tuple[SimulatedGpu, ...]
    driver: str = "570.124.06"
    cuda: int = 12080
    init_error: int = 0
    hang_seconds: int = 0
    crash: bool = False
    says: str = ""

    def text(self) -> str:
        lines = [f"driver {self.driver}", f"cuda {self.cuda}", f"init {self.init_error}", f"hang {self.hang_seconds}"]
        lines += [f"crash {int(self.crash)}", *([f"says {self.says}"] if self.says else [])]
        for number, gpu in enumerate(self.gpus):
            lines.extend(gpu.lines(number))
        return "\n".join(lines) + "\n"

    def write(self, path: Path) -> None:
        """Replaced in one step, so that nobody reads half of it."""
        fresh = path.with_suffix(".new")
        fresh.write_text(self.text())
        fresh.replace(path)

    def changed(self, number: int, **changes: object) -> "Machine":
        gpus = list(self.gpus)
        gpus[number] = replace(gpus[number], **changes)  # type: ignore[arg-type]
        return replace(self, gpus=tuple(gpus))


def uuid(number: int) -> str:
    return f"GPU-5e000000-0000-4000-8000-{number:012x}"


def pci(number: int) -> str:
    return f"00000000:{0x10 + number * 8:02X}:00.0"


def _near(number: int, count: int, level: int, far: int | None = None, group: int = 4) -> tuple[tuple[int, int], ...]:
    others = (other for other in range(count) if other != number)
    return tuple((other, level if far is None or other // group == number // group else far) for other in others)


_H100 = SimulatedGpu(
    name="NVIDIA H100 80GB HBM3", capability=(9, 0), memory=(81559, 0, 551), ecc=(1, 0), power=(70_000, 700_000)
)
_A100 = SimulatedGpu(name="NVIDIA A100-SXM4-80GB", capability=(8, 0), memory=(81920, 0, 594), ecc=(1, 0))
_3090 = SimulatedGpu(name="NVIDIA GeForce RTX 3090", capability=(8, 6), memory=(24576, 300, 300))
_4090 = SimulatedGpu(name="NVIDIA GeForce RTX 4090", capability=(8, 9), memory=(24564, 900, 464))
_3060 = SimulatedGpu(name="NVIDIA GeForce RTX 3060", capability=(8, 6), memory=(12288, 200, 300))
_L40S = SimulatedGpu(name="NVIDIA L40S", capability=(8, 9), memory=(46068, 0, 500), ecc=(1, 0))
_T4 = SimulatedGpu(name="Tesla T4", capability=(7, 5), memory=(15360, 0, 448), ecc=(1, 0), retired=2)
_GB10 = SimulatedGpu(
    name="NVIDIA GB10", capability=(12, 1), memory=(0, 0, 0), unsupported=("MemoryInfo", "MemoryInfo_v2")
)

_GH200 = SimulatedGpu(name="NVIDIA GH200 480GB", capability=(9, 0), memory=(97871, 0, 600), ecc=(1, 0))

H100_X8 = Machine(
    gpus=tuple(
        replace(
            _H100,
            memory=(81559, 5000 * number, 551),
            load=10 * number,
            links=((number, 18),),
            near=_near(number, 8, NODE, SYSTEM),
        )
        for number in range(8)
    )
)
A100_X4 = Machine(
    gpus=tuple(
        replace(_A100, links=tuple((other, 4) for other in range(4) if other != number), near=_near(number, 4, NODE))
        for number in range(4)
    )
)
BRIDGED_3090 = Machine(
    gpus=(
        replace(_3090, links=((1, 4),), near=((1, HOST_BRIDGE),), processes=((4242, 280, "g"),)),
        replace(_3090, links=((0, 4),), near=((0, HOST_BRIDGE),)),
    )
)
MIXED = Machine(gpus=(replace(_4090, near=((1, HOST_BRIDGE),)), replace(_3060, near=((0, HOST_BRIDGE),))))
L40S_X4 = Machine(gpus=tuple(replace(_L40S, near=_near(number, 4, MULTIPLE, SYSTEM, group=2)) for number in range(4)))
T4 = Machine(gpus=(_T4,))
GB10 = Machine(gpus=(_GB10,), cuda=13000)
GH200 = Machine(gpus=(_GH200,))
A100_MIG = Machine(gpus=(replace(_A100, migs=((0, 40448, 0, 4), (1, 20096, 100, 2))),))
NOTHING_SUPPORTED = Machine(
    gpus=(
        replace(
            _T4,
            unsupported=(
                *("MemoryInfo", "MemoryInfo_v2", "UtilizationRates", "Temperature", "PowerUsage", "EnforcedPowerLimit"),
                *("CudaComputeCapability", "PciInfo", "ComputeRunningProcesses", "GraphicsRunningProcesses", "EccMode"),
                *("Events", "ClockInfo", "MaxClockInfo", "RetiredPages", "RemappedRows"),
                *("EventReasons", "ThrottleReasons"),
            ),
        ),
    )
)
DRIVER_NOT_LOADED = Machine(gpus=(), init_error=9)
VERSION_MISMATCH = Machine(gpus=(), init_error=18)
LOST = A100_X4.changed(2, lost=True)
FATAL_XID = A100_X4.changed(1, xid=(79, 1))
