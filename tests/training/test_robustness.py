"""Attacks on the folder of a run: nothing is lost, nothing is half done, and every refusal is a sentence.

`python tests/training/test_robustness.py SECONDS` (`make soak`) repeats the attacks at random and counts them.
"""

import contextlib
import errno
import itertools
import json
import os
import random
import signal
import stat
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from test_resume import Noisy, Stop, assert_same, config, images, server, start

from hsic_lab._io import replace_file
from hsic_lab.cli import main
from hsic_lab.training import Run, TrainConfig, _run, train, train_or_load
from hsic_lab.training import _setup as pairs
from hsic_lab.training._run import FILES, FOLDER, HISTORY, LOCK, SAMPLES, SETTINGS, SNAPSHOTS, WEIGHTS

TINY = {"width": 1, "epochs": 3, "snapshots": 3, "monitor": "none"}
OPERATIONS = ("replace", "fsync", "mkdir", "unlink", "rmdir")  # what the library asks of a file system


@pytest.fixture(autouse=True)
def one_thread_and_few_held_out_pairs(monkeypatch):
    monkeypatch.setattr(pairs, "SNAPSHOT_PAIRS", 16)
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the number decides the last bits
    yield
    torch.set_num_threads(before)


def tiny(folder: Path, **changes) -> Run:
    return train(config(**TINY | changes), folder, images(), False, resume=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "SNAPSHOT_PAIRS", 16)
        torch.set_num_threads(1)
        return tiny(tmp_path_factory.mktemp("whole") / "run")


@contextlib.contextmanager
def operations(act):
    """Call `act(number)` before each operation on files within the block."""
    count, before = iter(range(10**9)), {name: getattr(os, name) for name in OPERATIONS}

    def watched(name):
        def call(*arguments, **more):
            if not str(arguments[0]).endswith(LOCK):  # of another library, which has its own tests
                act(next(count))
            return before[name](*arguments, **more)

        return call

    for name in OPERATIONS:
        setattr(os, name, watched(name))
    try:
        yield
    finally:
        for name, original in before.items():
            setattr(os, name, original)


def fails_from(first: int, last: float, number: int = errno.ENOSPC):
    def act(count: int) -> None:
        if first <= count <= last:
            raise OSError(number, os.strerror(number))

    return act


def assert_whole(folder: Path, whole: Run) -> None:
    assert_same(Run.load(folder), whole)
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES), "something was left behind"


