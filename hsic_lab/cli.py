"""The command line. Every command calls the library; every error is one sentence with exit code 2."""

import inspect
import itertools
import json
import logging
import os
import re
import shlex
import sys
import tomllib
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, replace
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
# Options of `train` for arguments of `from_folder`.
_LOADING = {"size": "size", "test_fraction": "test_fraction", "split_seed": "seed", "train_folder": "train_folder"}


class _SetNames(TyperGroup):  # `data NAME` is `data show NAME`
    def resolve_command(self, ctx: Any, args: list[str]) -> tuple:
        return super().resolve_command(ctx, args if args[0] in self.commands else ["show", *args])


HELP: dict[str, Any] = {"rich_markup_mode": None, "context_settings": {"help_option_names": ["-h", "--help"]}}
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, **HELP)
data = typer.Typer(cls=_SetNames, rich_markup_mode=None)
app.add_typer(data, name="data")


def _existing(path: Path | None) -> Path | None:
    """Return the path, checked before torch is loaded, which takes seconds."""
    if path is not None and not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    return path


def _a_run(path: Path) -> Path:
    """Return the path of a run or of a table."""
    if not (path / "run.json").is_file() and not path.is_file():
        raise FileNotFoundError(f"{path} is not a run: it has no run.json. `hsic-lab train` makes one.")
    return path


RunFolder = Annotated[Path, typer.Argument(help="The folder of a run, as `hsic-lab train` writes it.", callback=_a_run)]
Folder = Annotated[Path, typer.Option(help="Folder of the runs. Finished runs are reused.")]
Epochs = Annotated[int | None, typer.Option(help="Default: 14.")]
RECIPES = """Settings of a publication: tsai2021 (Tsai et al. 2021, CIFAR-10), official (Zbontar et al. 2021, ImageNet)
or solo (solo-learn, CIFAR); or cpu_speedrun (CIFAR-10 in minutes on a CPU). Options replace some of them."""
FILE = "A run, or .npy, .npz, .csv, .tsv, .parquet, .safetensors or .pt with embeddings."
LABEL_FILE = "File with a label for each row: .npy, .csv, .tsv or .parquet."
AGAINST = "File or run with other features of the rows, of any width: compare both on the page."
ATLAS = "Write the rows with two principal axes and labels to this .parquet file, for Embedding Atlas."
GRID = "A TOML file that says what varies. Examples are in data/grids."
SET = typer.Option("--set", metavar="NAME=VALUE", help="Any field of TrainConfig, as TOML or JSON. Repeatable.")
Output = Annotated[Path | None, typer.Option(help="Folder of figures, file of a table or page. Default: near the run.")]


def main() -> None:
    """Run the command. An error that the user can correct is one sentence and exit code 2, without a traceback."""
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
    sys.stdout, sys.stderr = (x or open(os.devnull, "w") for x in (sys.stdout, sys.stderr))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):  # names of files may not be UTF-8
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    if version:
        print(f"hsic-lab {lab.__version__}")
        raise typer.Exit


