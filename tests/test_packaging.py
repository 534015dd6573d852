"""pyproject.toml, environment.yml and constraints.txt agree; the built package works outside the repository."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from importlib.metadata import entry_points, version
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
CONDA_NAMES = {"pytorch": "torch", "matplotlib-base": "matplotlib", "python-build": "build"}
EXTRAS = ("lab", "docs", "dev")
FEW_IMAGES = """
from dataclasses import replace
from hsic_lab import datasets, demo
data = datasets.load("digit_scenes")
few = replace(data, train=data.train.subset(slice(512)), test=data.test.subset(slice(250)))
demo.load = lambda name: few
"""  # code before the demo, whose probes of all images take minutes


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements() -> dict[str, str]:
    """Name -> least version of everything that the set-up commands of the README install."""
    project = pyproject()
    lines = project["dependencies"] + [line for name in EXTRAS for line in project["optional-dependencies"][name]]
    return dict(line.split(">=") for line in lines)


def conda_lines() -> dict[str, str]:
    """Name -> the rest of the line, for every dependency of environment.yml."""
    found = re.findall(r"^ +- ([a-z0-9-]+)(>=.*)$", (ROOT / "environment.yml").read_text(), re.MULTILINE)
    return {CONDA_NAMES.get(name, name): rest for name, rest in found}


def test_environment_and_pyproject_agree():
    given = {name: re.match(r">=([\d.]+)", rest).group(1) for name, rest in conda_lines().items()}
    assert given == requirements() | {"python": pyproject()["requires-python"].removeprefix(">=")}


def test_every_dependency_has_its_reason():
    without = [name for name, rest in conda_lines().items() if name != "python" and "# " not in rest]
    assert without == []


def test_constraints_pin_every_dependency_inside_its_range():
    pins = dict(re.findall(r"^([A-Za-z0-9-]+)==([\d.]+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    for name, minimum in requirements().items():
        pinned = [int(part) for part in pins[name].split(".")]
        assert pinned >= [int(part) for part in minimum.split(".")], name


def test_the_installed_package_is_this_one():
    assert version("hsic-lab") == pyproject()["version"]
    (command,) = entry_points(group="console_scripts", name="hsic-lab")
    assert command.value == "hsic_lab.cli:main"
    assert (ROOT / "hsic_lab" / "py.typed").exists()


def python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})


def test_modules_and_names_load_when_they_are_first_used():
    python(
        "import sys, hsic_lab\n"
        "assert 'torch' not in sys.modules\n"
        "assert callable(hsic_lab.hsic.hsic) and callable(hsic_lab.losses.BarlowTwinsLoss)\n"
        "assert hsic_lab.BarlowTwinsLoss is hsic_lab.losses.BarlowTwinsLoss\n"
        "try:\n    hsic_lab.nothing\nexcept AttributeError as error:\n    assert \"'nothing'\" in str(error)\n"
        "else:\n    raise SystemExit(1)\n"
    )


def test_dir_shows_public_names_only():
    import hsic_lab

    names = set(dir(hsic_lab)) - {"__version__"}
    assert not [name for name in names if name.startswith("_")]
    modules = {path.stem for path in (ROOT / "hsic_lab").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert {name for name in modules if not name.startswith("_")} <= names
    for name in names:
        assert getattr(hsic_lab, name) is not None


@pytest.mark.parametrize("module", ["losses", "hsic", "cka", "independence", "kernels", "correlation", "encoders"])
def test_the_core_loads_no_figures_and_no_notebooks(module):
    extra = "('matplotlib', 'seaborn', 'IPython', 'ipywidgets', 'anywidget', 'typer', 'pooch', 'jinja2', 'PIL')"
    python(
        f"import sys, hsic_lab.{module}\n"
        f"loaded = [name for name in {extra} if name in sys.modules]\n"
        "assert not loaded, loaded"
    )


def test_a_missing_extra_is_named():
    python(
        "import sys, hsic_lab\n"
        "sys.modules['anywidget'] = None  # as if it were not installed\n"
        "try:\n"
        "    hsic_lab.CorrelationExplorer\n"
        "except ImportError as error:\n"
        "    assert 'explorer needs anywidget' in str(error) and 'hsic-lab[lab]' in str(error), error\n"
        "else:\n"
        "    raise SystemExit(1)"
    )


def test_the_package_is_small():
    files = list((ROOT / "hsic_lab").rglob("*.py"))
    assert len(files) <= 60
    assert sum(len(path.read_text().splitlines()) for path in files) <= 12_338


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The interpreter of an environment with the wheel, which is built from the source distribution."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "hsic_lab", source / "hsic_lab", ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", folder / "dist", source], check=True, capture_output=True
    )
    assert len(list((folder / "dist").glob("*.tar.gz"))) == 1
    (wheel,) = (folder / "dist").glob("*.whl")
    environment = folder / "environment"
    venv.create(environment, with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": environment, "platbase": environment}))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel]
    subprocess.run(command, check=True, capture_output=True)
    # The dependencies are those of this environment: a path file shows them, but not this editable installation.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment / "bin" / "python"


def run(program: Path, *arguments: object, cwd: Path, first: str = "") -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [program, "-c", f"{first}from hsic_lab.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_the_wheel_inspects_embeddings_outside_the_repository(installed, tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "embeddings.npy", rng.normal(size=(60, 5)).astype(np.float32))
    done = run(installed, "inspect", "embeddings.npy", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "embeddings.npy.html").stat().st_size > 10_000
    where = subprocess.run(
        [installed, "-c", "import hsic_lab; print(hsic_lab.__file__)"], cwd=tmp_path, capture_output=True, text=True
    )
    assert str(ROOT) not in where.stdout


def test_the_wheel_runs_the_demo_outside_the_repository(installed, tmp_path):
    done = run(installed, "demo", "--epochs", "1", cwd=tmp_path, first=FEW_IMAGES)
    assert done.returncode == 0, done.stderr
    assert {"correlation.png", "training.png", "probe.csv"} <= {p.name for p in (tmp_path / "runs/demo").iterdir()}


@pytest.mark.parametrize("script", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_benchmarks_import_names_that_exist(script):
    found = [node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.ImportFrom)]
    for node in [node for node in found if (node.module or "").startswith("hsic_lab")]:
        module = importlib.import_module(node.module)
        missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
        assert not [name for name in missing if importlib.util.find_spec(f"{node.module}.{name}") is None]