def full_disk(folder: Path, rng: random.Random, whole: Run) -> None:
    """The disk is full for some operations, or from one on; there is room again when the training is resumed."""
    first = rng.randrange(70)
    last = first if rng.random() < 0.3 else float("inf")
    number = rng.choice([errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
    with operations(fails_from(first, last, number)), contextlib.suppress(OSError):
        tiny(folder)
    tiny(folder)
    assert_whole(folder, whole)


def killed_work(folder: str, at: int) -> None:
    torch.set_num_threads(1)
    pairs.SNAPSHOT_PAIRS = 16
    with operations(lambda count: os.kill(os.getpid(), signal.SIGKILL) if count == at else None):
        tiny(Path(folder))


def killed(folder: Path, rng: random.Random, whole: Run) -> None:
    """The process is killed at an operation on files, perhaps twice."""
    for _ in range(rng.choice([1, 2])):
        process = server.Process(target=killed_work, args=(str(folder), rng.randrange(60)))
        process.start()
        process.join(120)
    tiny(folder)
    assert_whole(folder, whole)


def damage(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    kind = rng.choice(["flip", "cut", "gone", "empty"])
    if kind == "flip":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        content = content[: rng.randrange(len(content))]
    path.unlink() if kind == "gone" else path.write_bytes(b"" if kind == "empty" else content)


def interrupted(folder: Path, step: int = 9) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(config(**TINY), folder, images(), False, callbacks=[Stop(step)])


def damaged(folder: Path, rng: random.Random, whole: Run) -> None:
    """A file of an interrupted run is damaged: the training goes on, or a sentence names the file."""
    interrupted(folder)
    files = [path for path in folder.rglob("*") if path.is_file()]
    damage(broken := rng.choice(files), rng)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            run = tiny(folder)
        except (ValueError, FileExistsError) as error:
            assert broken.name == SETTINGS and SETTINGS in str(error) and not broken.exists()
            return
    assert all(str(folder) in str(warning.message) for warning in said)
    if broken.name in (SNAPSHOTS, SAMPLES):
        assert len(said) == 1, "lost snapshots are said"
        run.snapshots, run.samples = whole.snapshots, whole.samples
    assert_same(run, whole)


def damaged_at_rest(folder: Path, rng: random.Random, whole: Run) -> None:
    """A file of a finished run is damaged: the error names it."""
    tiny(folder)
    damage(broken := folder / rng.choice(FILES), rng)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            Run.load(folder)
        except (ValueError, FileNotFoundError) as error:
            assert broken.name in str(error) and "\n" not in str(error)[:40]
        else:
            assert broken.name == SETTINGS and said, "the content of run.json is not needed to the letter"


def pair_work(folder: str, seed: int, answers) -> None:
    torch.set_num_threads(1)
    pairs.SNAPSHOT_PAIRS = 16
    try:
        train(
            config(**TINY | {"seed": seed}),
            folder,
            images(),
            False,
            resume=True,
            callbacks=[lambda e: time.sleep(0.02)],
        )
        answers.put((seed, "finished"))
    except (OSError, ValueError) as error:
        answers.put((seed, f"{type(error).__name__}: {error}"))


def pair(folder: Path, rng: random.Random, whole: Run) -> None:
    """Two processes train in one folder, with equal or other settings: the folder is the run of one of them."""
    answers = server.Queue()
    seeds = [0, rng.choice([0, 1])]
    processes = [server.Process(target=pair_work, args=(str(folder), seed, answers)) for seed in seeds]
    for process in processes:
        process.start()
        time.sleep(rng.choice([0, 0.2]))
    found = [answers.get(timeout=120) for _ in seeds]
    for process in processes:
        process.join(60)
    ends = [seed for seed, said in found if said == "finished"]
    assert ends, found
    for _, said in found:
        assert said == "finished" or "another process" in said or "other settings" in said, said
    run = Run.load(folder)
    assert run.status == "finished" and {run.config.seed} == set(ends)
    if run.config.seed == 0:
        assert_whole(folder, whole)


ATTACKS = {attack.__name__: attack for attack in (full_disk, killed, damaged, damaged_at_rest, pair)}
SEEDS = {"full_disk": 8, "killed": 4, "damaged": 5, "damaged_at_rest": 3, "pair": 2}


@pytest.mark.parametrize(("name", "seed"), [(name, seed) for name, n in SEEDS.items() for seed in range(n)])
def test_attack_is_survived(tmp_path, whole, name, seed):
    ATTACKS[name](tmp_path / "run", random.Random(f"{name} {seed}"), whole)


def keep(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", [HISTORY, WEIGHTS, SNAPSHOTS, "monitor.csv", f"{FOLDER}/model.ckpt"])
@pytest.mark.parametrize("resume", [False, True])
def test_files_of_somebody_are_neither_replaced_nor_removed(tmp_path, name, resume):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match=f"{tmp_path} holds {name.split('/')[0]} without run.json"):
        train(config(**TINY), tmp_path, images(), False, resume=resume)
    assert keep(tmp_path) == {str(tmp_path / name): b"mine"}


def test_finished_run_that_lost_its_settings_is_not_trained_over(tmp_path):
    tiny(tmp_path)
    (tmp_path / SETTINGS).unlink()
    before = keep(tmp_path)
    left = r"correlation\.safetensors, history\.csv, samples\.safetensors, weights\.safetensors without"
    with pytest.raises(FileExistsError, match=left):
        train_or_load(config(**TINY), tmp_path, images(), False)
    assert keep(tmp_path) == before


def test_only_own_files_are_removed(tmp_path, whole):
    interrupted(tmp_path)
    notes = [FOLDER + "/step_by_step.md", FOLDER + "/step_00000004.txt", ".run.json.swp", "notes.tmp", ".tmp"]
    left = [f".{WEIGHTS}.{'0' * 32}", f"{FOLDER}/.step_00000008.json.{'a' * 32}", ".tmpAb3dE6", f"{FOLDER}/.tmpXXXXXX"]
    for name in (*notes, *left):
        (tmp_path / name).write_text("x")
    (tmp_path / f".{HISTORY}.{'1' * 32}").mkdir()
    run = tiny(tmp_path)
    assert_same(run, whole)
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")} == {*FILES, FOLDER, *notes}


def test_checkpoints_of_another_run_are_refused(tmp_path):
    interrupted(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train(config(**TINY, seed=1), tmp_path / "other", images(), False, callbacks=[Stop(9)])
    for path in (tmp_path / "run" / FOLDER).iterdir():
        path.unlink()
    for path in (tmp_path / "other" / FOLDER).iterdir():
        path.rename(tmp_path / "run" / FOLDER / path.name)
    with pytest.raises(ValueError, match="checkpoints is of a run with other settings or images"):
        tiny(tmp_path / "run")


def test_second_process_is_refused_and_the_first_goes_on(tmp_path):
    process = start(tmp_path / "run", {}, 1)
    try:
        with pytest.raises(BlockingIOError, match=f"another process works in {tmp_path / 'run'}: wait for it"):
            train(config(), tmp_path / "run", images(), False, resume=True, encoder=Noisy())
    finally:
        process.join(60)
    assert process.exitcode == 0 and json.loads((tmp_path / "run" / SETTINGS).read_text())["state"] == "finished"
    assert not (tmp_path / "run" / LOCK).exists()


def test_training_whose_folder_was_removed_stops(tmp_path, whole):
    """Somebody removes the folder of a process that they believe dead, and starts another in the same place."""

    def removed(event):
        if event.kind == "step" and event.step == 2:
            (tmp_path / "run").rename(tmp_path / "away")
            tiny(tmp_path / "other")
            (tmp_path / "other").rename(tmp_path / "run")

    with pytest.raises(FileNotFoundError, match=f"^{tmp_path / 'run'} was removed or moved while this process worked"):
        train(config(**TINY), tmp_path / "run", images(), False, callbacks=[removed])
    assert_whole(tmp_path / "run", whole)


@pytest.mark.parametrize("end", [{}, {"seed": 1}])
def test_training_whose_lock_is_that_of_another_process_stops(tmp_path, end):
    again = []

    def removed(event):
        if event.kind == "step" and event.step == 2:
            (tmp_path / "run").rename(tmp_path / "away")
            again.append(start(tmp_path / "run", end, 1))

    with pytest.raises(FileNotFoundError, match="was removed or moved"):
        train(config(**TINY), tmp_path / "run", images(), False, callbacks=[removed])
    assert (tmp_path / "run" / LOCK).exists(), "the lock is that of the other process"
    again[0].join(60)
    assert again[0].exitcode == 0 and json.loads((tmp_path / "run" / SETTINGS).read_text())["state"] == "finished"


def test_lock_file_of_somebody_stays(tmp_path, whole):
    (tmp_path / LOCK).write_text("mine")
    assert_same(tiny(tmp_path), whole)
    assert (tmp_path / LOCK).read_text() == "mine"


def test_checkpoints_may_lie_on_another_disk(tmp_path, whole):
    interrupted(tmp_path / "run")
    (tmp_path / "run" / FOLDER).rename(tmp_path / "disk")
    (tmp_path / "run" / FOLDER).symlink_to(tmp_path / "disk")
    assert_same(tiny(tmp_path / "run"), whole)
    assert not list((tmp_path / "disk").iterdir())


def test_run_that_is_saved_while_it_is_read_is_read_again(tmp_path, whole, monkeypatch):
    tiny(tmp_path, epochs=1)
    before = _run._read_history

    def saved_meanwhile(path):
        monkeypatch.setattr(_run, "_read_history", before)
        for name in FILES:
            (tmp_path / name).write_bytes((whole.folder / name).read_bytes())
        return before(path)

    monkeypatch.setattr(_run, "_read_history", saved_meanwhile)
    assert_same(Run.load(tmp_path), whole)


@pytest.mark.parametrize("widths", [(), (16,), (16, 16, 16), (5, 16)])
def test_resume_with_another_encoder_is_a_sentence(tmp_path, widths):
    def own(*widths):
        layers = [torch.nn.Linear(a, b) for a, b in itertools.pairwise((3 * 64, *widths, 16))]
        return torch.nn.Sequential(torch.nn.Flatten(), *layers)

    with pytest.raises(KeyboardInterrupt):
        train(config(**TINY), tmp_path, images(), False, encoder=own(16, 16), callbacks=[Stop(9)])
    with pytest.raises(ValueError, match=r"checkpoints does not fit the encoder: "):
        train(config(**TINY), tmp_path, images(), False, encoder=own(*widths), resume=True)
    frozen = own(16, 16)
    frozen[1].requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"does not fit the encoder: optimizer\.0\.exp_avg has the shape \(16, 192\), "
    ):
        train(config(**TINY), tmp_path, images(), False, encoder=frozen, resume=True)


def test_lost_snapshots_are_a_warning(tmp_path, whole):
    interrupted(tmp_path)
    (tmp_path / SNAPSHOTS).unlink()
    with pytest.warns(UserWarning, match=r"correlation\.safetensors until step 9 is lost: .* is missing"):
        run = tiny(tmp_path)
    assert list(run.snapshots) == [12] and run.history["loss"].tolist() == whole.history["loss"].tolist()


def test_damaged_settings_are_read_from_the_checkpoint(tmp_path, whole):
    interrupted(tmp_path)
    (tmp_path / SETTINGS).write_text((tmp_path / SETTINGS).read_text()[:-9])
    with pytest.raises(ValueError, match=r"run\.json is damaged .*resume the training"):
        Run.load(tmp_path)
    with pytest.raises(ValueError, match=r"other settings \(seed 0, not 1\), with which"):
        tiny(tmp_path, seed=1)
    with pytest.warns(
        UserWarning, match=r"run\.json is damaged .*: its settings are those of the checkpoint at step 9"
    ):
        tiny(tmp_path)
    assert_whole(tmp_path, whole)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_have_the_permissions_of_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        tiny(tmp_path / "run")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "run").iterdir()} == {0o666 & ~mask}


def test_content_is_on_the_disk_before_the_file_has_its_name(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, do=original: calls.append(name) or do(*a))
    replace_file(tmp_path / "x", lambda path: path.write_text("x"))
    assert calls == ["fsync", "replace"]


def test_errors_name_the_file_and_not_a_temporary_one(tmp_path):
    def write(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=rf"\[Errno 28\] No space left on device: '{tmp_path}/x'$"):
        replace_file(tmp_path / "x", write)
    with pytest.raises(FileNotFoundError, match=r"/absent/x'$"):
        replace_file(tmp_path / "absent" / "x", write)
    with pytest.raises(FileNotFoundError, match=r"'elsewhere'$"):
        replace_file(tmp_path / "x", lambda path: Path("elsewhere").read_text())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s["config"].update(encoder=None), "encoder must be one of"),
        (lambda s: s["config"].update(encoder=["conv"]), "encoder must be one of"),
        (lambda s: s["config"].update(colour=1), "'colour'"),
        (lambda s: s["config"].update(loss_options=None), "loss_options must be a dictionary"),
        (lambda s: s["config"].update(views=[]), "views must be one of"),
        (lambda s: s["facts"].pop("channels"), "lacks"),
        (lambda s: s["facts"].update(channels="3"), "must be whole numbers of at least 1, got .*'channels': '3'"),
        (lambda s: s["facts"].update(features=0.5), "must be whole numbers of at least 1, got .*'features': 0.5"),
        (lambda s: s["facts"].update(channels=None), "must be whole numbers"),
        (lambda s: s.update(facts=[]), "lacks"),
        (lambda s: s.update(config=None), "lacks"),
        (lambda s: s.update(state=3), "lacks"),
        (lambda s: s.update(sha256=3), "lacks"),
        (lambda s: s.pop("config"), "lacks"),
    ],
)
def test_malformed_settings_are_a_sentence(tmp_path, whole, change, words):
    settings = json.loads((whole.folder / SETTINGS).read_text())
    change(settings)
    (tmp_path / SETTINGS).write_text(json.dumps(settings))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for read in (Run.load, lambda folder: train(config(**TINY), folder, images(), False, resume=True)):
            with pytest.raises(ValueError, match=f"run.json is damaged .*{words}"):
                read(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, "\xff\xfe", "null", "[]", "NaN", '{"config": ' + "9" * 5000 + "}"]
)
def test_what_is_no_json_is_a_sentence(tmp_path, text):
    (tmp_path / SETTINGS).write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        Run.load(tmp_path)


