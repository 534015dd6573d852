"""What a table of measurements says about the machine that made it."""

import platform
from pathlib import Path


def processor() -> str:
    """The processor's name where the system tells it, else its kind."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
