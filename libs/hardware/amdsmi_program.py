"""A process that asks AMD's library `amdsmi`, whose import may print, raise anything or hang.

A question is answered by `{"id", "gpus": {PCI address: fields}, "driver_version", "problems"}` or, where the library
cannot be had, by `{"id", "absent": reason, "fault"}`.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from libs.hardware.answering import Answer, serve


class Gpus:
    """What the kernel's files do not tell."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._problems: list[dict[str, str]] = []
        library.amdsmi_init()

    def answer(self, _asked: str) -> dict[str, Any]:
        self._problems = []
        handles = self._ask(self._library.amdsmi_get_processor_handles) or []
        found = {str(self._ask(self._library.amdsmi_get_gpu_device_bdf, handle)): handle for handle in handles}
        drivers = [self._told(self._library.amdsmi_get_gpu_driver_info, handle) for handle in handles[:1]]
        return {
            "gpus": {address: self._gpu(handle) for address, handle in found.items()},
            "driver_version": next((each.get("driver_version") for each in drivers), None),
            "problems": self._problems,
        }

    def _gpu(self, handle: Any) -> dict[str, Any]:
        library = self._library
        chip = self._told(library.amdsmi_get_gpu_asic_info, handle)
        clock = self._told(library.amdsmi_get_clock_info, handle, library.AmdSmiClkType.GFX)
        errors = self._told(library.amdsmi_get_gpu_total_ecc_count, handle)
        pages = self._ask(library.amdsmi_get_gpu_bad_page_info, handle)
        return {
            "name": _text(chip.get("market_name")),
            "compute_capability": _text(chip.get("target_graphics_version")),
            "clock_mhz": _number(clock.get("clk")),
            "clock_max_mhz": _number(clock.get("max_clk")),
            "ecc_uncorrected_errors": _number(errors.get("uncorrectable_count")),
            "retired_pages": len(pages) if isinstance(pages, list) else None,
        }

    def _told(self, function: Callable[..., Any], *arguments: Any) -> Mapping[str, Any]:
        told = self._ask(function, *arguments)
        return told if isinstance(told, Mapping) else {}

    def _ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Exception as error:  # noqa: BLE001  # whatever a vendor's library raises costs one field
            words = str(error) or type(error).__name__
            if "NOT_SUPPORTED" not in words.upper():
                asked = getattr(function, "__name__", "a call")
                self._problems.append({"source": "amdsmi", "message": f"{asked}: {words}"})
            return None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value not in ("", "N/A") else None


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None


def _start() -> Answer:
    if find_spec("amdsmi") is None:
        absent = {"absent": "amdsmi is not installed", "fault": False}
        return lambda _asked: absent
    try:
        return Gpus(import_module("amdsmi")).answer
    except BaseException as error:  # noqa: BLE001  # without ROCm its import raises KeyError, and may want to exit
        broken = {"absent": f"amdsmi does not load: {error or type(error).__name__}", "fault": True}
        return lambda _asked: broken


def main() -> None:
    serve(_start)


if __name__ == "__main__":
    main()
