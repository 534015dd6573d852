"""pyproject.toml, environment.yml and constraints.txt speak of the same packages."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points, version
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONDA_NAMES = {"pytorch": "torch", "matplotlib-base": "matplotlib"}


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def conda_lines() -> dict[str, str]:
    """name -> the rest of the line, for every dependency of environment.yml."""
    found = re.findall(r"^  - ([a-z0-9-]+)(.*)$", (ROOT / "environment.yml").read_text(), re.MULTILINE)
    return {CONDA_NAMES.get(name, name): rest for name, rest in found if name not in {"conda-forge", "pip"}}


def split(requirement: str) -> tuple[str, str]:
    name, minimum = requirement.split(">=")
    return name, minimum


def test_environment_and_pyproject_agree():
    project = pyproject()
    wanted = dict(map(split, project["dependencies"] + project["optional-dependencies"]["dev"]))
    wanted["python"] = project["requires-python"].removeprefix(">=")
    given = {name: re.match(r">=([\d.]+)", rest).group(1) for name, rest in conda_lines().items()}
    assert given == wanted


def test_every_dependency_has_its_reason():
    without = [name for name, rest in conda_lines().items() if name != "python" and "# " not in rest]
    assert without == []


def test_constraints_pin_every_dependency_inside_its_range():
    project = pyproject()
    pins = dict(re.findall(r"^([A-Za-z0-9-]+)==([\d.]+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    for name, minimum in map(split, project["dependencies"] + project["optional-dependencies"]["dev"]):
        pinned = [int(part) for part in pins[name].split(".")]
        assert pinned >= [int(part) for part in minimum.split(".")], name


def test_the_installed_package_is_this_one():
    assert version("hsic-lab") == pyproject()["version"]
    (command,) = entry_points(group="console_scripts", name="hsic-lab")
    assert command.value == "hsic_lab.cli:main"
    assert (ROOT / "hsic_lab" / "py.typed").exists()


def test_modules_load_when_they_are_first_used():
    code = (
        "import sys, hsic_lab\n"
        "assert 'torch' not in sys.modules and 'hsic' in dir(hsic_lab)\n"
        "assert callable(hsic_lab.hsic.hsic) and callable(hsic_lab.losses.BarlowTwinsLoss)\n"
        "try:\n    hsic_lab.nothing\nexcept AttributeError as error:\n    assert \"'nothing'\" in str(error)\n"
        "else:\n    raise SystemExit(1)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
