"""The commands: every one a call into the library, every error one sentence."""

import os
import shlex
import sys
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Barlow Twins and HSIC: train, probe and look.",
)
Folder = Annotated[Path, typer.Argument(help="A run's folder, as `hsic-lab train` leaves it.")]


def main() -> None:
    """Entry point: what a user can put right ends in one sentence and exit code 2, not in a traceback."""
    try:
        app()
    except SystemExit as end:
        if end.code == 130:  # typer's own way to end after Ctrl-C
            print("hsic-lab: interrupted; what was done so far is kept", file=sys.stderr)
        raise
    except (ValueError, TypeError, OSError, RuntimeError, FloatingPointError, ModuleNotFoundError) as error:
        print(f"hsic-lab: {error}", file=sys.stderr)
        sys.exit(2)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where everything is left.")] = Path("runs/demo"),
    epochs: Annotated[int | None, typer.Option(help="Training length; the README's numbers use the default.")] = None,
) -> None:
    """Train both losses on digit scenes, probe them, draw C before and after, execute the quickstart notebook."""
    from hsic_lab import demo as work

    written = work.run_demo(folder, epochs=work.EPOCHS if epochs is None else epochs)
    print("\nWritten:")
    for path in written:
        print(f"  {path}")
    print(f"\nOpen it:\n  {Path(sys.executable).parent / 'jupyter'} lab {folder / work.NOTEBOOK.name}")


@app.command()
def train(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="A new folder for the run, or with --resume an unfinished one.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the folder's run; if none, start it.")] = False,
    recipe: Annotated[str | None, typer.Option(help="tsai2021, official or solo; options given beside it win.")] = None,
    dataset: Annotated[str, typer.Option(help="A set's name, or a folder of images.")] = "default",
    loss: Annotated[str, typer.Option(help="barlow_twins, hsic_ssl, vicreg, nt_xent, spectral, ...")] = "barlow_twins",
    lambda_param: Annotated[float | None, typer.Option("--lambda", help="Redundancy weight; left out: 1/d.")] = None,
    views: Annotated[str, typer.Option(help="default, tsai2021, barlow_twins, solo or simclr.")] = "default",
    encoder: Annotated[str, typer.Option(help="conv, resnet18, resnet34 or resnet50.")] = "conv",
    stem: Annotated[str, typer.Option(help="Of a ResNet: cifar or imagenet.")] = "cifar",
    width: Annotated[int, typer.Option(help="Channels of the first convolution (conv).")] = 16,
    projector: Annotated[str, typer.Option(help="Widths after the encoder, the last is d.")] = "512-128",
    batch_size: int = 256,
    micro_batch: Annotated[int | None, typer.Option(help="Pairs in memory at once; left out: the batch.")] = None,
    epochs: int = 22,
    optimizer: Annotated[str, typer.Option(help="adamw, adam, sgd or lars.")] = "adamw",
    learning_rate: float = 2e-3,
    weight_decay: float = 1e-4,
    warmup_epochs: Annotated[float | None, typer.Option(help="Left out: 1.5, of short runs half.")] = None,
    monitor: Annotated[str, typer.Option(help="none, knn or linear, on training labels.")] = "none",
    seed: int = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, bfloat16 or float32.")] = "auto",
    compile: Annotated[bool, typer.Option("--compile", help="Run the networks through torch.compile.")] = False,
    tensorboard: Annotated[Path | None, typer.Option(help="A folder for TensorBoard's logs.")] = None,
) -> None:
    """Train an encoder and keep the run; in K processes: torchrun --nproc-per-node K --no-python hsic-lab train ..."""
    from hsic_lab.training import TensorBoardLogger, TrainConfig
    from hsic_lab.training import recipe as make_recipe
    from hsic_lab.training import train as work
    from hsic_lab.training._run import SETTINGS, read_settings

    try:
        widths = tuple(int(part) for part in projector.split("-"))
    except ValueError:
        raise ValueError(f"--projector must be widths joined by '-', such as 512-128, got {projector!r}") from None
    values = context.params | {"projector": widths}
    names = {field.name for field in fields(TrainConfig)} & values.keys()
    given = {name: values[name] for name in names if context.get_parameter_source(name).name == "COMMANDLINE"}
    if resume and (folder / SETTINGS).exists():
        if given or recipe:
            beside = ", ".join(sorted(given)) or "recipe"
            raise ValueError(f"--resume takes its settings from {folder}, got {beside} too")
        config = read_settings(folder)[0]
    else:
        if resume:
            print(f"No run in {folder} yet: starting one")
        config = make_recipe(recipe, **given) if recipe else TrainConfig(**given)
    run = work(config, folder, resume=resume, callbacks=[TensorBoardLogger(tensorboard)] if tensorboard else [])
    if os.environ.get("RANK", "0") == "0":
        print(run.history.tail(1).to_string(index=False))
        print(f"Left in {run.folder}; next: hsic-lab probe {run.folder}, hsic-lab plot {run.folder}")


