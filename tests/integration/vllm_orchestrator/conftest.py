from tests.nvml.fixtures import nvml_library, simulator

__all__ = ["nvml_library", "simulator"]
