"""What a run or a table of measurements says about the machine that made it, and the precision that suits it."""

import platform
from pathlib import Path

import torch


def hardware(device: torch.device) -> str:
    """The name of the GPU, or of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def processor() -> str:
    """The processor's name where the system tells it, else its kind."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def resolved_precision(precision: str, device: torch.device) -> str:
    """The precision of the networks: "auto" is bfloat16 where the hardware multiplies it, else float32."""
    if precision != "auto":
        return precision
    native = torch.cuda.is_bf16_supported(False) if device.type == "cuda" else _cpu_multiplies_bfloat16()
    return "bfloat16" if native else "float32"


def _cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU has bfloat16 dot products; where it has not, autocast is slower than float32."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
