"""The command line does its work, and its errors are one sentence with exit code 2."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hsic_lab import ablation, demo
from hsic_lab.ablation import read_table
from hsic_lab.cli import _factors, main
from hsic_lab.datasets import from_arrays, load
from hsic_lab.datasets._published import SOURCES
from hsic_lab.report import read_embeddings
from hsic_lab.training import Run, TrainConfig, train

ROOT = Path(__file__).parents[1]


def hsic_lab(*arguments, cwd=None) -> subprocess.CompletedProcess:
    """Run a command in this process: to load torch for each of them takes most of the time."""
    code, out, errors = 0, *(io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(errors):
        patch.setattr(sys, "argv", ["hsic-lab", *map(str, arguments)])
        patch.setenv("SCIPY_ARRAY_API", "1")
        patch.delenv("HSIC_LAB_DATA", raising=False)
        patch.chdir(cwd or os.getcwd())
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    return subprocess.CompletedProcess(arguments, code, *(x.buffer.getvalue().decode() for x in (out, errors)))


def called(*arguments) -> tuple[int, str, str]:
    done = hsic_lab(*arguments)
    return done.returncode, done.stdout, done.stderr


def new_process(*arguments, code="from hsic_lab.cli import main; main()", cwd=None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300)


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
    assert 5 <= done.stderr.count("\n") <= 15, "a line for about a tenth of the steps"


def test_a_finished_run_is_resumed_at_once_and_keeps_its_settings(run):
    again = hsic_lab("train", run[0], "--resume")
    assert again.returncode == 0 and again.stdout == run[1].stdout
    same = hsic_lab("train", run[0], "--resume", "--dataset", "digits", "--epochs", "2", "--projector", "8-4")
    assert same.returncode == 0 and same.stdout == run[1].stdout, "a job that is started twice"
    other = hsic_lab("train", run[0], "--resume", "--seed", "3", "--epochs", "2")
    assert other.returncode == 2 and "takes its settings from" in other.stderr
    assert other.stderr.endswith("which has seed 0, not 3\n")


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
    code, _, errors = called("train", tmp_path / "other", *options, "--set", "loss=vicreg")
    assert code == 2 and "loss is given twice: 'negative_cosine' and --set loss=vicreg" in errors
    config = TrainConfig.from_json(json.loads((tmp_path / "run" / "run.json").read_text())["config"])
    assert (config.target, config.predictor, config.width) == ("stop_gradient", (6,), 1)
    assert config.loss_options == {"gather_distributed": False} and config.bias_learning_rate is None


def test_train_without_a_data_set_names_the_others(tmp_path):
    done = hsic_lab("train", tmp_path / "run", "--epochs", "1", "--width", "1", "--projector", "4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Data set: digit_scenes. Others found, for --dataset: digits\n")


COMMANDS = ["demo", "train", "probe", "plot", "ablate", "inspect", "data", "data list", "data show", "data get"]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example(name):
    code, said, _ = called(*name.split(), "-h")
    assert code == 0 and "Example" in said and f"hsic-lab {name}" in said


MISSING = [
    "inspect missing.npy", "inspect here.npy missing.npy", "inspect here.npy --labels missing.npy", "plot missing.npy",
    "inspect here.npy --reference missing.npy", "probe missing.npy", "ablate missing.npy",
    "inspect here.npy --output missing.npy", "inspect here.npy --against missing.npy",
]  # fmt: skip


@pytest.mark.parametrize("line", MISSING)
def test_paths_are_checked_before_torch_is_loaded(line, tmp_path):
    (tmp_path / "here.npy").touch()
    code = "import sys; from hsic_lab.cli import main\ntry: main()\nfinally: print('torch' in sys.modules)"
    done = new_process(*line.split(), code=code, cwd=tmp_path)
    assert done.returncode == 2 and "missing.npy" in done.stderr and done.stdout == "False\n"


def test_help_of_train_is_that_of_the_settings():
    text = " ".join(hsic_lab("train", "--help").stdout.split())
    assert (
        "--batch-size" in text and "Pairs that the loss sees at once, in all processes together. Default: 256." in text
    )
    assert "One of adamw, adam, sgd, lars. Default: adamw." in text and "--lambda" in text


def test_version():
    for code in (
        "from hsic_lab.cli import main; main()",
        "import runpy; runpy.run_module('hsic_lab', run_name='__main__')",
    ):
        assert new_process("--version", code=code).stdout == f"hsic-lab {version('hsic-lab')}\n"


def test_probe(run):
    done = hsic_lab("probe", run[0], "--splits", "2")
    assert done.returncode == 0, done.stderr
    assert "barlow_twins" in done.stdout and "weighted kNN, k = 37" in done.stdout


def test_plot(run, tmp_path):
    done = hsic_lab("plot", run[0], "--output", tmp_path / "pictures")
    assert done.returncode == 0, done.stderr
    for name in ("correlation.png", "training.png"):
        assert (tmp_path / "pictures" / name).read_bytes().startswith(b"\x89PNG")


def test_plot_html_takes_the_name_of_a_page_or_a_folder(run, tmp_path):
    for output in (tmp_path / "c.html", tmp_path / "new"):
        page = output if output.suffix else output / "explorer.html"
        code, said, errors = called("plot", run[0], "--html", "--output", output)
        assert code == 0 and said == f"{page}\n" and page.read_text().startswith("<!DOCTYPE html>"), errors
    table = ROOT / "data" / "results" / "ablation_lambda.csv"
    code, _, errors = called("plot", table, "--html", "--output", tmp_path)
    assert code == 2 and f"--html shows C of a run, {table} is a table" in errors


def test_plot_takes_the_first_snapshot_that_is_left(run, tmp_path):
    kept = Run.load(run[0])
    del kept.snapshots[0]
    kept.folder = tmp_path / "run"
    kept.save()
    done = hsic_lab("plot", kept.folder)
    assert done.returncode == 0, done.stderr


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


def images(folder, names=("cats", "dogs"), n=10, shape=(20, 30)):
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(n):
            noise = np.random.default_rng([number, len(name)]).integers(0, 256, (*shape, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / name / f"{number}.png")


SMALL = ("--epochs", "1", "--width", "1", "--projector", "4", "--batch-size", "4")


def test_a_run_keeps_how_its_images_were_loaded(tmp_path):
    images(tmp_path / "photos")
    loading = ("--dataset", tmp_path / "photos", "--size", "16", "--test-fraction", "0.5", "--split-seed", "3")
    run = tmp_path / "run"
    for _ in range(2):
        code, said, errors = called("train", run, *loading, *SMALL, "--resume")
        assert code == 0, errors
    facts = json.loads((run / "run.json").read_text())["facts"]
    assert facts["source"] == {"size": 16, "test_fraction": 0.5, "seed": 3, "train_folder": None}
    assert facts["pictures"].startswith("10 x 3 x 16 x 16")
    code, said, errors = called("probe", run)
    assert code == 0 and "10 test images" in said, errors
    assert called("plot", run)[0] == 0 and len(read_embeddings(run).labels) == 10
    code, _, errors = called("train", run, *SMALL, "--dataset", tmp_path / "photos", "--size", "8", "--resume")
    assert code == 2 and errors.endswith("which has size 16, not 8\n")
    code, _, errors = called("train", run, "--resume", "--seed", "99", "--split-seed", "3")
    assert code == 2 and errors.endswith("which has seed 0, not 99\n"), "the seed of the run, not of the split"
    code, _, errors = called("train", run, "--resume", "--split-seed", "4")
    assert code == 2 and errors.endswith("which has split_seed 3, not 4\n")
    for number in (0, 1, 2):
        (tmp_path / "photos" / "cats" / f"{number}.png").unlink()
    for arguments in (("probe", run), ("inspect", run)):
        code, _, errors = called(*arguments)
        assert code == 2 and "was trained on other images, 10 x 3 x 16 x 16" in errors


def test_images_of_mixed_sizes_name_the_option(tmp_path):
    images(tmp_path / "mixed", ("a",), 5)
    images(tmp_path / "mixed", ("b",), 5, (8, 8))
    code, _, errors = called("train", tmp_path / "run", "--dataset", tmp_path / "mixed", *SMALL)
    assert code == 2 and "size=64 (--size 64), for instance" in errors
    grid = tmp_path / "sizes.toml"
    settings = f'dataset = "{tmp_path / "mixed"}"\nepochs = 1\nwidth = 1\nprojector = [4]\nbatch_size = 4'
    grid.write_text(f'evaluate = ["knn"]\n[base]\n{settings}\n[data]\nsize = 16\nn_train = 6\n')
    code, said, errors = called("ablate", grid, "--folder", tmp_path / "runs")
    assert code == 0 and "sizes.csv" in said, errors


def test_images_are_no_place_for_a_run(tmp_path):
    images(tmp_path / "photos")
    code, _, errors = called("train", tmp_path / "photos", *SMALL)
    assert code == 2 and "photos holds cats, dogs without run.json: choose another folder" in errors
    assert sorted(path.name for path in (tmp_path / "photos").iterdir()) == ["cats", "dogs"]


def test_run_on_arrays_is_not_probed_on_something_else(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    train(
        TrainConfig(width=1, projector=(4,), batch_size=4, epochs=1), tmp_path, from_arrays(noise, [0, 1] * 10), False
    )
    code, _, errors = called("probe", tmp_path)
    assert code == 2 and "'arrays', are neither a known data set nor a folder: if the run was trained on arr" in errors


def test_images_without_labels_are_trained_on_and_not_probed(tmp_path):
    photos = tmp_path / "set" / "photos"
    images(tmp_path / "set", ("photos",), 25, (8, 8))
    assert called("train", tmp_path / "run", "--dataset", photos, *SMALL)[0] == 0
    code, _, errors = called("probe", tmp_path / "run")
    assert code == 2 and "has no labels to predict" in errors and read_embeddings(tmp_path / "run").labels is None
    code, _, errors = called("train", tmp_path / "few", "--dataset", photos, *SMALL, "--monitor", "knn")
    assert code == 2 and "monitor must be 'none' for images without labels" in errors
    for number in range(9, 25):
        (photos / f"{number}.png").unlink()
    code, _, errors = called("train", tmp_path / "few", "--dataset", photos, *SMALL)
    assert code == 2 and f"C needs at least 2 held-out images, '{photos}' has 1" in errors
    assert "--test-fraction" in errors and not (tmp_path / "few").exists()
    assert called("train", tmp_path / "few", "--dataset", photos, *SMALL, "--test-fraction", "0.4")[0] == 0


def test_inspect_says_what_was_read_and_how_far_it_is(tmp_path):
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 4)), columns=[f"emb_{i}" for i in range(4)])
    table.assign(image_id=range(60), species=["01", "1", "2"] * 20).to_csv(tmp_path / "x.csv", index=False)
    done = hsic_lab("inspect", tmp_path / "x.csv")
    assert done.returncode == 2 and "--drop 'image_id'" in done.stderr
    done = new_process("inspect", tmp_path / "x.csv", "--drop", "image_id", "--label-column", "species")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'x.csv.html'}\n" and "60 rows and 4 features" in done.stderr
    assert "Labels: 'species', 3 classes: '01', '1', '2'" in done.stderr
    assert "Left out: 'image_id'" in done.stderr and "Verdict: " in done.stderr
    page = (tmp_path / "x.csv.html").read_text()
    assert "Left out: &#39;image_id&#39;" in page and "3 classes" in page


def test_pages_of_one_file_and_of_two_have_different_names(tmp_path):
    a, b, c = (tmp_path / f"{name}.npy" for name in "abc")
    for path in (a, b, c):
        np.save(path, np.random.default_rng(0).normal(size=(30, 3)))
    names = {(a,): "a.npy", (a, b): "a.npy-and-b.npy", (a, b, "--against", c): "a.npy-and-b.npy-vs-c.npy"}
    for given, name in names.items():
        assert called("inspect", *given)[1].strip() == str(tmp_path / f"{name}.html")


def test_tables_of_ablations_are_compared_and_drawn(tmp_path):
    (tmp_path / "grid.toml").write_text(
        'base = { dataset = "digits", epochs = 1, width = 1, projector = [4] }\n'
        'cross = { batch_size = [128, 256], loss = ["barlow_twins", "hsic_ssl"] }\nseeds = 2\nevaluate = ["knn"]\n'
    )
    code, said, errors = called("ablate", tmp_path / "grid.toml", "--folder", tmp_path / "runs")
    assert code == 0, errors
    assert said.count("Differences of knn accuracy in points") == 2
    words = [line.split() for line in said.splitlines()]
    assert sum(line[:3] == ["barlow_twins", "256", "128"] for line in words) == 1
    assert sum(line[:3] == ["256", "hsic_ssl", "barlow_twins"] for line in words) == 1
    code, said, errors = called("plot", tmp_path / "runs" / "grid.csv")
    assert code == 0 and said == f"{tmp_path / 'runs' / 'grid_knn.png'}\n", errors
    assert (tmp_path / "runs" / "grid_knn.png").read_bytes().startswith(b"\x89PNG")


def test_files_that_are_read_or_of_somebody_are_not_written_over(tmp_path):
    (tmp_path / "grid.toml").write_text('base = { dataset = "digits", epochs = 1, width = 1, projector = [4] }\n')
    (tmp_path / "grid.csv").write_text("a,b\n1,2\n")
    pd.DataFrame({"a": range(9), "b": [0.5, 2] * 4 + [1]}).to_parquet(tmp_path / "x.parquet")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for arguments, words in (
        (("ablate", "grid.toml", "--folder", ".", "--output", "grid.toml"), "grid.toml is no table of an ablation"),
        (("ablate", "grid.toml", "--folder", "."), "grid.csv is no table of an ablation"),
        (("inspect", "x.parquet", "--atlas", "x.parquet"), "--atlas needs a file of its own, x.parquet is read"),
        (("inspect", "grid.csv", "--against", "x.parquet", "--atlas", "./x.parquet"), "--atlas needs a file of its"),
    ):
        done = hsic_lab(*arguments, cwd=tmp_path)
        assert done.returncode == 2 and words in done.stderr, done.stderr
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


TABLE = {
    "# question: ": "what", "# cross: ": '{"loss": ["a", "b"]}', "# include: ": "[]", "# command: ": "hsic-lab ablate",
    "": "loss,seed,evaluation,accuracy,state\na,0,knn,0.5,finished\nb,0,knn,0.6,finished\n",
}  # fmt: skip
DAMAGES = [{name: None} for name in TABLE] + [
    {"# cross: ": "{"},
    {"# include: ": "["},
    {"": "loss,evaluation\na,knn\n"},
]


@pytest.mark.parametrize("damage", [{}, *DAMAGES], ids=str)
def test_damaged_table_is_a_sentence(tmp_path, damage):
    lines = [name + text for name, text in (TABLE | damage).items() if text is not None]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    code, _, errors = called("plot", tmp_path / "t.csv")
    assert code == (2 if damage else 0), errors
    assert not damage or f"{tmp_path / 't.csv'} is no table of an ablation, or a damaged one: " in errors


def test_requeued_job_goes_on_though_its_settings_were_damaged(tmp_path, monkeypatch):
    monkeypatch.setenv("HSIC_LAB_CACHE", str(tmp_path / "cache"))
    noise = np.random.default_rng(0)
    for number, name in enumerate("ab" * 10):
        (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(noise.integers(0, 256, (9 + number, 12, 3), dtype=np.uint8))
        image.save(tmp_path / "photos" / name / f"{number}.png")
    line = ["train", "run", "--dataset", "photos", "--size", 8, "--test-fraction", 0.3, "--batch-size", 7]
    line += ["--epochs", 2, "--width", 1, "--projector", "8-4", "--set", "snapshots=2", "--resume"]
    with monkeypatch.context() as patch:
        patch.setattr("hsic_lab.training._trainer.Trainer.end_epoch", lambda *_: signal.raise_signal(signal.SIGINT))
        assert hsic_lab(*line, cwd=tmp_path).returncode == 130
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.warns(UserWarning, match="its settings are those of the checkpoint at step 2"):
        done = hsic_lab(*line, cwd=tmp_path)
    assert done.returncode == 0 and "after step 2 of 4" in done.stdout, done.stderr
    for _ in range(2):
        assert hsic_lab(*line, cwd=tmp_path).returncode == 0, "nothing has changed"


def test_edited_settings_are_told_once_on_resume(run, tmp_path):
    shutil.copytree(run[0], tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    path.write_text(path.read_text().replace('"threads": ', '"threads": 1'))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")  # as outside tests
        done = hsic_lab("train", "run", "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [str(one.message) for one in told] == [f"{path} was changed since the training wrote it"]


def test_run_needs_a_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    code, _, errors = called("train", tmp_path / "file", "--dataset", "digits")
    assert code == 2 and f"{tmp_path / 'file'} is a file: a run needs a folder" in errors
    assert (tmp_path / "file").read_text() == "mine"


def test_tuned_table_is_told_and_drawn(tmp_path):
    (tmp_path / "grid.toml").write_text(
        'base = { dataset = "digits", epochs = 1, width = 1, projector = [4] }\nevaluate = ["knn"]\n'
        'include = [{ loss = "spectral" }, { loss = "ssl_hsic", loss_options = { standardized = true } }]\n'
        "cross = { batch_size = [128, 256] }\ntune = { learning_rate = [0.001, 0.01, 0.1] }\n"
        "data = { n_train = 512, n_validation = 200 }\n"
    )
    code, said, errors = called("ablate", tmp_path / "grid.toml", "--folder", tmp_path / "runs")
    assert code == 0, errors
    assert said.count("chosen: batch_size ") == 4 and "learning_rate 0.1" in said.replace("[", "")
    code, said, errors = called("plot", tmp_path / "runs" / "grid.csv")
    files = [tmp_path / "runs" / f"grid_{name}.png" for name in ("tuning_learning_rate", "knn")]
    assert code == 0 and said.splitlines() == list(map(str, files)), errors


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
        (("train", "new", "--dataset", ""), "''"),
        (("train", "new", "--dataset", "digits", "--size", "8"), "digits has no option 'size'"),
        (("train", "new", "--dataset", "cifar10", "--size", "8"), "cifar10 has no option 'size'"),
        (("data", "mnist"), "'mnist'"),
        (("train", "new", "--device", "foo"), "device must be auto, cpu, mps, cuda or cuda:N, got 'foo'"),
        (("data", "show", "digits", "--size", "32"), "digits has no option 'size'"),
        (("data", "show", "mnist"), "'mnist'"),
        (("data", "get", "digits"), "no set 'digits' can be downloaded; there are"),
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


def test_streams_may_be_closed(tmp_path, monkeypatch):
    line = ["hsic-lab", "train", str(tmp_path / "run"), "--dataset", "digits", "--epochs", "1", "--width", "1"]
    monkeypatch.setattr(sys, "argv", [*line, "--projector", "8-4"])
    with redirect_stdout(None), redirect_stderr(None), suppress(SystemExit):
        main()
    assert Run.load(tmp_path / "run").status == "finished"


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
    words = r"run is not finished \(interrupted\): .* step 0 or later; to finish it, pass resume=True to train, or"
    with pytest.warns(UserWarning, match=words):
        code, _, errors = called("probe", tmp_path / "run")
    assert code == 0, errors


def test_probe_of_the_demo_is_kept_for_the_same_weights(tmp_path, monkeypatch):
    data, made = load("digit_scenes", n_train=60, n_test=50), []
    config = TrainConfig(width=1, projector=(4,), batch_size=50, epochs=1)
    runs = {"loss": train(config, tmp_path / "run", data, False)}
    table = pd.DataFrame({"representation": ["raw pixels", "loss"], "accuracy": [0.25, 0.5]})
    monkeypatch.setattr(demo, "probe_table", lambda *_, **__: made.append(1) or table)
    for _ in range(2):
        pd.testing.assert_frame_equal(demo.demo_probe(runs, data, tmp_path / "probe.csv"), table)
        os.utime(tmp_path / "probe.csv", (1, 1))  # as after a copy
    assert len(made) == 1
    good = (tmp_path / "probe.csv").read_bytes()
    for damaged in (b"", b"\xff\xfe\0", b"\n".join(good.splitlines()[:2])):
        (tmp_path / "probe.csv").write_bytes(damaged)
        pd.testing.assert_frame_equal(demo.demo_probe(runs, data, tmp_path / "probe.csv"), table)
        assert (tmp_path / "probe.csv").read_bytes() == good
    assert len(made) == 4
    train(replace(config, seed=1), tmp_path / "other", data, False)
    (tmp_path / "other" / "weights.safetensors").rename(tmp_path / "run" / "weights.safetensors")
    demo.demo_probe(runs, data, tmp_path / "probe.csv")
    assert len(made) == 5


def test_factors_that_only_some_rows_have_are_joined():
    rows = [("a", None, None), ("b", "{}", None), ("c", None, None), ("c", None, 256)]
    frame = pd.DataFrame(rows, columns=["loss", "loss_options", "slices"])
    assert _factors(frame, ["loss", "loss_options", "slices"]) == ["settings"]
    assert frame["settings"].nunique() == 4 and frame["settings"].iloc[-1] == "loss=c, slices=256"
    frame = pd.DataFrame([("v1.0", None), ("v1", 2.0), ("v1", None)], columns=["dataset", "slices"])
    assert _factors(frame, ["dataset", "slices"]) == ["settings"]
    assert frame["settings"].tolist() == ["dataset=v1.0", "dataset=v1, slices=2", "dataset=v1"]


def test_levels_of_the_projects_own_tables_have_names():
    """Rows of lambda_param have no lambda_times_d: the name of such a level says what is set."""
    frame = read_table(ROOT / "data" / "results" / "ablation_cifar10_lambda.csv")
    assert _factors(frame, ["lambda_times_d", "lambda_param"]) == ["settings"]
    names = [f"lambda_times_d={times}" for times in (0.1, 1.0, 10.0)] + ["lambda_param=0.005"]
    assert frame["settings"].drop_duplicates().tolist() == names


def test_a_failed_evaluation_is_a_failed_run(tmp_path, monkeypatch):
    (tmp_path / "grid.toml").write_text(
        'base = { dataset = "digits", epochs = 1, width = 1, projector = [4] }\nevaluate = ["linear", "knn"]\n'
    )
    run = ablation.run_ablation

    def with_failed_knn(*arguments, **options):
        frame = run(*arguments, **options)
        frame.loc[frame["evaluation"] == "knn", ["accuracy", "state"]] = np.nan, "failed: no neighbors"
        return frame

    monkeypatch.setattr(ablation, "run_ablation", with_failed_knn)
    code, _, errors = called("ablate", tmp_path / "grid.toml", "--folder", tmp_path / "runs")
    assert code == 1 and "1 of 1 runs failed:\n  failed: no neighbors (1 of them)" in errors


def test_factors_that_are_not_crossed_are_joined():
    frame = pd.DataFrame([("a", "x"), ("a", "y"), ("b", "y")], columns=["loss", "target"])
    assert _factors(frame, ["loss", "target"]) == ["settings"]  # b has no x to be compared with
    crossed = pd.DataFrame([("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")], columns=["loss", "target"])
    assert _factors(crossed, ["loss", "target"]) == ["loss", "target"] and "settings" not in crossed
    assert _factors(crossed, []) == []