OTHERS = {"threads": 64, "precision": "bfloat16", "device": "cuda:1", "processes": 2, "hardware": "x", "torch": "1.0"}


@pytest.mark.parametrize(("name", "other"), OTHERS.items())
def test_other_conditions_are_said_on_resume(tmp_path, name, other, recwarn):
    interrupted(tmp_path)
    settings = json.loads((tmp_path / SETTINGS).read_text())
    settings["facts"][name] = other
    del settings["sha256"]
    (tmp_path / SETTINGS).write_text(json.dumps(settings))
    tiny(tmp_path)
    (said,) = [str(warning.message) for warning in recwarn if "conditions" in str(warning.message)]
    assert name in said and str(other).split(":")[0] in said


def test_callback_cannot_change_the_history_or_the_folder(tmp_path, whole, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()

    def vandal(event):
        event.values.clear()
        os.chdir(tmp_path / "elsewhere")

    run = train(config(**TINY), "run", images(), False, callbacks=[vandal])
    assert_same(run, whole)
    assert run.folder == tmp_path / "run" and not list((tmp_path / "elsewhere").iterdir())
    assert_whole(tmp_path / "run", whole)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"config": {"epochs": 3}}, r"config must be of type TrainConfig, got dict \{'epochs': 3\}"),
        ({"config": None}, "config must be of type TrainConfig, got NoneType None"),
        ({"data": "digits"}, r"data \(from_arrays makes it\) must be of type ImageData or NoneType, got str 'digits'"),
        ({"encoder": "resnet18"}, "encoder must be of type Module or NoneType, got str 'resnet18'"),
        ({"views": "simclr"}, "views must be a function, got 'simclr'"),
        ({"callbacks": print}, "callbacks must be a list of functions, got"),
        ({"callbacks": ["tensorboard"]}, "callbacks must be a list of functions, got"),
    ],
)
def test_arguments_of_other_types_are_refused(tmp_path, arguments, words):
    usual = {"config": config(**TINY), "folder": tmp_path / "run", "data": images(), "progress": False}
    with pytest.raises(TypeError, match=words):
        train(**usual | arguments)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seed": None}, "seed must be a whole number in .*, got None"),
        ({"seed": 2**64}, "seed must be a whole number in .*, got 18446744073709551616"),
        ({"seed": True}, "seed must be a whole number in .*, got True"),
        ({"dataset": ""}, "dataset must be a string, got ''"),
        ({"loss_options": {"temperature": float("nan")}}, "loss_options must be a dictionary that JSON can hold"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        TrainConfig(**settings)


def test_default_type_of_torch_changes_nothing(tmp_path, whole):
    torch.set_default_dtype(torch.float64)
    try:
        run = tiny(tmp_path / "run")
        assert torch.get_default_dtype() == torch.float64
        assert_whole(tmp_path / "run", whole)
        own = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 16))
        other = train(config(**TINY), tmp_path / "own", images(), False, encoder=own)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same(run, whole)
    assert {p.dtype for p in other.encoder.parameters()} == {torch.float32} and other.encoder is own


