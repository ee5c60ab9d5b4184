"""AMD's library, where it is installed: in a process of its own, since it may do anything."""

import os
import sys
from pathlib import Path

import pytest

from libs.hardware.amd_probe import PROGRAM, Amd, AmdProbe
from libs.hardware.nvml_helper import NvmlHelper
from tests.unit.hardware.test_amd import card

WORKING = """
print("a greeting")
class AmdSmiClkType: GFX = 0
def amdsmi_init(): print("ready")
def amdsmi_get_processor_handles(): return ["h"]
def amdsmi_get_gpu_device_bdf(handle): return "0000:03:00.0"
def amdsmi_get_gpu_driver_info(handle): return {"driver_version": "6.10.5"}
def amdsmi_get_gpu_asic_info(handle):
    return {"market_name": "AMD Radeon RX 7900 XTX", "target_graphics_version": "gfx1100"}
def amdsmi_get_clock_info(handle, which): return {"clk": 1200, "max_clk": 2500}
def amdsmi_get_gpu_total_ecc_count(handle): raise RuntimeError("no counter today")
def amdsmi_get_gpu_bad_page_info(handle): return "No bad pages found."
"""


async def read(root: Path, library: str | None, *, seconds: float = 20) -> Amd:
    """With a package `amdsmi` of this content, or without any."""
    card(root, 0, "0000:03:00.0")
    packages = root / "packages"
    packages.mkdir()
    if library is not None:
        (packages / "amdsmi.py").write_text(library)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(packages), *sys.path])}
    helper = NvmlHelper(program=PROGRAM, name="amdsmi", answer_seconds=seconds, environment=environment)
    probe = AmdProbe(helper, seconds=20, root=root)
    try:
        first = await probe.read()
        assert library is WORKING or (await probe.read()).gpus == first.gpus
    finally:
        await probe.close()
    return first


async def test_it_tells_what_the_kernel_does_not(tmp_path: Path):
    found = await read(tmp_path, WORKING)

    gpu = found.gpus[0]
    assert (gpu.name, gpu.compute_capability) == ("AMD Radeon RX 7900 XTX", "gfx1100")
    assert (gpu.clock_mhz, gpu.clock_max_mhz, gpu.vram_total_mb) == (1200, 2500, 24 * 1024)
    assert (gpu.ecc_uncorrected_errors, gpu.retired_pages) == (None, None)
    assert [each.message for each in found.problems] == ["amdsmi_get_gpu_total_ecc_count: no counter today"]


@pytest.mark.parametrize(
    ("library", "words"),
    [
        ("print('Unable to find libamd_smi.so')\nraise KeyError('libamd_smi.so')", "does not load"),
        ("raise SystemExit(1)", "does not load"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "ended"),
    ],
)
async def test_one_that_breaks_costs_only_what_it_would_have_told(tmp_path: Path, library: str, words: str):
    found = await read(tmp_path, library)

    assert found.gpus[0].vram_total_mb == 24 * 1024
    assert words in found.problems[0].message


async def test_one_that_sleeps_keeps_nobody_waiting(tmp_path: Path):
    found = await read(tmp_path, "import time\ntime.sleep(60)", seconds=0.3)

    assert found.gpus[0].vram_total_mb == 24 * 1024
    assert "still starting" in found.problems[0].message


async def test_a_machine_without_it_lacks_nothing(tmp_path: Path):
    assert (await read(tmp_path, None)).problems == ()
