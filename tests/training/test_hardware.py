"""Names of the hardware in the metadata of a run."""

from pathlib import Path

import pytest
import torch

from hsic_lab.training._config import hardware

CPUINFO = Path("/proc/cpuinfo")


@pytest.mark.skipif(not CPUINFO.exists(), reason="the system does not name it")
def test_processor_is_that_of_the_system():
    names = {line.partition(": ")[2] for line in CPUINFO.read_text().splitlines() if line.startswith("model name")}
    assert not names or hardware(torch.device("cpu")) in names


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_gpu_is_named_before_the_processor():
    assert hardware(torch.device("cuda")) == torch.cuda.get_device_name()
