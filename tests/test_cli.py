"""The command line does its work, and its errors are one sentence with exit code 2."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version

import pytest
from PIL import Image

from hsic_lab.datasets._published import SOURCES
from hsic_lab.training import TrainConfig


def hsic_lab(*arguments: str, cwd=None) -> subprocess.CompletedProcess:
    code = "from hsic_lab.cli import main; main()"
    environment = {name: value for name, value in os.environ.items() if name != "HSIC_LAB_DATA"}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, cwd=cwd, timeout=300, env=environment,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    done = hsic_lab("train", folder, "--dataset", "digits", "--epochs", "2", "--width", "2", "--projector", "8-4")
    assert done.returncode == 0, done.stderr
    return folder, done


def test_train_leaves_a_run_and_names_the_next_commands(run):
    folder, done = run
    assert (folder / "weights.safetensors").exists()
    assert f"hsic-lab probe {folder}" in done.stdout
    for word in ("epoch 2.0", "loss", "diagonal", "off-diagonal"):
        assert word in done.stderr, "the progress bar shows it"


def test_a_finished_run_is_resumed_at_once_and_keeps_its_settings(run):
    again = hsic_lab("train", run[0], "--resume")
    assert again.returncode == 0 and again.stdout == run[1].stdout
    other = hsic_lab("train", run[0], "--resume", "--seed", "3")
    assert other.returncode == 2 and "takes its settings from" in other.stderr and "seed" in other.stderr


def test_set_reaches_every_setting(tmp_path):
    options = (
        "--loss",
        "negative_cosine",
        "--set",
        "target=stop_gradient",
        "--set",
        "predictor=[6]",
        "--set",
        "width=1",
    )
    more = ("--set", 'loss_options={"gather_distributed": false}', "--set", "bias_learning_rate=null")
    done = hsic_lab("train", tmp_path / "run", "--dataset", "digits", "--epochs", "1", *options, *more)
    assert done.returncode == 0, done.stderr
    config = TrainConfig.from_json(json.loads((tmp_path / "run" / "run.json").read_text())["config"])
    assert (config.target, config.predictor, config.width) == ("stop_gradient", (6,), 1)
    assert config.loss_options == {"gather_distributed": False} and config.bias_learning_rate is None


def test_train_without_a_data_set_names_the_others(tmp_path):
    done = hsic_lab("train", tmp_path / "run", "--epochs", "1", "--width", "1", "--projector", "4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Data set: digit_scenes. Others found, for --dataset: digits\n")


@pytest.mark.parametrize("command", ["demo", "train", "probe", "plot", "ablate", "inspect", "data"])
def test_help_has_an_example(command):
    done = hsic_lab(command, "-h")
    assert done.returncode == 0 and "Example" in done.stdout and f"hsic-lab {command}" in done.stdout


def test_help_of_train_is_that_of_the_settings():
    text = " ".join(hsic_lab("train", "--help").stdout.split())
    assert (
        "--batch-size" in text and "Pairs that the loss sees at once, in all processes together. Default: 256." in text
    )
    assert "One of adamw, adam, sgd, lars. Default: adamw." in text and "--lambda" in text


def test_version():
    assert hsic_lab("--version").stdout == f"hsic-lab {version('hsic-lab')}\n"


def test_probe(run):
    done = hsic_lab("probe", run[0], "--splits", "2")
    assert done.returncode == 0, done.stderr
    assert "barlow_twins" in done.stdout and "weighted kNN, k = 37" in done.stdout


def test_plot(run, tmp_path):
    done = hsic_lab("plot", run[0], "--output", tmp_path / "pictures")
    assert done.returncode == 0, done.stderr
    for name in ("correlation.png", "training.png"):
        assert (tmp_path / "pictures" / name).read_bytes().startswith(b"\x89PNG")


def test_plot_replaces_an_image_and_never_writes_into_it(run, tmp_path):
    (tmp_path / "correlation.png").write_text("the previous image")
    (tmp_path / "reader.png").hardlink_to(tmp_path / "correlation.png")  # like a program that has it open
    assert hsic_lab("plot", run[0], "--output", tmp_path).returncode == 0
    assert (tmp_path / "reader.png").read_text() == "the previous image"
    assert (tmp_path / "correlation.png").read_bytes().startswith(b"\x89PNG")


def test_data(tmp_path):
    listing = hsic_lab("data", cwd=tmp_path)
    assert listing.returncode == 0, listing.stderr
    assert "digit_scenes: ready" in listing.stdout and "cifar10: CIFAR-10 is incomplete or absent" in listing.stdout
    assert hsic_lab("data", "list", cwd=tmp_path).stdout == listing.stdout
    for arguments in (("digits",), ("show", "digits")):
        assert "1352 training, 445 test" in hsic_lab("data", *arguments).stdout


def test_data_shows_a_folder_of_images(tmp_path):
    for name, shape in (("cats", (20, 30)), ("dogs", (40, 25))):
        (tmp_path / name).mkdir()
        for number in range(5):
            Image.new("RGB", shape).save(tmp_path / name / f"{number}.png")
    done = hsic_lab("data", "show", tmp_path, "--size", "16")
    assert done.returncode == 0, done.stderr
    assert "8 training, 2 test" in done.stdout and "(3, 16, 16); classes: cats, dogs" in done.stdout


def test_data_get_says_what_is_there(tmp_path):
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    for name in SOURCES["stl10"].files:
        (folder / name).touch()
    assert f"stl10 is in {folder}" in hsic_lab("data", "get", "stl10", "--folder", tmp_path).stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("probe", "nowhere"), "nowhere is not a run"),
        (("plot", "nowhere"), "nowhere is not a run"),
        (("train", "new", "--loss", "barlow"), "'barlow'"),
        (("train", "new", "--projector", "wide"), "'wide'"),
        (("train", "new", "--recipe", "note"), "'note'"),
        (("train", "new", "--dataset", "cifar10"), "cifar-10-binary.tar.gz"),
        (("train", "new", "--dataset", "mnist"), "'mnist'"),
        (("data", "mnist"), "'mnist'"),
        (("train", "new", "--device", "foo"), "device must be auto, cpu, cuda or cuda:N, got 'foo'"),
        (("train", "new", "--device", "mps"), "device must be auto, cpu, cuda or cuda:N, got 'mps'"),
        (("data", "show", "digits", "--size", "32"), "digits has no option 'size'"),
        (("data", "show", "mnist"), "'mnist'"),
        (("data", "get", "digits"), "'digits' is not downloaded"),
        (("train", "new", "--set", "width"), "--set must be NAME=VALUE, got 'width'"),
        (("train", "new", "--set", "widht=3"), "'width', 'projector'"),
        (("train", "new", "--set", "schedule=linear"), "schedule must be one of 'cosine', 'constant', got 'linear'"),
    ],
)
def test_errors_are_a_sentence_and_exit_code_2(arguments, words, tmp_path):
    done = hsic_lab(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.startswith("hsic-lab: ") and "Traceback" not in done.stderr
    assert not (tmp_path / "new").exists()


def test_ctrl_c_leaves_the_run_and_says_so(tmp_path):
    code = "from hsic_lab.cli import main; main()"
    command = [sys.executable, "-c", code, "train", "run", "--dataset", "digits", "--epochs", "1000", "--width", "1"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "checkpoints").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and said.endswith("hsic-lab: interrupted; what was done so far is kept\n")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["state"] == "interrupted"
