"""A process that talks to NVML for us, because a call that is stuck cannot be killed, but a process can.

One JSON object per line comes in, one goes out for each: `{"id", "ask": "gpus"}` is answered by `{"id", "gpus", …}`,
`{"id", "ask": "used"}` by `{"id", "used": {UUID: bytes}}` or, where NVML cannot be had, both by `{"id", "absent":
reason, "fault"}`. It ends when its input does, even in the middle of a call that is stuck.
"""

import ctypes
from collections.abc import Callable
from typing import Any

from libs.hardware import nvml_topology
from libs.hardware.answering import Answer, serve

# Xids after which a GPU is of no use until it is reset (those of a faulty application are not among them).
FATAL_XIDS = {
    48: "uncorrectable memory error",
    62: "internal micro-controller halted",
    64: "row remapping failed",
    79: "GPU has fallen off the bus",
    95: "uncontained memory error",
    119: "GSP does not answer",
    120: "GSP error",
    140: "unrecovered memory error",
}
_SAID_QUIETLY = (
    "NVMLError_NotSupported",
    "NVMLError_FunctionNotFound",
    "NVMLError_NoPermission",
    "NVMLError_NotFound",
)


class Lost(Exception):
    """The GPU does not answer any more."""


class Gpus:
    """What NVML says of every GPU. Remembers who they are, so that one that is lost can still be named."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._identities: dict[int, dict[str, Any]] = {}
        self._handles: dict[str, Any] = {}
        self._xids: dict[str, int] = {}
        self._problems: list[dict[str, str]] = []
        self._lost = False
        nvml.nvmlInit()
        self._events = self._watch_xids()
        self._links: list[dict[str, Any]] = []
        self._linked: frozenset[int] = frozenset()

    def answer(self, asked: str) -> dict[str, Any]:
        return {"used": self._used()} if asked == "used" else self._all()

    def _used(self) -> dict[str, int | None]:
        """Of what the last whole answer named, and nothing else: it is asked for in between, often."""
        return {uuid: self._memory_of(uuid, handle) for uuid, handle in self._handles.items()}

    def _memory_of(self, uuid: str, handle: Any) -> int | None:
        try:
            return self._memory(uuid, handle)["used"]
        except Lost:
            return None

    def _all(self) -> dict[str, Any]:
        self._problems, self._lost, self._handles = [], False, {}
        self._hear_xids()
        count = self._ask("count", self._nvml.nvmlDeviceGetCount)
        found = [self._gpu(index) for index in range(max(count or 0, len(self._identities)))]
        cuda = self._ask("cuda", self._nvml.nvmlSystemGetCudaDriverVersion_v2)
        return {
            "gpus": [gpu for gpu in found if gpu is not None],
            "links": self._topology(),
            "driver_version": self._ask("driver", self._nvml.nvmlSystemGetDriverVersion),
            "cuda_version": f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None,
            "problems": self._problems,
            "lost": self._lost,
        }

    def _topology(self) -> list[dict[str, Any]]:
        """Found out once for the GPUs we know; again and again while one of them is lost."""
        if self._linked == frozenset(self._identities):
            return self._links
        answering = set(self._identities)

        def ask(source: str, function: Callable[..., Any], *arguments: Any) -> Any:
            try:
                return self._ask(source, function, *arguments)
            except Lost:
                answering.clear()
                return None

        self._links = nvml_topology.links(self._nvml, self._identities, ask)
        self._linked = frozenset(answering)
        return self._links

    def _gpu(self, index: int) -> dict[str, Any] | None:
        try:
            handle = self._ask(f"gpu {index}", self._nvml.nvmlDeviceGetHandleByIndex, index)
            if handle is None:
                raise Lost("the driver does not list it any more")
            identity = self._identity(index, handle)
            if identity is None:
                return None
            self._handles[identity["uuid"]] = handle
            return identity | self._measured(identity["uuid"], handle)
        except Lost as lost:
            self._lost = True
            known = self._identities.get(index)
            if known is None:
                self._problems.append({"source": f"gpu {index}", "message": str(lost)})
                return None
            xid = self._xid_words(known["uuid"])
            return known | {"healthy": False, "problem": xid or str(lost), "xid": xid}

    def _identity(self, index: int, handle: Any) -> dict[str, Any] | None:
        if index in self._identities:
            return self._identities[index]
        nvml, name = self._nvml, f"gpu {index}"
        uuid = self._ask(name, nvml.nvmlDeviceGetUUID, handle)
        if uuid is None:
            self._problems.append({"source": name, "message": "it has no UUID, so it cannot be used"})
            return None
        pci = self._ask(name, nvml.nvmlDeviceGetPciInfo, handle)
        capability = self._ask(name, nvml.nvmlDeviceGetCudaComputeCapability, handle)
        identity = {
            "uuid": uuid,
            "index": index,
            "name": self._ask(name, nvml.nvmlDeviceGetName, handle) or "NVIDIA GPU",
            "compute_capability": f"{capability[0]}.{capability[1]}" if capability else None,
            "pci_address": nvml_topology.pci_address(pci.busId) if pci else None,
        }
        self._identities[index] = identity
        return identity

    def _measured(self, uuid: str, handle: Any) -> dict[str, Any]:
        nvml, name = self._nvml, uuid
        power = self._ask(name, nvml.nvmlDeviceGetPowerUsage, handle)
        limit = self._ask(name, nvml.nvmlDeviceGetEnforcedPowerLimit, handle)
        load = self._ask(name, nvml.nvmlDeviceGetUtilizationRates, handle)
        return {
            **self._memory(name, handle),
            "temperature_celsius": self._ask(name, nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
            "power_watts": None if power is None else power / 1000,
            "power_limit_watts": None if limit is None else limit / 1000,
            "utilization_ratio": None if load is None else load.gpu / 100,
            "clock_mhz": self._ask(name, nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
            "clock_max_mhz": self._ask(name, nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_SM),
            "thermal_slowdown": self._thermal_slowdown(name, handle),
            **self._errors(name, handle),
            "migs": self._migs(name, handle),
            "processes": self._processes(name, handle),
            **self._health(uuid, name, handle),
        }

    def _health(self, uuid: str, name: str, handle: Any) -> dict[str, Any]:
        xid = problem = self._xid_words(uuid)
        rows = self._ask(name, self._nvml.nvmlDeviceGetRemappedRows, handle)
        if problem is None and rows is not None and rows[3]:
            problem = "its memory is worn out: a row could not be remapped"
        return {"healthy": problem is None, "problem": problem, "xid": xid}

    def _thermal_slowdown(self, name: str, handle: Any) -> bool | None:
        """By the hardware, as a last resort; drivers slow down long before, and that is normal. Older ones know only
        the second name of the question."""
        nvml = self._nvml
        reasons = self._ask(name, nvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
        if reasons is None:
            reasons = self._ask(name, nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
        return None if reasons is None else bool(reasons & nvml.nvmlClocksThrottleReasonHwThermalSlowdown)

    def _errors(self, name: str, handle: Any) -> dict[str, Any]:
        """Of its memory. Pages are retired for many correctable errors (0) or one that was not (1)."""
        nvml = self._nvml
        ecc = self._ask(name, nvml.nvmlDeviceGetEccMode, handle)
        uncorrected = (nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_AGGREGATE_ECC)
        pages = [self._ask(name, nvml.nvmlDeviceGetRetiredPages, handle, cause) for cause in (0, 1)]
        return {
            "ecc_enabled": None if ecc is None else bool(ecc[0]),
            "ecc_uncorrected_errors": (
                self._ask(name, nvml.nvmlDeviceGetTotalEccErrors, handle, *uncorrected) if ecc and ecc[0] else None
            ),
            "retired_pages": sum(len(each) for each in pages if each is not None) if pages != [None, None] else None,
        }

    def _migs(self, name: str, handle: Any) -> list[dict[str, Any]]:
        nvml = self._nvml
        mode = self._ask(name, nvml.nvmlDeviceGetMigMode, handle)
        if not mode or not mode[0]:
            return []
        found = []
        for index in range(self._ask(name, nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
            part = self._ask(name, nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, index)
            if part is not None:
                uuid = self._ask(name, nvml.nvmlDeviceGetUUID, part)
                found.append({"uuid": uuid, "name": self._ask(name, nvml.nvmlDeviceGetName, part)})
                found[-1].update(self._memory(name, part))
                if uuid is not None:
                    self._handles[uuid] = part
        return [part for part in found if part["uuid"] is not None]

    def _memory(self, name: str, handle: Any) -> dict[str, int | None]:
        """The second version first: the first counts what the driver keeps for itself as used."""
        nvml = self._nvml
        memory = self._ask(name, nvml.nvmlDeviceGetMemoryInfo, handle, nvml.nvmlMemory_v2)
        if memory is not None:
            reserved: int | None = memory.reserved
        else:
            memory, reserved = self._ask(name, nvml.nvmlDeviceGetMemoryInfo, handle), None
        if memory is None:
            return {"total": None, "used": None, "free": None, "reserved": None}
        return {"total": memory.total, "used": memory.used, "free": memory.free, "reserved": reserved}

    def _processes(self, name: str, handle: Any) -> list[dict[str, Any]] | None:
        """Who uses the GPU. None when the driver does not tell."""
        nvml = self._nvml
        found: dict[int, dict[str, Any]] = {}
        told = False
        for kind, function in (
            ("compute", nvml.nvmlDeviceGetComputeRunningProcesses),
            ("graphics", nvml.nvmlDeviceGetGraphicsRunningProcesses),
        ):
            processes = self._ask(name, function, handle)
            told = told or processes is not None
            for process in processes or ():
                first = found.setdefault(process.pid, {"pid": process.pid, "kind": kind, "used": None})
                first["used"] = max(first["used"] or 0, process.usedGpuMemory or 0) or None
        return list(found.values()) if told else None

    def _ask(self, source: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """The answer, or None with a problem noted. Raises `Lost`."""
        try:
            return function(*arguments)
        except Exception as error:  # noqa: BLE001  # whatever a vendor's library raises costs one field
            kind = type(error).__name__
            if kind in ("NVMLError_GpuIsLost", "NVMLError_ResetRequired"):
                raise Lost(str(error)) from None
            if kind not in _SAID_QUIETLY:
                asked = getattr(function, "__name__", "a call")
                self._problems.append({"source": source, "message": f"{asked}: {error or kind}"})
            return None

    def _watch_xids(self) -> Any:
        nvml = self._nvml
        try:
            events = nvml.nvmlEventSetCreate()
        except nvml.NVMLError:
            return None
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, events)
            except nvml.NVMLError:
                continue  # this one does not tell; its other signs of life are read each time
        return events

    def _hear_xids(self) -> None:
        nvml = self._nvml
        for _ in range(1000 if self._events is not None else 0):
            try:
                event = nvml.nvmlEventSetWait_v2(self._events, 0)
                if event.eventType == nvml.nvmlEventTypeXidCriticalError and event.eventData in FATAL_XIDS:
                    self._xids[self._uuid_of(event.device)] = int(event.eventData)
            except nvml.NVMLError:
                return

    def _uuid_of(self, handle: Any) -> str:
        """A lost GPU does not tell its UUID any more: then by its place among those we know."""
        nvml = self._nvml
        try:
            return str(nvml.nvmlDeviceGetUUID(handle))
        except nvml.NVMLError:
            index = nvml.nvmlDeviceGetIndex(handle)
            return str(self._identities[index]["uuid"]) if index in self._identities else ""

    def _xid_words(self, uuid: str) -> str | None:
        xid = self._xids.get(uuid)
        return None if xid is None else f"Xid {xid}: {FATAL_XIDS[xid]}"


def _open() -> Gpus | dict[str, Any]:
    """NVML, or why it cannot be had. Without the library nobody expects a GPU; a library that fails is a fault."""
    import pynvml

    try:
        return Gpus(pynvml)
    except pynvml.NVMLError_LibraryNotFound:
        return _why_not_found()
    except Exception as error:  # noqa: BLE001  # a broken driver is an answer too
        return {"absent": f"NVML does not start: {error or type(error).__name__}", "fault": True}


def _why_not_found() -> dict[str, Any]:
    """NVML's binding calls a library that cannot be loaded "not found" as well."""
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError as error:
        if "No such file" not in str(error):
            return {"absent": f"the library libnvidia-ml cannot be loaded: {error}", "fault": True}
    return {"absent": "the library libnvidia-ml is not installed", "fault": False}


def _start() -> Answer:
    gpus = _open()
    return (lambda _asked: gpus) if isinstance(gpus, dict) else gpus.answer


def main() -> None:
    serve(_start)


if __name__ == "__main__":
    main()
