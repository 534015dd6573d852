"""The command line. Every command calls the library; every error is one sentence with exit code 2."""

import inspect
import json
import os
import re
import shlex
import sys
import tomllib
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Annotated, Any

try:
    import typer
    from typer.core import TyperCommand, TyperGroup
except ModuleNotFoundError as error:
    raise SystemExit(f"hsic-lab: {error}; the command needs the extra: pip install 'hsic-lab[lab]'") from error

import hsic_lab as lab  # loads its modules on first use: help must not wait for torch

# Settings that have an option of their own. --set reaches all.
COMMON = (
    "dataset", "loss", "lambda_param", "views", "encoder", "stem", "width", "projector", "batch_size", "micro_batch",
    "epochs", "optimizer", "learning_rate", "weight_decay", "warmup_epochs", "monitor", "seed", "device", "precision",
    "compile",
)  # fmt: skip


class _SetNames(TyperGroup):  # `data NAME` is `data show NAME`
    def resolve_command(self, ctx: Any, args: list[str]) -> tuple:
        return super().resolve_command(ctx, args if args[0] in self.commands else ["show", *args])


HELP: dict[str, Any] = {"rich_markup_mode": None, "context_settings": {"help_option_names": ["-h", "--help"]}}
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, **HELP)
data = typer.Typer(cls=_SetNames, rich_markup_mode=None)
app.add_typer(data, name="data")
RunFolder = Annotated[Path, typer.Argument(help="The folder of a run, as `hsic-lab train` writes it.")]
Folder = Annotated[Path, typer.Option(help="Folder of the runs. Finished runs are reused.")]
Epochs = Annotated[int | None, typer.Option(help="Default: 14.")]
SET = typer.Option("--set", metavar="NAME=VALUE", help="Any field of TrainConfig, as TOML or JSON. Repeatable.")
Output = Annotated[
    Path | None, typer.Option(help="Folder of figures, file of a table or report. Default: near the run.")
]


