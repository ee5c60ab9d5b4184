"""AMD GPUs: from the kernel's files, and what only AMD's own library tells where that is installed."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from libs.common.contracts.node_registry import Gpu, Problem
from libs.common.errors import MeshError
from libs.hardware.amd import read_amd
from libs.hardware.aside import Aside
from libs.hardware.nvml_helper import NvmlHelper
from libs.hardware.reading import problem

SOURCE = "amdsmi"
PROGRAM = (sys.executable, "-m", "libs.hardware.amdsmi_program")


@dataclass(frozen=True, slots=True)
class Amd:
    gpus: tuple[Gpu, ...] = ()
    problems: tuple[Problem, ...] = ()


class AmdProbe:
    """The library is asked only where there is a GPU, and where it cannot be had no second time."""

    def __init__(self, helper: NvmlHelper, *, seconds: float, root: Path = Path("/")) -> None:
        self._helper = helper
        self._seconds = seconds
        self._root = root
        self._aside = Aside()
        self._absent: dict[str, Any] | None = None

    async def read(self) -> Amd:
        """Raises what reading the kernel's files raises; the library's faults are told."""
        gpus = await self._aside.call("amd", lambda: read_amd(self._root), seconds=self._seconds)
        if not gpus or self._absent is not None:
            return Amd(gpus, self._faults())
        try:
            answer = await self._helper.ask()
        except MeshError as error:
            return Amd(gpus, (problem(SOURCE, error.message),))
        if "absent" in answer:
            self._absent = answer
            await self._helper.close()
            return Amd(gpus, self._faults())
        told, problems = answer["gpus"], [problem(SOURCE, each["message"]) for each in answer["problems"]]
        return Amd(tuple(_completed(gpu, told.get(gpu.pci_address), problems) for gpu in gpus), tuple(problems))

    def _faults(self) -> tuple[Problem, ...]:
        return (problem(SOURCE, self._absent["absent"]),) if self._absent and self._absent["fault"] else ()

    def look_now(self) -> None:
        self._absent = None

    async def close(self) -> None:
        await self._helper.close()


def _completed(gpu: Gpu, told: Mapping[str, Any] | None, problems: list[Problem]) -> Gpu:
    """The kernel knows better what both tell, but for the name."""
    known = gpu.model_dump()
    more = {name: value for name, value in (told or {}).items() if value is not None and name in known}
    fields = known | {name: value for name, value in more.items() if known[name] is None or name == "name"}
    try:
        return Gpu.model_validate(fields)
    except ValidationError as error:
        problems.append(problem(SOURCE, f"{gpu.uuid}: {error.errors()[0]['loc'][0]} makes no sense"))
        return gpu