@app.command()
def probe(folder: Folder, splits: Annotated[int, typer.Option(help="Random training subsets.")] = 3) -> None:
    """Judge a run's frozen features: linear probe and weighted nearest neighbors on its data set's test split."""
    from hsic_lab.datasets import load
    from hsic_lab.evaluation import extract_features, knn_accuracy, probe_summary, probe_table
    from hsic_lab.evaluation._features import knn_protocol
    from hsic_lab.training import Run

    run = Run.load(folder)
    data = load(run.config.dataset)
    features = tuple(extract_features(run.encoder, split.images) for split in (data.train, data.test))
    table = probe_table({run.config.loss: features}, data.train.labels, data.test.labels, splits)
    print(probe_summary(table).to_string())
    accuracy = knn_accuracy(features[0], data.train.labels, features[1], data.test.labels)
    print(f"{knn_protocol(len(data.train))}: {accuracy:.4f} on {len(data.test)} test images")


@app.command()
def plot(
    folder: Folder, output: Annotated[Path | None, typer.Option(help="Where to; left out: the run's folder.")] = None
) -> None:
    """Draw a run: C before and after training, and the training curves."""
    from hsic_lab._io import replace_file
    from hsic_lab.plots import compare_cross_correlations, history_figure, set_theme
    from hsic_lab.training import Run

    run = Run.load(folder)
    output = output or folder
    output.mkdir(parents=True, exist_ok=True)
    set_theme()
    if not run.snapshots:
        raise ValueError(f"{folder} holds no snapshot of C: its training stopped before the first step")
    panels = {"before training": run.snapshots[0], f"step {max(run.snapshots)}": run.snapshots[max(run.snapshots)]}
    figures = {"correlation.png": compare_cross_correlations(panels)}
    if len(run.history):
        figures["training.png"] = history_figure({run.config.loss: run.history}, run.config.projector[-1])
    for name, figure in figures.items():
        replace_file(output / name, lambda path, figure=figure: figure.savefig(path, dpi=150, format="png"))
        print(output / name)


