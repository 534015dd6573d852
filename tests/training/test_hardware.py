"""What a run says of its machine."""

from pathlib import Path

import pytest
import torch

from hsic_lab.training._config import hardware, processor

CPUINFO = Path("/proc/cpuinfo")


@pytest.mark.skipif(not CPUINFO.exists(), reason="the system does not tell")
def test_the_processor_is_the_systems():
    names = {line.partition(": ")[2] for line in CPUINFO.read_text().splitlines() if line.startswith("model name")}
    assert hardware(torch.device("cpu")) == processor()
    assert not names or processor() in names


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_gpu_goes_before_the_processor():
    assert hardware(torch.device("cuda")) == torch.cuda.get_device_name()