@app.command(epilog="Example: hsic-lab demo --folder runs/demo")
def demo(folder: Folder = Path("runs/demo"), epochs: Epochs = None) -> None:
    """Train Barlow Twins and HSIC_SSL on digit scenes, evaluate both, and draw C before and after training."""
    written = lab.demo.run_demo(folder, lab.demo.EPOCHS if epochs is None else epochs)
    print("\nWritten:", *(f"  {path}" for path in written), sep="\n")
    print(f"\nOpen {written[0]} in a browser: C at every kept step. Next: hsic-lab inspect {written[-1]}")


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
    SimSiam is --loss negative_cosine --set target=stop_gradient --set predictor=[64]. Where a text says None, leave the
    option out. Several processes: torchrun --nproc-per-node 4 --no-python hsic-lab train FOLDER.
    """


def _train(
    folder: Annotated[Path, typer.Argument(help="A new folder for the run, or with --resume an unfinished one.")],
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in FOLDER, or start it.")] = False,
    recipe: Annotated[str | None, typer.Option(help=RECIPES)] = None,
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
        if (name := name.strip()) in given:
            raise ValueError(f"{name} is given twice: {given[name]!r} and --set {setting}")
        given[name] = _parse(name, text)
    loading = {option: given.pop(option) for option in _LOADING if option in given}
    if resume and (folder / SETTINGS).exists():
        config, _, metadata, *_ = settings_to_resume(folder.absolute())
        if "dataset" in given:
            given["dataset"] = full_name(given["dataset"])
        asked = lab.training.recipe(recipe, **given) if recipe else replace(config, **given)
        pairs = {field.name: (getattr(config, field.name), getattr(asked, field.name)) for field in fields(config)}
        pairs |= {name: ((metadata.get("source") or {}).get(_LOADING[name]), loading[name]) for name in loading}
        if changed := [f"{name} {old!r}, not {new!r}" for name, (old, new) in pairs.items() if old != new]:
            raise ValueError(f"--resume takes its settings from {folder}, which has {'; '.join(changed)}")
        data = None
    else:
        if resume and first:
            print(f"No run in {folder} yet: starting one")
        config = lab.training.recipe(recipe, **given) if recipe else lab.training.TrainConfig(**given)
        if first and recipe is None and "dataset" not in given:
            others = [n for n in lab.datasets.LOADERS if n != config.dataset and lab.datasets.status(n) == "ready"]
            print(f"Data set: {config.dataset}. Others found, for --dataset: {', '.join(others)}")
        data = lab.datasets.load(config.dataset, **{_LOADING[n]: loading[n] for n in loading}) if loading else None
    loggers = [lab.training.TensorBoardLogger(tensorboard)] if tensorboard else []
    run = lab.training.train(config, folder, data, resume=resume, callbacks=loggers)
    if first:
        print(run.history.tail(1).to_string(index=False))
        following = ", ".join(f"hsic-lab {command} {run.folder}" for command in ("plot", "inspect", "probe"))
        print(f"Left in {run.folder}; next: {following} (the last needs labels)")


def _with_settings(function: Callable[..., None]) -> Callable[..., None]:
    """Return the function with an option for each setting in `COMMON`; help and defaults are those of TrainConfig."""
    parameters = [p for p in inspect.signature(function).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]

    def add(name: str, kind: Any, words: str, default: Any) -> None:
        option = f"--{name.removesuffix('_param').replace('_', '-')}"
        shown = "" if default is None or default is False else f" Default: {default}."
        annotation = Annotated[kind | None, typer.Option(option, help=words + shown, show_default=False)]
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))

    documented = lab.datasets.from_folder
    loading, meaning = inspect.signature(documented, eval_str=True).parameters, _meanings(documented)
    for option, name in _LOADING.items():
        add(option, loading[name].annotation, f"For a folder of images: {meaning[name]}", loading[name].default)
    meaning = _meanings(lab.training.TrainConfig)
    for field in (field for field in fields(lab.training.TrainConfig) if field.name in COMMON):
        default, accepted = field.default, field.metadata["rule"][0].replace("'", "")
        kind = str if isinstance(default, tuple) else field.type
        default = "-".join(map(str, default)) if isinstance(default, tuple) else default
        choices = f" {accepted.capitalize()}." if accepted.startswith("one of") else ""
        add(field.name, kind, meaning.get(field.name, "") + choices, default)
    vars(function)["__signature__"] = inspect.Signature(parameters)
    return function


def _meanings(documented: Any) -> dict[str, str]:
    """Return the text about each parameter in the docstring."""
    entries = re.findall(r"^([\w, ]+) : .*\n((?:    .*\n?)+)", inspect.getdoc(documented) or "", re.MULTILINE)
    return {name: " ".join(text.split()).replace("`", "") for names, text in entries for name in names.split(", ")}


def _parse(name: str, text: str) -> Any:
    """Return the value of a setting: widths joined by '-' or ',', TOML, JSON, or the text itself."""
    from hsic_lab._checks import check_choice

    kinds = {field.name: field.type for field in fields(lab.training.TrainConfig)}
    kind, value = kinds[check_choice(name, tuple(kinds), "the name in --set")], text
    if kind == tuple[int, ...] and re.fullmatch(r"\d+([-,] *\d+)*", text):
        return tuple(map(int, re.split("[-,]", text)))
    for parse in (json.loads, lambda text: tomllib.loads(f"value = {text}")["value"]):
        with suppress(ValueError):
            value = parse(text)
    return text if kind is str and not isinstance(value, str) else value


@app.command(epilog="Example: hsic-lab probe runs/first")
def probe(folder: RunFolder, splits: Annotated[int, typer.Option(help="Number of random training sets.")] = 3) -> None:
    """Evaluate the frozen features of a run on the test split: linear probe and weighted nearest neighbors."""
    from hsic_lab.evaluation import default_neighbors, knn_protocol
    from hsic_lab.training._setup import data_of

    run = lab.training.Run.load(folder)
    data = data_of(run.config.dataset, run.metadata)
    if not data.class_names:
        raise ValueError(f"{data.name} has no labels to predict: `hsic-lab inspect {folder}` needs none")
    train, test = (lab.evaluation.extract_features(run.encoder, part.images) for part in (data.train, data.test))
    table = lab.evaluation.probe_table({run.config.loss: (train, test)}, data.train.labels, data.test.labels, splits)
    print(f"Linear probe, accuracy on {len(data.test)} test images, trained on 80 % of the {len(data.train)} others:")
    print(lab.evaluation.probe_summary(table).to_string())
    accuracy = lab.evaluation.knn_accuracy(train, data.train.labels, test, data.test.labels)
    print(f"{knn_protocol(default_neighbors(len(train)))}: {accuracy:.4f} on {len(data.test)} test images")


@app.command(epilog="Examples: hsic-lab plot runs/first --output figures; hsic-lab plot lambda.csv")
def plot(
    folder: Annotated[Path, typer.Argument(help="The folder of a run, or a table of an ablation.", callback=_a_run)],
    output: Output = None,
    html: Annotated[bool, typer.Option("--html", help="Write explorer.html, in which C can be explored.")] = False,
) -> None:
    """Draw C before and after the training of a run, and its training curves.

    In place of a run, FOLDER can be a table of `hsic-lab ablate`: its accuracies and tuning curves are drawn.
    """
    if folder.is_file():
        if html:
            raise ValueError(f"--html shows C of a run, {folder} is a table")
        print(*lab.demo.save_figures(_table_figures(folder), output or folder.parent), sep="\n")
        return
    run = lab.training.Run.load(folder)
    if not run.snapshots:
        raise ValueError(f"{folder} holds no snapshot of C: its training stopped before the first step")
    if html:
        page = output if output and output.suffix.lower() in (".html", ".htm") else (output or folder) / "explorer.html"
        print(lab.CorrelationExplorer(run).save_html(page))
        return
    lab.plots.set_theme()
    ends = min(run.snapshots), max(run.snapshots)  # a resumed run may have lost the first ones
    panels = {f"step {step}" if step else "before training": run.snapshots[step] for step in ends}
    figures = {"correlation.png": lab.plots.compare_cross_correlations(panels)}
    if len(run.history):
        figures["training.png"] = lab.plots.history_figure({run.config.loss: run.history}, run.config.projector[-1])
    print(*lab.demo.save_figures(figures, output or folder), sep="\n")


def _table_figures(path: Path) -> dict[str, Any]:
    """Return a figure for each evaluation in a table of an ablation, and the curve of each setting that was tuned."""
    frame = lab.ablation.read_table(path)
    settings = [json.loads(frame.attrs["cross"]), *json.loads(frame.attrs["include"])]
    factors = _factors(frame, [name for name in dict.fromkeys(n for names in settings for n in names) if name in frame])
    if not factors:
        raise ValueError(f"{path} has no factor: its grid varies nothing")
    lab.plots.set_theme()
    for names in (factors, factors[1:]):
        if len(names) > 1:  # they share the color of a line
            frame[", ".join(names)] = frame[names].astype(str).agg(", ".join, axis=1)
    figures = {}
    for evaluation, part in frame[~frame["evaluation"].str.contains(" of ")].groupby("evaluation", sort=False):
        validation = evaluation.endswith(" on validation")
        for x in part["tuned"].unique() if validation else factors[:1]:
            hue = ", ".join(factors if validation else factors[1:])
            name = f"{path.stem}_tuning_{x}.png" if validation else f"{path.stem}_{evaluation}.png"
            figures[name] = lab.plots.plot_ablation(part, x, hue or None, evaluation=evaluation).figure
    if "layer" in frame:
        figures[f"{path.stem}_layers.png"] = lab.plots.plot_ablation(frame, "layer", ", ".join(factors)).figure
    return figures


def _factors(frame: Any, factors: list[str]) -> list[str]:
    """Return the factors of a table; if a row lacks one, or they are not crossed, they are joined in "settings"."""
    places = {name: (frame[name].nunique(dropna=False), -place) for place, name in enumerate(factors)}

    def follows(name: str, other: str) -> bool:  # one level of `name` for each level of `other`
        levels = frame.groupby(other, dropna=False)[name].nunique(dropna=False)
        whole = places[name][0] == 1 or not frame[other].isna().any()  # rows without `other` need `name`
        return places[name] < places[other] and levels.max() == 1 and whole

    factors = [name for name in factors if not any(follows(name, other) for other in factors)]
    crossed = not factors or len(frame[factors].drop_duplicates()) == frame[factors].nunique(dropna=False).prod()
    if crossed and not frame[factors].isna().any(axis=None):
        return factors
    levels = frame[factors].convert_dtypes().astype(object)  # whole numbers beside missing values are no decimals
    frame["settings"] = [", ".join(f"{k}={v}" for k, v in row.dropna().items()) for _, row in levels.iterrows()]
    return ["settings"]


def _differences(frame: Any, factor: str, others: list[str], evaluation: str) -> str:
    """Return the differences between the first level of a factor and the others, as text."""
    points = ["mean", "low", "high"]
    table = lab.ablation.paired_differences(frame, factor, frame[factor].iloc[0], by=others, evaluation=evaluation)
    table[points] *= 100
    table = table[[*others, "second", "first", *points, "seeds", "p_holm", "verdict"]]
    forms = dict.fromkeys(points, "{:+.1f}".format) | {"p_holm": "{:.2g}".format}
    return table.rename(columns={"second": factor, "first": "minus"}).to_string(index=False, formatters=forms)


@app.command(epilog="Example: hsic-lab ablate lambda.toml --jobs 2")
def ablate(
    grid: Annotated[Path, typer.Argument(help=GRID, callback=_existing)],
    output: Output = None,
    folder: Folder = Path("runs/ablations"),
    jobs: Annotated[int, typer.Option(help="Number of processes, -1 for one on each core.")] = 1,
    seeds: Annotated[int | None, typer.Option(help="Number of seeds, in place of those of the grid.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run again what failed before.")] = False,
) -> None:
    """Train and evaluate every run of a grid. Called again, it does what is missing.

    The keys of a grid are those of hsic_lab.ablation.Grid, its settings are the fields of TrainConfig. For four runs a
    seed: cross = { batch_size = [128, 256], loss = ["barlow_twins", "hsic_ssl"] }. A table [tune] names settings that
    are chosen on validation images first, as in data/grids/tuned_batch_size.toml. The exit code is 1 if a run failed.
    """
    plan = lab.ablation.read_grid(grid)
    output = output or folder / f"{plan.name}.csv"
    if output.exists():
        lab.ablation.read_table(output)  # nothing but an older table is replaced
    frame = lab.ablation.run_ablation(plan, folder, seeds=seeds, n_jobs=jobs, retry_failed=retry_failed)
    lab.ablation.write_table(frame, plan, output, shlex.join(["hsic-lab", *sys.argv[1:]]))
    reported = (frame[frame["tuned"].isna()] if "tuned" in frame else frame).copy()
    factors = _factors(reported, [name for name in plan.factors if name in frame])
    groups = reported.groupby([*factors, "evaluation"], sort=False, dropna=False)["accuracy"]
    print(groups.agg(["mean", "std", "count"]).to_string())
    for one in frame.attrs.get("chosen", []):
        print("chosen:", ", ".join(f"{name} {value}" for name, value in one.items()))
    for evaluation, factor in itertools.product(plan.evaluate, factors):
        if reported[factor].nunique() > 1:
            print(f"Differences of {evaluation} accuracy in points, paired by seed, with 95 % intervals:")
            print(_differences(reported, factor, [name for name in factors if name != factor], evaluation))
    print(f"Left in {output}; next: hsic-lab plot {output}")
    states = frame.groupby("run", sort=False)["state"].min()  # "failed: ..." if an evaluation failed
    if len(failed := states[states != "finished"].value_counts()):
        reasons = (f"  {state} ({count} of them)" for state, count in failed.items())
        print(f"{failed.sum()} of {len(states)} runs failed:", *reasons, sep="\n", file=sys.stderr)
        raise typer.Exit(1)


@app.command("inspect", epilog="Examples: hsic-lab inspect a.csv --label-column species --drop id; ... --against b.csv")
def inspect_file(
    file: Annotated[Path, typer.Argument(help=FILE, callback=_existing)],
    second: Annotated[Path | None, typer.Argument(help="File with the second view.", callback=_existing)] = None,
    labels: Annotated[Path | None, typer.Option(help=LABEL_FILE, callback=_existing)] = None,
    label: Annotated[str | None, typer.Option("--label-column", "--label", help="Column or array of labels.")] = None,
    drop: Annotated[list[str] | None, typer.Option(help="Column or array to leave out. Repeatable.")] = None,
    view_a: Annotated[str | None, typer.Option(help="Array, or pattern of columns ('emb_*'), of a view.")] = None,
    view_b: Annotated[str | None, typer.Option(help="The same for a second view.")] = None,
    against: Annotated[Path | None, typer.Option("--against", "--reference", help=AGAINST, callback=_existing)] = None,
    atlas: Annotated[Path | None, typer.Option(help=ATLAS)] = None,
    output: Output = None,
) -> None:
    """Write a report on embeddings: heatmap, spectrum, diagnostics, probe, CKA and independence tests on one page.

    With --against the page compares two embeddings of the same rows; --drop and --label-column hold for both files,
    --labels and the views for the first.

    An .npz, .safetensors or .pt file holds the arrays z_a and z_b, or a and b, or one or two matrices of any names. The
    columns of a .csv, .tsv or .parquet file are all features, or a_... and b_... for two views; Parquet may hold
    columns of vectors. Labels are called labels, label, y, targets or target. A file that is not clear is refused.
    """
    names = ("-and-".join(p.resolve().name for p in pair if p) for pair in ((file, second), (against,)) if any(pair))
    page = output or file.resolve().with_name("-vs-".join(names) + ".html")
    if page.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"the page needs a name ending in .html, got {page}")
    if atlas is not None and atlas.resolve() in [path.resolve() for path in (file, second, labels, against) if path]:
        raise ValueError(f"--atlas needs a file of its own, {atlas} is read")
    found = lab.report.read_embeddings(file, second, labels, label=label, drop=drop or (), view_a=view_a, view_b=view_b)
    views, (n, d) = "one view" if found.z_b is None else "two views", found.z_a.shape
    # On standard output is the path of the page alone.
    print(f"{found.name}: {views} of {n} rows and {d} features. {found.note}", file=sys.stderr)
    other = None if against is None else lab.report._embeddings.read_one(against, label, drop or (), None, None, [])
    if atlas is not None:
        print("For --x projection_x --y projection_y:", lab.report.write_atlas(found, atlas), file=sys.stderr)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("hsic_lab").setLevel(logging.INFO)  # a line for each part of the page that takes time
    print(lab.report.write_report(found, page, reference=other))


@data.callback(invoke_without_command=True, epilog="Example: hsic-lab data get cifar10")
def data_command(context: typer.Context) -> None:
    """List, describe and download data sets."""
    if context.invoked_subcommand is None:
        data_list()


@data.command("list", epilog="Example: hsic-lab data list")
def data_list() -> None:
    """List the data sets, and say which are ready."""
    print(f"data folder: {lab.datasets.data_folder().absolute()} (HSIC_LAB_DATA changes it)")
    print(*(f"  {name}: {lab.datasets.status(name)}" for name in lab.datasets.LOADERS), sep="\n")


@data.command("show", epilog="Example: hsic-lab data show photos --size 64")
def data_show(
    name: Annotated[str, typer.Argument(help="Name of a set, or a folder with one folder of images for each class.")],
    size: Annotated[int | None, typer.Option(help="For a folder: resize and crop the images to this square.")] = None,
    train_folder: Annotated[str | None, typer.Option(help="For a folder: the one in it to train on, or '.'.")] = None,
) -> None:
    """Load a data set and describe it."""
    options: dict[str, Any] = {"size": size, "train_folder": train_folder}
    loaded = lab.datasets.load(name, **{key: value for key, value in options.items() if value is not None})
    more = f", {len(loaded.unlabelled)} unlabelled" if loaded.unlabelled else ""
    print(f"{loaded.name}: {len(loaded.train)} training, {len(loaded.test)} test images{more}")
    shape, classes = tuple(loaded.train.images.shape[1:]), ", ".join(loaded.class_names) or "none"
    print(f"shape (c, h, w): {shape}; classes: {classes}")


@data.command("get", epilog="Example: hsic-lab data get cifar10")
def data_get(
    name: Annotated[str, typer.Argument(help="cifar10, cifar100, fashion_mnist, stl10 or tiny_imagenet.")],
    folder: Annotated[Path | None, typer.Option(help="Where to put it. Default: the data folder.")] = None,
) -> None:
    """Download a published set, check it, and unpack it."""
    print(f"{name} is in {lab.datasets.download(name, folder)}")