@app.command()
def ablate(
    grid: Annotated[Path, typer.Argument(help="A TOML file that says what varies; examples are in data/grids.")],
    output: Annotated[Path | None, typer.Option(help="A CSV file; left out: FOLDER/NAME.csv.")] = None,
    folder: Annotated[Path, typer.Option(help="Where runs are kept, and found again.")] = Path("runs/ablations"),
    jobs: Annotated[int, typer.Option(help="Processes; -1 is one a core.")] = 1,
    seeds: Annotated[int | None, typer.Option(help="How many, in place of the grid's own.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try runs again that failed before.")] = False,
) -> None:
    """Train and evaluate every run of a grid; called again, do what is missing.

    The grid's keys: question, seeds (how many, or which), evaluate (of linear, knn); tables base (settings of all
    runs), cross (setting = list of values), data (n_train, n_test); include (an array of tables of settings). Settings
    are the fields of TrainConfig, and the shorthands learning_rate_rule, lambda_times_d, kernel, off_diagonal_target,
    unit_rows and bessel. Ends with code 1 if a run failed.
    """
    from hsic_lab.ablation import read_grid, run_ablation, write_table

    settings = read_grid(grid)
    frame = run_ablation(settings, folder, seeds=seeds, n_jobs=jobs, retry_failed=retry_failed)
    output = output or folder / f"{settings.name}.csv"
    write_table(frame, settings, output, shlex.join(["hsic-lab", *sys.argv[1:]]))
    factors = [name for name in settings.factors if name in frame]
    groups = frame.groupby([*factors, "evaluation"], sort=False, dropna=False)["accuracy"]
    print(groups.agg(["mean", "std", "count"]).to_string())
    print(f"Left in {output}")
    runs = frame.drop_duplicates("run")
    if len(failed := runs[runs["state"] != "finished"]):
        reasons = "\n".join(f"  {state} ({count} of them)" for state, count in failed["state"].value_counts().items())
        print(f"{len(failed)} of {len(runs)} runs failed:\n{reasons}", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A run, or .npy, .npz, .csv, .parquet or .safetensors with embeddings.")],
    second: Annotated[Path | None, typer.Argument(help="A file with the second view of the same rows.")] = None,
    labels: Annotated[Path | None, typer.Option(help="A file of labels, one a row: .npy, .csv or .parquet.")] = None,
    reference: Annotated[Path | None, typer.Option(help="A file with other features of the rows, for CKA.")] = None,
    output: Annotated[Path | None, typer.Option(help="Where to; left out: beside the file, as .html.")] = None,
) -> None:
    """Judge anybody's embeddings: one page with heatmap, spectrum, diagnostics, probe, CKA and independence tests.

    Arrays of an .npz or .safetensors file: z_a and z_b, or a and b, or one or two matrices of any names. Columns of
    a .csv or .parquet file: all are features, or a_... and b_... are two views. Labels are called labels, label, y,
    targets or target.
    """
    from hsic_lab.report import read_embeddings, write_report

    found = read_embeddings(file, second, labels)
    other = None if reference is None else read_embeddings(reference).z_a
    page = write_report(found, output or file.resolve().with_name(f"{file.resolve().name}.html"), reference=other)
    print(page)


class _SetNames(TyperGroup):
    """`data NAME` is `data show NAME`."""

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> tuple:
        return super().resolve_command(ctx, args if args[0] in self.commands else ["show", *args])


data = typer.Typer(cls=_SetNames, help="List, describe and download data sets.")
app.add_typer(data, name="data")


@data.callback(invoke_without_command=True)
def data_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        data_list()


@data.command("list")
def data_list() -> None:
    """List the data sets, where they are looked for and which are there."""
    from hsic_lab import datasets

    print(f"data folder: {datasets.data_folder().absolute()} (HSIC_LAB_DATA changes it)")
    for known in datasets.LOADERS:
        print(f"  {known}: {datasets.status(known)}")


@data.command("show")
def data_show(
    name: Annotated[str, typer.Argument(help="A set's name, or a folder of images, one folder a class.")],
    size: Annotated[int | None, typer.Option(help="Of a folder: resize and crop all images to this square.")] = None,
) -> None:
    """Load a set and describe it."""
    from hsic_lab import datasets

    loaded = datasets.load(name) if size is None else datasets.load(name, size=size)
    more = f", {len(loaded.unlabelled)} unlabelled" if loaded.unlabelled else ""
    print(f"{loaded.name}: {len(loaded.train)} training, {len(loaded.test)} test images{more}")
    print(f"shape (c, h, w): {tuple(loaded.train.images.shape[1:])}; classes: {', '.join(loaded.class_names)}")


@data.command("get")
def data_get(
    name: Annotated[str, typer.Argument(help="A published set's name.")],
    folder: Annotated[Path | None, typer.Option(help="Where to; left out: the data folder.")] = None,
) -> None:
    """Download a published set, check its sum, unpack it. Run it again to continue after an interruption."""
    from hsic_lab import datasets

    print(f"{name} is in {datasets.download(name, folder)}")