def test_lazy_layers_are_initialized_by_the_seed(tmp_path):
    state, weights = torch.get_rng_state(), []
    for number in range(2):
        torch.rand(number)
        encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(16), torch.nn.LazyBatchNorm1d())
        before = torch.get_rng_state()
        weights.append(
            train(config(**TINY), tmp_path / str(number), images(), False, encoder=encoder).encoder[1].weight
        )
        assert torch.equal(torch.get_rng_state(), before)
    torch.set_rng_state(state)
    assert torch.equal(*weights)


def test_run_is_shown_in_one_line(whole):
    assert repr(whole) == f"Run({str(whole.folder)!r}, barlow_twins, finished, 12 rows of history, 3 snapshots)"


def command(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["hsic-lab", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(28, "No space left on device", "x"), 2, "hsic-lab: [Errno 28] No space left on device: 'x'\n"),
        (MemoryError(), 2, "hsic-lab: not enough memory\n"),
        (ValueError("two\n  lines"), 2, "hsic-lab: two lines\n"),
        (EOFError(), 2, "hsic-lab: EOFError\n"),
        (KeyError("x"), 1, "hsic-lab: this is a bug in hsic_lab: please report it with the lines above\n"),
        (AttributeError("x"), 1, "hsic-lab: this is a bug in hsic_lab: please report it with the lines above\n"),
    ],
)
def test_command_ends_in_a_sentence(monkeypatch, capsys, error, code, words):
    def fails():
        raise error

    monkeypatch.setattr("hsic_lab.cli.app", fails)
    assert command(monkeypatch) == code
    said = capsys.readouterr().err
    assert said.endswith(words) and ("Traceback" in said) == (code == 1) and (code == 1 or said == words)


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 200 kB."""
    (tmp_path / "disk").mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", tmp_path / "disk"], capture_output=True
    ).returncode:
        pytest.skip("mounting a small disk is not allowed here")
    yield tmp_path / "disk"
    subprocess.run(["umount", tmp_path / "disk"], check=True)


def test_full_and_read_only_disks_end_in_a_sentence(small_disk, monkeypatch, capsys):
    arguments = ["train", small_disk / "run", "--resume", "--dataset", "digits", "--epochs", 2, "--width", 1]
    arguments += ["--projector", "8-4", "--device", "cpu", "--precision", "float32"]
    (small_disk / "other").write_bytes(b"0" * 150_000)
    assert command(monkeypatch, *arguments) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("hsic-lab: ") and "space" in said and str(small_disk / "run") in said
    (small_disk / "other").unlink()
    for _ in range(2):  # one command line for the first start and for every other
        monkeypatch.setattr(sys, "argv", ["hsic-lab", *map(str, arguments)])
        with contextlib.suppress(SystemExit):
            main()
    assert Run.load(small_disk / "run").status == "finished"
    assert command(monkeypatch, *arguments, "--seed", 3) == 2
    assert "takes its settings from" in capsys.readouterr().err
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert command(monkeypatch, *arguments) == 0, "a finished run needs no writing"
    assert command(monkeypatch, "train", small_disk / "new", "--dataset", "digits", "--width", 1) == 2
    assert "Read-only file system" in capsys.readouterr().err.splitlines()[-1]


def soak(seconds: float) -> None:
    torch.set_num_threads(1)
    pairs.SNAPSHOT_PAIRS = 16
    seed, deadline, tried, survived = time.time_ns() % 10**6, time.monotonic() + seconds, Counter(), Counter()
    with tempfile.TemporaryDirectory() as folder:
        whole = tiny(Path(folder) / "whole")
        while time.monotonic() < deadline:
            for name, attack in ATTACKS.items():
                tried[name] += 1
                try:
                    with contextlib.redirect_stdout(None):
                        attack(Path(folder) / f"{name}_{tried[name]}", random.Random(f"{seed} {tried[name]}"), whole)
                    survived[name] += 1
                except Exception as error:
                    print(f"{name}, seed {seed} {tried[name]}: {type(error).__name__}: {error}", flush=True)
    print(*(f"{name}: {n} tried, {survived[name]} survived" for name, n in tried.items()), sep="\n")
    sys.exit(survived != tried)


if __name__ == "__main__":
    soak(float(sys.argv[1]))