def main() -> None:
    """Entry point. An error that the user can correct is one sentence and exit code 2, without a traceback."""
    os.environ.setdefault("SCIPY_ARRAY_API", "1")  # SciPy reads it once; scikit-learn needs it for tensors on a GPU
    warnings.formatwarning = lambda message, *_, **__: f"hsic-lab: {message}\n"
    try:
        app()
    except SystemExit as end:
        if end.code == 130:  # how typer ends after Ctrl-C
            print("hsic-lab: interrupted; what was done so far is kept", file=sys.stderr)
        raise
    except (LookupError, AttributeError, NameError, AssertionError, ZeroDivisionError):
        # The library checks its input and raises none of these for it.
        traceback.print_exc()
        print("hsic-lab: this is a bug in hsic_lab: please report it with the lines above", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        print("hsic-lab:", "not enough memory" if isinstance(error, MemoryError) else said, file=sys.stderr)
        sys.exit(2)


@app.callback(invoke_without_command=True, epilog="Example: hsic-lab demo")
def hsic_lab(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    """Barlow Twins and HSIC: train encoders, evaluate their features, look at their correlations."""
    if version:
        print(f"hsic-lab {lab.__version__}")
        raise typer.Exit


@app.command(epilog="Example: hsic-lab demo --folder runs/demo")
def demo(folder: Folder = Path("runs/demo"), epochs: Epochs = None) -> None:
    """Train Barlow Twins and HSIC_SSL on digit scenes, evaluate both, and draw C before and after training."""
    written = lab.demo.run_demo(folder, lab.demo.EPOCHS if epochs is None else epochs)
    print("\nWritten:", *(f"  {path}" for path in written), sep="\n")
    print(f"\nOpen {folder / 'correlation.png'} and {folder / 'training.png'}. Next: hsic-lab inspect {written[-1]}")


class _TrainCommand(TyperCommand):
    """`train`, whose options are made from TrainConfig when they are first needed, because this loads torch."""

    def get_params(self, ctx: Any) -> list:
        if not self.params:
            single = typer.Typer(add_completion=False)
            single.command()(_with_settings(_train))
            command = typer.main.get_command(single)
            self.params, self.callback = command.params, command.callback
        return super().get_params(ctx)


@app.command(cls=_TrainCommand, epilog="Example: hsic-lab train runs/first --dataset cifar10 --loss hsic_ssl")
def train() -> None:
    """Train an encoder and keep the run in FOLDER.

    Without options it trains Barlow Twins on digit scenes. --set reaches the settings without an option of their own:
    SimSiam is --loss negative_cosine --set target=stop_gradient --set predictor=[64]. Several processes:
    torchrun --nproc-per-node 4 --no-python hsic-lab train FOLDER.
    """


def _train(
    folder: Annotated[Path, typer.Argument(help="A new folder for the run, or with --resume an unfinished one.")],
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in FOLDER, or start it.")] = False,
    recipe: Annotated[str | None, typer.Option(help="Settings of a publication: tsai2021, official or solo.")] = None,
    settings: Annotated[list[str] | None, SET] = None,
    tensorboard: Annotated[Path | None, typer.Option(help="Folder for the logs of TensorBoard.")] = None,
    **common: Any,
) -> None:
    from hsic_lab.datasets._published import full_name
    from hsic_lab.training._run import SETTINGS, settings_to_resume

    first = os.environ.get("RANK", "0") == "0"
    given = {name: value for name, value in common.items() if value is not None}
    if "projector" in given:
        given["projector"] = _parse("projector", given["projector"])
    for setting in settings or ():
        name, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set must be NAME=VALUE, got {setting!r}")
        given[name.strip()] = _parse(name.strip(), text)
    if resume and (folder / SETTINGS).exists():
        config = settings_to_resume(folder)[0]
        if "dataset" in given:
            given["dataset"] = full_name(given["dataset"])
        same = lab.training.recipe(recipe, **given) if recipe else replace(config, **given)
        if names := [name for name, value in asdict(same).items() if value != getattr(config, name)]:
            raise ValueError(f"--resume takes its settings from {folder}, got other {', '.join(names)}")
    else:
        if resume:
            print(f"No run in {folder} yet: starting one")
        config = lab.training.recipe(recipe, **given) if recipe else lab.training.TrainConfig(**given)
        if first and recipe is None and "dataset" not in given:
            others = [n for n in lab.datasets.LOADERS if n != config.dataset and lab.datasets.status(n) == "ready"]
            print(f"Data set: {config.dataset}. Others found, for --dataset: {', '.join(others)}")
    loggers = [lab.training.TensorBoardLogger(tensorboard)] if tensorboard else []
    run = lab.training.train(config, folder, resume=resume, callbacks=loggers)
    if first:
        print(run.history.tail(1).to_string(index=False))
        print(f"Left in {run.folder}; next: hsic-lab probe {run.folder}, hsic-lab plot {run.folder}")


def _with_settings(function: Callable[..., None]) -> Callable[..., None]:
    """The function with an option for each setting in `COMMON`; help and defaults are those of TrainConfig."""
    doc, keyword = inspect.getdoc(lab.training.TrainConfig) or "", inspect.Parameter.KEYWORD_ONLY
    entries = re.findall(r"^([\w, ]+) : .*\n((?:    .*\n?)+)", doc, re.MULTILINE)
    meaning = {name: " ".join(text.split()).replace("`", "") for names, text in entries for name in names.split(", ")}
    parameters = [p for name, p in inspect.signature(function).parameters.items() if name not in (*COMMON, "common")]
    for field in (field for field in fields(lab.training.TrainConfig) if field.name in COMMON):
        default, accepted = field.default, field.metadata["rule"][0].replace("'", "")
        kind: Any = str if isinstance(default, tuple) else field.type
        default = "-".join(map(str, default)) if isinstance(default, tuple) else default
        choices = f" {accepted.capitalize()}." if accepted.startswith("one of") else ""
        shown = "" if default in (None, False) else f" Default: {default}."
        option = f"--{field.name.removesuffix('_param').replace('_', '-')}"
        info = typer.Option(option, help=f"{meaning.get(field.name, '')}{choices}{shown}", show_default=False)
        parameters.append(inspect.Parameter(field.name, keyword, default=None, annotation=Annotated[kind | None, info]))
    vars(function)["__signature__"] = inspect.Signature(parameters)
    return function


def _parse(name: str, text: str) -> Any:
    """The value of a setting: widths joined by '-', TOML, JSON, or the text itself."""
    from hsic_lab._checks import check_choice

    kinds = {field.name: field.type for field in fields(lab.training.TrainConfig)}
    kind, value = kinds[check_choice(name, tuple(kinds), "the name in --set")], text
    if kind == tuple[int, ...] and re.fullmatch(r"\d+(-\d+)*", text):
        return tuple(map(int, text.split("-")))
    for parse in (json.loads, lambda text: tomllib.loads(f"value = {text}")["value"]):
        with suppress(ValueError):
            value = parse(text)
    return text if kind is str and not isinstance(value, str) else value


@app.command(epilog="Example: hsic-lab probe runs/first")
def probe(folder: RunFolder, splits: Annotated[int, typer.Option(help="Number of random subsets.")] = 3) -> None:
    """Evaluate the frozen features of a run on the test split: linear probe and weighted nearest neighbors."""
    run = lab.training.Run.load(folder)
    data = lab.datasets.load(run.config.dataset)
    train, test = (lab.evaluation.extract_features(run.encoder, part.images) for part in (data.train, data.test))
    table = lab.evaluation.probe_table({run.config.loss: (train, test)}, data.train.labels, data.test.labels, splits)
    print(lab.evaluation.probe_summary(table).to_string())
    k = min(200, len(data.train))
    accuracy = lab.evaluation.knn_accuracy(train, data.train.labels, test, data.test.labels, k=k)
    print(f"weighted kNN, k = {k}, temperature 0.5: {accuracy:.4f} on {len(data.test)} test images")


@app.command(epilog="Example: hsic-lab plot runs/first --output figures")
def plot(folder: RunFolder, output: Output = None) -> None:
    """Draw C before and after the training of a run, and its training curves."""
    run = lab.training.Run.load(folder)
    if not run.snapshots:
        raise ValueError(f"{folder} holds no snapshot of C: its training stopped before the first step")
    lab.plots.set_theme()
    last = max(run.snapshots)
    panels = {"before training": run.snapshots[0], f"step {last}": run.snapshots[last]}
    figures = {"correlation.png": lab.plots.compare_cross_correlations(panels)}
    if len(run.history):
        figures["training.png"] = lab.plots.history_figure({run.config.loss: run.history}, run.config.projector[-1])
    print(*lab.demo.save_figures(figures, output or folder), sep="\n")


@app.command(epilog="Example: hsic-lab ablate lambda.toml --jobs 2")
def ablate(
    grid: Annotated[Path, typer.Argument(help="A TOML file that says what varies. Examples are in data/grids.")],
    output: Output = None,
    folder: Folder = Path("runs/ablations"),
    jobs: Annotated[int, typer.Option(help="Number of processes, -1 for one on each core.")] = 1,
    seeds: Annotated[int | None, typer.Option(help="Number of seeds, in place of those of the grid.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run again what failed before.")] = False,
) -> None:
    """Train and evaluate every run of a grid. Called again, it does what is missing.

    The keys of a grid are those of hsic_lab.ablation.Grid, its settings are the fields of TrainConfig. For four runs a
    seed: cross = { batch_size = [128, 256], loss = ["barlow_twins", "hsic_ssl"] }. The exit code is 1 if a run failed.
    """
    plan = lab.ablation.read_grid(grid)
    frame = lab.ablation.run_ablation(plan, folder, seeds=seeds, n_jobs=jobs, retry_failed=retry_failed)
    output = output or folder / f"{plan.name}.csv"
    lab.ablation.write_table(frame, plan, output, shlex.join(["hsic-lab", *sys.argv[1:]]))
    factors = [name for name in plan.factors if name in frame]
    groups = frame.groupby([*factors, "evaluation"], sort=False, dropna=False)["accuracy"]
    print(groups.agg(["mean", "std", "count"]).to_string(), f"Left in {output}", sep="\n")
    states = frame.drop_duplicates("run")["state"]
    if len(failed := states[states != "finished"].value_counts()):
        reasons = (f"  {state} ({count} of them)" for state, count in failed.items())
        print(f"{failed.sum()} of {len(states)} runs failed:", *reasons, sep="\n", file=sys.stderr)
        raise typer.Exit(1)


@app.command("inspect", epilog="Example: hsic-lab inspect embeddings.npz --labels labels.csv")
def inspect_file(
    file: Annotated[Path, typer.Argument(help="A run, or .npy, .npz, .csv, .parquet or .safetensors with embeddings.")],
    second: Annotated[Path | None, typer.Argument(help="File with the second view of the same rows.")] = None,
    labels: Annotated[Path | None, typer.Option(help="File with a label for each row: .npy, .csv or .parquet.")] = None,
    reference: Annotated[Path | None, typer.Option(help="File with other features of the rows, for CKA.")] = None,
    output: Output = None,
) -> None:
    """Write a report on embeddings: heatmap, spectrum, diagnostics, probe, CKA and independence tests on one page.

    An .npz or .safetensors file holds the arrays z_a and z_b, or a and b, or one or two matrices of any names. The
    columns of a .csv or .parquet file are all features, or a_... and b_... for two views. Labels are called labels,
    label, y, targets or target.
    """
    found = lab.report.read_embeddings(file, second, labels)
    other = None if reference is None else lab.report.read_embeddings(reference).z_a
    page = output or file.resolve().with_name(f"{file.resolve().name}.html")
    print(lab.report.write_report(found, page, reference=other))


@data.callback(invoke_without_command=True, epilog="Example: hsic-lab data get cifar10")
def data_command(context: typer.Context) -> None:
    """List, describe and download data sets."""
    if context.invoked_subcommand is None:
        data_list()


@data.command("list")
def data_list() -> None:
    """List the data sets, and say which are ready."""
    print(f"data folder: {lab.datasets.data_folder().absolute()} (HSIC_LAB_DATA changes it)")
    print(*(f"  {name}: {lab.datasets.status(name)}" for name in lab.datasets.LOADERS), sep="\n")


@data.command("show")
def data_show(
    name: Annotated[str, typer.Argument(help="Name of a set, or a folder with one folder of images for each class.")],
    size: Annotated[int | None, typer.Option(help="For a folder: resize and crop the images to this square.")] = None,
) -> None:
    """Load a data set and describe it."""
    loaded = lab.datasets.load(name) if size is None else lab.datasets.load(name, size=size)
    more = f", {len(loaded.unlabelled)} unlabelled" if loaded.unlabelled else ""
    print(f"{loaded.name}: {len(loaded.train)} training, {len(loaded.test)} test images{more}")
    print(f"shape (c, h, w): {tuple(loaded.train.images.shape[1:])}; classes: {', '.join(loaded.class_names)}")


@data.command("get")
def data_get(
    name: Annotated[str, typer.Argument(help="Name of a published set.")],
    folder: Annotated[Path | None, typer.Option(help="Where to put it. Default: the data folder.")] = None,
) -> None:
    """Download a published set, check it, and unpack it."""
    print(f"{name} is in {lab.datasets.download(name, folder)}")
