"""Every file format gives back the arrays that were written. Files that could be misread are refused."""

import datetime
import io
import os
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors

from hsic_lab.datasets import load
from hsic_lab.diagnostics import diagnose
from hsic_lab.encoders import ConvEncoder
from hsic_lab.report import Embeddings, read_embeddings
from hsic_lab.report import _embeddings as module
from hsic_lab.report import _files as files
from hsic_lab.report._embeddings import real_floats
from hsic_lab.training import TrainConfig, train, train_or_load
from hsic_lab.views import normalize

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(2, 12, 3)).astype(np.float32)
LABELS = np.arange(12) % 3


def frame(a=A, b=None, **more):
    columns = {f"{'a_' if b is not None else 'f'}{i}": column for i, column in enumerate(a.T)}
    columns |= {} if b is None else {f"b_{i}": column for i, column in enumerate(b.T)}
    return pd.DataFrame(columns | more)


WRITE = {
    "one.npy": lambda path: np.save(path, A),
    "doubles.npy": lambda path: np.save(path, A.astype(np.float64)),
    "fortran.npy": lambda path: np.save(path, np.asfortranarray(A)),
    "one.npz": lambda path: np.savez(path, anything=A),
    "two.npz": lambda path: np.savez_compressed(path, z_b=B, z_a=A, labels=LABELS),
    "two_any.npz": lambda path: np.savez(path, first=A, second=B, y=LABELS),
    "two.safetensors": lambda path: save_file({"b": B, "a": A, "label": LABELS}, path),
    "one.safetensors": lambda path: save_file({"other": A}, path),
    "one.csv": lambda path: frame().to_csv(path, index=False),
    "labelled.csv": lambda path: frame(label=LABELS).to_csv(path, index=False),
    "two.csv": lambda path: frame(A, B, labels=LABELS).to_csv(path, index=False),
    "two.parquet": lambda path: frame(A, B, labels=LABELS).to_parquet(path, index=False),
    "words.parquet": lambda path: frame(y=LABELS).assign(y=lambda f: f["y"].map("class {}".format)).to_parquet(path),
}


@pytest.mark.parametrize("name", WRITE)
def test_formats_give_back_the_written_arrays(name, tmp_path):
    WRITE[name](tmp_path / name)
    found = read_embeddings(tmp_path / name)
    assert found.z_a.dtype == torch.float32 and found.z_a.is_contiguous() and found.name == name
    np.testing.assert_allclose(found.z_a, A, rtol=1e-6)
    assert (found.z_b is not None) == name.startswith("two")
    if found.z_b is not None:
        np.testing.assert_allclose(found.z_b, B, rtol=1e-6)
    if name.startswith("words"):
        assert found.labels.tolist() == [f"class {label}" for label in LABELS]
    elif name.startswith(("two", "labelled")):
        assert found.labels.dtype == np.int64 and found.labels.tolist() == LABELS.tolist()
    else:
        assert found.labels is None


def test_half_precision_and_integers_become_float32(tmp_path):
    save_tensors({"a": torch.from_numpy(A).bfloat16(), "b": torch.from_numpy(B).half()}, tmp_path / "x.safetensors")
    found = read_embeddings(tmp_path / "x.safetensors")
    assert torch.equal(found.z_a, torch.from_numpy(A).bfloat16().float()) and found.z_b.dtype == torch.float32
    np.save(tmp_path / "x.npy", LABELS.reshape(4, 3).astype(np.uint8))
    assert read_embeddings(tmp_path / "x.npy").z_a.tolist() == LABELS.reshape(4, 3).tolist()


def test_views_and_labels_come_from_three_files(tmp_path):
    np.save(tmp_path / "a.npy", A)
    frame(B).to_csv(tmp_path / "b.csv", index=False)
    for name, write in {
        "l.npy": lambda path: np.save(path, LABELS.astype(float)),
        "l.csv": lambda path: pd.DataFrame({"class": LABELS}).to_csv(path, index=False),
        "l.parquet": lambda path: pd.DataFrame({" label": LABELS}).to_parquet(path),
    }.items():
        write(tmp_path / name)
        found = read_embeddings(tmp_path / "a.npy", tmp_path / "b.csv", tmp_path / name)
        assert found.name == "a.npy and b.csv" and found.labels.tolist() == LABELS.tolist()
        np.testing.assert_allclose(found.z_b, B, rtol=1e-6)


def test_same_rows_of_both_views_are_sampled_from_large_files(tmp_path, monkeypatch):
    for reader in (module, files):
        monkeypatch.setattr(reader, "MAX_VALUES", 20)
    z = np.arange(300.0).reshape(100, 3)
    np.save(tmp_path / "a.npy", z)
    np.save(tmp_path / "b.npy", z + 1)
    found = read_embeddings(tmp_path / "a.npy", tmp_path / "b.npy")
    assert found.rows == 100 and len(found.z_a) == 6 and torch.equal(found.z_a + 1, found.z_b)
    assert len({row for row, *_ in found.z_a.tolist()}) == 6
    np.save(tmp_path / "longer.npy", np.concatenate([z, z]))
    with pytest.raises(ValueError, match="different numbers of rows"):
        read_embeddings(tmp_path / "a.npy", tmp_path / "longer.npy")
    for reader in (module, files):
        monkeypatch.setattr(reader, "MAX_VALUES", 2000)
    frame(np.arange(2400.0).reshape(800, 3), label=np.arange(800) // 4).to_parquet(tmp_path / "c.parquet", index=False)
    drawn = read_embeddings(tmp_path / "c.parquet")
    assert drawn.rows == 800 and len(drawn.z_a) == 666
    assert (drawn.z_a[:, 0] // 12).tolist() == drawn.labels.tolist()
    for reader in (module, files):
        monkeypatch.setattr(reader, "MAX_VALUES", 20)
    np.savez(tmp_path / "d.npz", z)
    with pytest.raises(ValueError, match=r"\(100, 3\), more than 40 values: save it as .npy"):
        read_embeddings(tmp_path / "d.npz")


def test_run_gives_its_projections_and_encoder_features(tmp_path):
    settings = TrainConfig(dataset="digits", epochs=1, width=1, projector=(6,), precision="float32")
    run = train(settings, tmp_path / "run", progress=False)
    found = read_embeddings(tmp_path / "run")
    assert found.z_a.shape == found.z_b.shape == (445, 6) and found.features.shape == (445, 16)
    c = np.corrcoef(found.z_a.T, found.z_b.T)[:6, 6:]
    np.testing.assert_allclose(c, run.snapshots[max(run.snapshots)], atol=1e-4, err_msg="of the same held-out pairs")
    assert len(found.labels) == 445 and list(found.layers) == ["encoder", "projector 1"]
    np.save(tmp_path / "labels.npy", np.arange(445) % 2)
    own = read_embeddings(tmp_path / "run", labels=tmp_path / "labels.npy")
    assert own.features is None and own.layers is None and own.table["label"].tolist() == own.labels.tolist()
    assert found.note == ""
    run.status = "interrupted"
    run.save()
    with pytest.warns(UserWarning, match=r"run is not finished \(interrupted\)"):
        assert "run is not finished (interrupted)" in read_embeddings(tmp_path / "run").note
    train(
        TrainConfig(dataset="digits", epochs=1, projector=(6,)), tmp_path / "own", None, False,
        encoder=ConvEncoder(1, 1),
    )  # fmt: skip
    with pytest.raises(ValueError, match="encoder 'custom' is a module of your own"):
        read_embeddings(tmp_path / "own")


def test_run_with_custom_views_is_refused(tmp_path):
    settings = TrainConfig(dataset="digits", epochs=1, width=1, projector=(6,))

    def views(images, generator):
        return normalize(images), normalize(images)

    train(settings, tmp_path / "run", None, False, views=views)
    with pytest.raises(ValueError, match="trained with views of your own: give the projections"):
        read_embeddings(tmp_path / "run")
    with pytest.raises(ValueError, match="holds a run with views of its own"):
        train(settings, tmp_path / "run", None, False, resume=True)
    assert train(settings, tmp_path / "run", None, False, resume=True, views=views).status == "finished"
    with pytest.raises(FileExistsError, match="holds a run with views of its own: give the same: remove it"):
        train_or_load(settings, tmp_path / "run", load("digits"), False)
    train(settings, tmp_path / "named", None, False)
    with pytest.raises(ValueError, match="holds a run without views of its own"):
        train(settings, tmp_path / "named", None, False, resume=True, views=views)


def test_columns_may_be_numbered(tmp_path):
    for start in (0, 1):
        frame(A).set_axis([str(i + start) for i in range(3)], axis=1).to_csv(tmp_path / "x.csv", index=False)
        assert torch.equal(read_embeddings(tmp_path / "x.csv").z_a, torch.from_numpy(A))
    frame(A).set_axis(["7", "2", "11"], axis=1).to_parquet(tmp_path / "x.parquet", index=False)
    assert torch.equal(read_embeddings(tmp_path / "x.parquet").z_a, torch.from_numpy(A))


def test_columns_of_two_views_are_paired_by_name(tmp_path):
    frame(A, A)[["a_0", "a_1", "a_2", "b_2", "b_0", "b_1"]].to_csv(tmp_path / "x.csv", index=False)
    found = read_embeddings(tmp_path / "x.csv")
    assert torch.equal(found.z_a, found.z_b)


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        ("no_header.csv", lambda path: pd.DataFrame(A + 0.5).to_csv(path, index=False, header=False), "first line"),
        ("whole.csv", lambda path: np.savetxt(path, np.arange(12).reshape(4, 3) + 5, fmt="%d", delimiter=","), "first"),
        ("mixed.csv", lambda path: np.savetxt(path, [[0, 0.25, 1]] * 5, fmt="%g", delimiter=","), "holds numbers"),
        ("ab.csv", lambda path: frame(A, B).rename(columns={"b_2": "b_7"}).to_csv(path, index=False), "'a_2' has none"),
        ("Label.csv", lambda path: frame(A, Label=LABELS).to_csv(path, index=False), "'Label' is no feature"),
        ("id.csv", lambda path: frame(A, id=range(12)).to_csv(path, index=False), "column 'id' looks like an index"),
        ("cut.npy", lambda path: (np.save(path, A), path.write_bytes(path.read_bytes()[:-4])), "cut.npy .*was cut off"),
        ("objects.npy", lambda path: np.save(path, np.array([{}]), allow_pickle=True), "pickled Python objects"),
    ],
)
def test_ambiguous_files_are_refused(tmp_path, name, write, words):
    write(tmp_path / name)
    with pytest.raises(ValueError, match=words):
        read_embeddings(tmp_path / name)


def test_unused_arrays_are_named(tmp_path):
    np.savez(tmp_path / "x.npz", z=A, targets=LABELS, when=LABELS)
    found = read_embeddings(tmp_path / "x.npz")
    assert found.labels.tolist() == LABELS.tolist() and "Left out: 'when'" in found.note


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"z_a": A[:3]}, r"at least 4 rows and 2 to 8192 columns, got shape \(3, 3\)"),
        ({"z_a": A[:, :1]}, r"\(12, 1\)"),
        ({"z_a": A[0]}, r"\(3,\)"),
        ({"z_a": A, "z_b": B[:9]}, r"got \(12, 3\) and \(9, 3\)"),
        ({"z_a": A, "labels": LABELS[:9]}, r"12 rows need labels of shape .*, got \(9,\)"),
        ({"z_a": A, "features": B[:9], "labels": LABELS}, "9 rows need labels of shape"),
        ({"z_a": A, "target": A[:9, 0]}, r"12 rows need values of the target of shape .*, got \(9,\)"),
    ],
)
def test_embeddings_that_do_not_match_raise(values, words):
    tensors = {
        name: value if name in ("labels", "target") else torch.from_numpy(value) for name, value in values.items()
    }
    with pytest.raises(ValueError, match=words):
        Embeddings(**tensors)


def test_different_labels_in_two_files_raise(tmp_path):
    np.savez(tmp_path / "a.npz", z=A, labels=LABELS)
    np.savez(tmp_path / "b.npz", z=B, labels=LABELS)
    assert read_embeddings(tmp_path / "a.npz", tmp_path / "b.npz").labels.tolist() == LABELS.tolist()
    np.savez(tmp_path / "b.npz", z=B, labels=LABELS.astype(str))
    assert read_embeddings(tmp_path / "a.npz", tmp_path / "b.npz").labels.tolist() == LABELS.tolist()
    np.savez(tmp_path / "b.npz", z=B[::-1], labels=LABELS[::-1])
    np.save(tmp_path / "l.npy", LABELS[::-1])
    overridden = read_embeddings(tmp_path / "a.npz", tmp_path / "b.npz", tmp_path / "l.npy")
    assert overridden.labels.tolist() == LABELS[::-1].tolist()
    with pytest.raises(ValueError, match=r"the labels in .*a\.npz and .*b\.npz differ"):
        read_embeddings(tmp_path / "a.npz", tmp_path / "b.npz")


@pytest.mark.parametrize("missing", [[], [5]])
def test_labels_of_the_second_file_are_those_of_the_rows_of_the_first(tmp_path, missing):
    first = written(frame(file=list("abcdefghijkl")), tmp_path / "a.csv")
    labels = [None if row in missing else "xyz"[row % 3] for row in range(12)]
    second = written(frame(B, label=labels).rename(columns={"f0": "g0"}), tmp_path / "b.csv")
    found = read_embeddings(first, second, drop=["file"], view_b="[fg]*")
    known = [row for row in range(12) if row not in missing]
    assert found.labels.tolist() == [labels[row] for row in known]
    features = found.z_a if found.features is None else found.features
    np.testing.assert_allclose(features, A[known], rtol=1e-6)
    assert found.columns == ["f0", "f1", "f2"] and list(found.table) == ["row", "file", "label"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint16, np.uint64, np.float16])
def test_quantized_embeddings_are_read_without_warnings(tmp_path, dtype):
    values = np.array([[0, 1], [2, 3], [127, 5], [6, -128 if dtype == np.int8 else 100]], dtype)
    np.save(tmp_path / "x.npy", values)
    assert read_embeddings(tmp_path / "x.npy").z_a.tolist() == values.tolist()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.uint16])
def test_tensors_of_rare_dtypes_are_read(tmp_path, dtype):
    save_tensors({"a": torch.arange(12.0).view(4, 3).to(dtype)}, tmp_path / "x.safetensors")
    assert read_embeddings(tmp_path / "x.safetensors").z_a.tolist() == torch.arange(12.0).view(4, 3).tolist()


def test_feature_may_be_called_class_if_there_are_labels(tmp_path):
    frame(y=LABELS).rename(columns={"f0": "class"}).to_csv(tmp_path / "x.csv", index=False)
    assert read_embeddings(tmp_path / "x.csv").z_a.shape == (12, 3)


def written(frame, path, **options):
    """Write a table in the format that the ending of the path says."""
    if path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
    else:
        frame.to_csv(path, index=False, **options)
    return path


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        (["01", "1", "2"], ["01", "1", "2"]),
        (["1", "x 1", "1.0"], ["1", "1.0", "x 1"]),
        ([" 3", " 0", " 12"], [0, 3, 12]),
        (["NA", "null", "nan"], ["NA", "nan", "null"]),
        (["True", "False", "true"], ["False", "True", "true"]),
        (["None", "N/A", "-"], ["-", "N/A", "None"]),
        (["1e3", "1000", "+1"], ["+1", "1000", "1e3"]),
        (["-0", "0", "7"], ["-0", "0", "7"]),
        (["inf", "-inf", "0"], ["-inf", "0", "inf"]),
        (["-3", "0", "12"], [-3, 0, 12]),
        (["9" * 20, "1", "2"], ["1", "2", "9" * 20]),
    ],
)
@pytest.mark.parametrize("where", ["column", "file"])
def test_labels_in_text_files_are_text(tmp_path, text, classes, where):
    lines = "\n".join(["label", *(text[i % 3] for i in range(12))]) + "\n"
    (tmp_path / "labels.csv").write_text(lines)
    table = [f"{a},{b},{line}" for (a, b, _), line in zip(A, lines.splitlines()[1:], strict=True)]
    (tmp_path / "x.csv").write_text("\n".join(["f0,f1,label", *table]) + "\n")
    np.save(tmp_path / "x.npy", A)
    files = [tmp_path / "x.csv"] if where == "column" else [tmp_path / "x.npy", None, tmp_path / "labels.csv"]
    found = read_embeddings(*files)
    assert sorted(set(found.labels.tolist())) == classes and "3 classes" in found.note and found.target is None


@pytest.mark.parametrize(("ending", "separator"), [("csv", ","), ("tsv", "\t")])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_text_is_utf8_with_the_separator_of_its_ending(tmp_path, encoding, ending, separator):
    labels = ["caf\u00e9", "stra\u00dfe, s\u00fcd", "NA"] * 4
    path = written(frame(label=labels), tmp_path / f"x.{ending}", sep=separator, encoding=encoding)
    found = read_embeddings(path)
    np.testing.assert_allclose(found.z_a, A, rtol=1e-6)
    assert found.labels.tolist() == labels


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16"])
@pytest.mark.parametrize("where", ["label", "name"])
def test_text_in_another_encoding_is_refused(tmp_path, encoding, where):
    table = frame(label=["caf\u00e9", "b", "c"] * 4) if where == "label" else frame(**{"caf\u00e9": A[:, 0]})
    path = written(table, tmp_path / "x.csv", encoding=encoding)
    with pytest.raises(ValueError, match=r"x\.csv cannot be read: its text is not UTF-8"):
        read_embeddings(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("f;g\n" + "1;2\n" * 5, "columns must be separated by ',', the first line is 'f;g'"),
        ("f;g\n" + "1,5;2,5\n" * 5, "columns must be separated by ',', the first line is 'f;g'"),
        ("f\tg\n" + "1\t2\n" * 5, r"columns must be separated by ',', the first line is 'f\\tg'"),
        ("f|g\n" + "1|2\n" * 5, r"columns must be separated by ',', the first line is 'f\|g'"),
        ("a;b,c;d\n" + "1;2,3;4\n" * 5, "'a;b' holds string, not numbers"),
        ("f,g\n" + '"1,5","2,5"\n' * 5, "'f' holds string, not numbers"),
    ],
)
def test_other_separators_and_decimal_commas_are_refused(tmp_path, text, words):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(ValueError, match=words):
        read_embeddings(tmp_path / "x.csv")


def test_second_view_of_one_file_needs_a_first(tmp_path):
    with pytest.raises(ValueError, match=r"view B, 'b_\*', is chosen: choose view A"):
        read_embeddings(written(frame(A, B), tmp_path / "x.csv"), view_b="b_*")


COUNTERS = {
    "image_id": RNG.permutation(12), "number": np.arange(12), "place": np.arange(12)[::-1] + 5,
    "key": RNG.permutation(12).astype(float), "time": np.cumsum(RNG.integers(1, 9, 12)), "Unnamed: 0": RNG.random(12),
    "idx": RNG.random(12), "row": RNG.random(12), "sample_index": RNG.random(12), "__index_level_0__": RNG.random(12),
    "imageId": RNG.random(12), "photoID": RNG.random(12), "uid": RNG.random(12), "rowid": RNG.random(12),
    "ID": np.arange(12), "": np.arange(12), "file": [f"{i}.png" for i in range(12)], "split": [True, False] * 6,
}  # fmt: skip


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@pytest.mark.parametrize("name", COUNTERS)
def test_columns_that_count_rows_are_refused_until_they_are_dropped_or_chosen(tmp_path, name, ending):
    path = written(frame(**{name: COUNTERS[name]}), tmp_path / f"x.{ending}")
    with pytest.raises(ValueError, match=r"index|not numbers|counts") as error:
        read_embeddings(path)
    assert repr(name) in str(error.value)
    for options in ({"drop": [name]}, {"view_a": "f*" if name != "file" else "f[0-9]"}):
        found = read_embeddings(path, **options)
        assert found.z_a.shape == (12, 3) and f"Left out: {name!r}" in found.note
    if name == "time":
        assert read_embeddings(path, view_a="*").z_a.shape == (12, 4)


def test_views_and_labels_may_be_chosen(tmp_path):
    both = frame(A, B).rename(columns=lambda name: name.replace("a_", "left.").replace("b_", "right."))
    path = written(both.assign(kind=LABELS, y=LABELS[::-1]), tmp_path / "x.parquet")
    found = read_embeddings(path, view_a="left.*", view_b="right.*", label="kind")
    assert torch.equal(found.z_b, torch.from_numpy(B)) and found.labels.tolist() == LABELS.tolist()
    np.savez(tmp_path / "x.npz", X_train=A, X_test=B, y_train=LABELS, y_test=LABELS[::-1])
    found = read_embeddings(tmp_path / "x.npz", view_a="X_test", label="y_test")
    assert torch.equal(found.z_a, torch.from_numpy(B)) and found.z_b is None and found.labels[0] == LABELS[-1]
    for wrong in ({"label": "kind of"}, {"drop": ["g*"]}, {"view_a": "none"}):
        with pytest.raises(ValueError, match=r"kind of|g\*|none"):
            read_embeddings(path, **wrong)
    with pytest.raises(ValueError, match="'label' and 'target' may be the labels"):
        read_embeddings(written(frame(label=LABELS, target=LABELS), tmp_path / "two.csv"))


def test_exact_name_wins_over_a_pattern(tmp_path):
    names = ["x0", "x[0]", "x1", "y[0]", "y0", "y[1]"]
    path = written(pd.DataFrame(np.column_stack([A, B]), columns=names), tmp_path / "x.csv")
    assert read_embeddings(path, drop=["x[0]", "y[0]"]).columns == ["x0", "x1", "y0", "y[1]"]
    assert read_embeddings(path, drop=["x[01]"]).columns == ["x[0]", "y[0]", "y0", "y[1]"]
    np.savez(tmp_path / "x.npz", **{"z[0]": A, "z0": B})
    assert torch.equal(read_embeddings(tmp_path / "x.npz", view_a="z[0]").z_a, torch.from_numpy(A))


def test_choices_must_be_in_one_of_the_files(tmp_path):
    first = written(frame(price=A[:, 0], kind=LABELS), tmp_path / "a.csv")
    second = written(frame(B, cost=B[:, 0]), tmp_path / "b.csv")
    labels = written(pd.DataFrame({"class": LABELS[::-1]}), tmp_path / "l.csv")
    for given in ([first, None, labels], [first, second, labels], [first, second]):
        drop = ["price", *(["co*"] if second in given else [])]
        found = read_embeddings(*given, label="kind", drop=drop)
        assert found.z_a.shape == (12, 3)
        assert found.labels.tolist() == (LABELS[::-1] if labels in given else LABELS).tolist()
        with pytest.raises(ValueError, match="no column or array is called 'prise'; there are"):
            read_embeddings(*given, label="kind", drop=[*drop, "prise"])
        with pytest.raises(ValueError, match="no column or array 'species' for the labels; there are"):
            read_embeddings(*given, label="species", drop=["kind", *drop])
    assert read_embeddings(second, first, label="kind", drop=["price", "cost"]).labels.tolist() == LABELS.tolist()
    with pytest.raises(ValueError, match="no column or array is called 'zzz'"):  # and not the shapes that follow
        read_embeddings(first, second, label="kind", drop=["zzz"])
    np.save(tmp_path / "l.npy", LABELS[::-1])
    assert read_embeddings(second, None, tmp_path / "l.npy", label="species").labels.tolist() == LABELS[::-1].tolist()


@pytest.mark.parametrize("choice", ["drop", "label", "view_a"])
def test_choices_of_another_type_are_named(tmp_path, choice):
    path = written(frame(), tmp_path / "a.csv")
    with pytest.raises(TypeError, match=f"{choice} must be .*got int 5"):
        read_embeddings(path, **{choice: 5})


def test_chosen_labels_of_the_second_file_win_over_usual_names_in_the_first(tmp_path):
    half = [*LABELS[:8], *[None] * 4]
    first = written(frame(y=pd.Series(half, dtype=object)), tmp_path / "a.csv")
    second = written(frame(B, kind=LABELS[::-1]), tmp_path / "b.csv")
    found = read_embeddings(first, second, label="kind")
    assert found.labels.tolist() == LABELS[::-1].tolist() and "Left out: 'y'" in found.note


SPLITS = [("X_train", "X_test"), ("train", "val"), ("xTrain", "xTest"), ("z", "z_validation"), ("Xtr", "Xte")]


@pytest.mark.parametrize("names", [*SPLITS, ("features_tr", "features_ts"), ("X", "X_holdout")])
def test_splits_are_no_views(tmp_path, names):
    np.savez(tmp_path / "x.npz", **dict(zip(names, (A, B), strict=True)))
    with pytest.raises(ValueError, match="look like splits, not views: choose one"):
        read_embeddings(tmp_path / "x.npz")
    files = [tmp_path / f"{name}.npy" for name in names]
    for file in files:
        np.save(file, A)
    with pytest.raises(ValueError, match="look like splits"):
        read_embeddings(*files)
    np.savez(tmp_path / "y.npz", train_left=A, train_right=B)
    assert read_embeddings(tmp_path / "y.npz").z_b is not None
    np.savez(tmp_path / "y.npz", te=A, im=B)  # of text and of images: no name of a training split beside it
    assert read_embeddings(tmp_path / "y.npz").z_b is not None


def test_columns_of_splits_are_no_features(tmp_path):
    names = [f"{split}_{i}" for split in ("train", "test") for i in range(3)]
    path = written(pd.DataFrame(np.column_stack([A, B]), columns=names), tmp_path / "x.csv")
    with pytest.raises(ValueError, match=r"look like splits, not views: choose one, --view-a 'train_\*'"):
        read_embeddings(path)
    assert read_embeddings(path, view_a="train_*").z_a.shape == A.shape
    plain = frame().rename(columns={"f0": "training_hours", "f1": "test_score"})
    assert read_embeddings(written(plain, tmp_path / "y.csv")).z_a.shape == (12, 3)


def test_sparse_tensors_are_named(tmp_path):
    torch.save({"z": torch.eye(6).to_sparse()}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"'z' is sparse, torch.sparse_coo: save its to_dense"):
        read_embeddings(tmp_path / "x.pt")


@pytest.mark.parametrize("ending", ["csv", "parquet", "npy"])
def test_a_target_that_is_not_whole_is_continuous(tmp_path, ending):
    y = RNG.normal(size=12)
    y[3] = np.nan
    if ending == "npy":
        np.save(tmp_path / "x.npy", A)
        np.save(tmp_path / "y.npy", y)
        found = read_embeddings(tmp_path / "x.npy", labels=tmp_path / "y.npy")
    else:
        found = read_embeddings(written(frame(y=y), tmp_path / f"x.{ending}"))
    np.testing.assert_allclose(found.target, y, rtol=1e-12)
    assert found.labels is None and "Continuous target" in found.note and "1 of 12 labels are missing" in found.note


@pytest.mark.parametrize("labels", [LABELS, LABELS.astype(float), LABELS.astype(str)], ids=str)
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_rows_without_labels_are_left_out_of_what_needs_labels(tmp_path, labels, ending):
    half = pd.Series(list(labels), dtype=object)
    half[::2] = None
    found = read_embeddings(written(frame().assign(y=half), tmp_path / f"x.{ending}"))
    assert found.z_a.shape == (12, 3) and torch.equal(found.features, torch.from_numpy(A[1::2]))
    assert found.labels.astype(float).tolist() == LABELS[1::2].tolist()
    assert "6 of 12 labels are missing" in found.note
    for count in (0, 3):  # no test of independence has so few rows
        few = [*half.dropna()[:count], *[None] * (12 - count)]
        with pytest.raises(ValueError, match=f"{count} of 12 rows have labels in 'y', 4 are needed"):
            read_embeddings(written(frame().assign(y=few), tmp_path / f"few.{ending}"))


@pytest.mark.parametrize("kind", ["list", "fixed"])
def test_columns_of_vectors(tmp_path, kind):
    of = pa.list_(pa.float32()) if kind == "list" else pa.list_(pa.float32(), 3)
    columns = {"text": ["words"] * 12, "a": pa.array(list(A), of), "b": pa.array(list(B), of), "label": LABELS}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet", row_group_size=5)
    found = read_embeddings(tmp_path / "x.parquet")
    assert torch.equal(found.z_a, torch.from_numpy(A)) and torch.equal(found.z_b, torch.from_numpy(B))
    assert found.labels.tolist() == LABELS.tolist() and "Left out: 'text'" in found.note
    ragged = pa.table({"z": pa.array([[1.0, 2.0], [3.0]] * 3, pa.list_(pa.float32()))})
    pq.write_table(ragged, tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="'z' holds vectors of different lengths"):
        read_embeddings(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        (torch.from_numpy(A), None),
        ((torch.from_numpy(A), torch.from_numpy(B)), None),
        ({"features": torch.from_numpy(A), "labels": torch.from_numpy(LABELS)}, LABELS.tolist()),
        ({"features": torch.from_numpy(A).requires_grad_(), "labels": ["x", "y", "z"] * 4}, ["x", "y", "z"] * 4),
    ],
)
def test_files_of_torch(tmp_path, content, labels):
    torch.save(content, tmp_path / "x.pt")
    found = read_embeddings(tmp_path / "x.pt")
    assert torch.equal(found.z_a, torch.from_numpy(A)) and (found.z_b is not None) == isinstance(content, tuple)
    assert (None if found.labels is None else found.labels.tolist()) == labels


def header_only(path, dtype, shape, name="labels"):
    """An archive with a small member whose header claims more."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": dtype, "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr(f"{name}.npy", head.getvalue() + bytes(1 << 10))


@pytest.mark.parametrize(
    "write",
    [
        lambda p: (np.savez(p / "x.npz", z_a=A), header_only(p / "x.npz", "<U20000000", (12,))),
        lambda p: (np.savez(p / "x.npz", z_a=A), header_only(p / "x.npz", "<U6000000", (12,))),
        lambda p: (np.savez(p / "x.npz", other=A), header_only(p / "x.npz", "<f8", (1 << 28, 9), "z_a")),
        lambda p: torch.save(torch.zeros(1, 1).expand(1 << 20, 8000), p / "x.pt"),
        lambda p: (np.save(p / "x.npy", A), np.save(p / "l.npy", np.array(["a", "b" * 6_000_000] * 6))),
        lambda p: frame(y=["a", "b" * 6_000_000] * 6).to_parquet(p / "x.parquet"),
    ],
)
def test_arrays_that_would_fill_the_memory_are_refused_by_their_headers(tmp_path, write):
    write(tmp_path)
    labels = tmp_path / "l.npy" if (tmp_path / "l.npy").exists() else None
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"bytes of text, more than|more than 536870912 values"):
        read_embeddings(next(tmp_path.glob("x.*")), labels=labels)
    assert tracemalloc.get_traced_memory()[1] < 1 << 28
    tracemalloc.stop()


def test_table_of_equal_values_is_judged_by_their_number(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_VALUES", 5000)
    frame(np.zeros((4000, 3))).to_parquet(tmp_path / "x.parquet")
    assert (tmp_path / "x.parquet").stat().st_size < 5000
    with pytest.raises(ValueError, match=r"the table has shape \(12000,\), more than 10000 values"):
        read_embeddings(tmp_path / "x.parquet")


def npy_with_header(text):
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text.encode() + b"\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.npy", npy_with_header("-" * 6000)),
        ("x.npy", npy_with_header("(" * 5000)),
        ("x.npy", npy_with_header("{'descr': '<f8', 'fortran_order': False, 'shape': (-4, 3)}")),
        ("x.csv", b"a" * 200_000 + b",b\n1,2\n"),
        ("x.csv", b'"a,b\n' + b"1,2\n" * 50_000),
    ],
)
def test_header_that_python_cannot_parse_is_one_sentence(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} cannot be read"):
        read_embeddings(tmp_path / name)


def test_pickled_objects_in_files_of_torch_are_refused(tmp_path):
    torch.save({"z": torch.from_numpy(A), "when": datetime.date(2020, 1, 1)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="holds pickled Python objects"):
        read_embeddings(tmp_path / "x.pt")


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_time_is_linear_in_the_number_of_columns(tmp_path, ending):
    z = np.random.default_rng(1).normal(size=(4, 9000)).astype(np.float32)
    wide = pd.DataFrame(z, columns=[f"{view}_{i}" for view in "ab" for i in range(4500)])
    path, started = written(wide, tmp_path / f"x.{ending}"), time.process_time()
    found = read_embeddings(path)
    assert time.process_time() - started < 10, "65 s when each column was looked up by its name"
    np.testing.assert_allclose(torch.cat([found.z_a, found.z_b], 1), z, rtol=1e-6)


def test_names_that_are_not_utf8(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.npy")
    np.save(path, A)
    assert read_embeddings(path).name == "caf\\xe9.npy"


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_columns_of_two_files_are_paired_by_name_if_they_have_the_same_names(tmp_path, ending):
    first = written(frame(label=LABELS), tmp_path / f"first.{ending}")
    second = written(frame(B)[["f2", "f0", "f1"]], tmp_path / f"second.{ending}")
    found = read_embeddings(first, second)
    np.testing.assert_allclose(found.z_a, A, rtol=1e-6)
    np.testing.assert_allclose(found.z_b, B, rtol=1e-6)
    assert found.note.endswith("paired by name") and found.columns == ["f0", "f1", "f2"]
    prefixed = written(frame(B).rename(columns=lambda name: f"b_{name}"), tmp_path / f"third.{ending}")
    found = read_embeddings(first, prefixed)
    assert found.note.endswith("paired by position") and torch.equal(found.z_b, torch.from_numpy(B))
    by_pattern = read_embeddings(second, prefixed, view_a="*", view_b="b_*")
    assert torch.equal(by_pattern.z_a, by_pattern.z_b) and by_pattern.note.endswith("by name")
    np.save(tmp_path / "b.npy", B)
    assert read_embeddings(first, tmp_path / "b.npy").note.endswith("paired by position")
    with pytest.raises(ValueError, match=r"views must have one shape, got .* --against compares"):
        read_embeddings(first, written(frame(B, f3=A[:, 0]), tmp_path / f"wide.{ending}"))


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_files_of_labels_with_other_columns_are_refused(tmp_path, ending):
    np.save(tmp_path / "x.npy", A)
    for name in ("image_id", "row", ""):
        path = written(pd.DataFrame({name: RNG.permutation(12), "label": LABELS}), tmp_path / f"l.{ending}")
        for label in (None, "label"):
            with pytest.raises(ValueError, match=f"matched by position, '{name}' not compared"):
                read_embeddings(tmp_path / "x.npy", labels=path, label=label)
    path = written(pd.DataFrame({"file": list("abcdefghijkl"), "label": LABELS}), tmp_path / f"l.{ending}")
    with pytest.raises(ValueError, match=r"'file' not compared: give 'label' alone, .* or --drop 'file' if"):
        read_embeddings(tmp_path / "x.npy", labels=path)
    for options in ({"label": "label"}, {"drop": ["file"]}, {"label": "label", "drop": ["f*"]}):
        assert read_embeddings(tmp_path / "x.npy", labels=path, **options).labels.tolist() == LABELS.tolist()
    path = written(pd.DataFrame({"id": range(12), "label": LABELS}), tmp_path / f"l.{ending}")
    assert read_embeddings(tmp_path / "x.npy", labels=path, drop=["id"]).labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize("word", ["NA", "nan", "NaN", "N/A", "null", "None", " na "])
@pytest.mark.parametrize("numbers", [[0.5, -2, 1e3], [0, 1, 7], ["0.0", "1.0", "01"]])
def test_words_for_missing_are_missing_beside_numbers_and_classes_beside_text(tmp_path, word, numbers):
    texts = [word if i in (2, 7) else str(numbers[i % 3]) for i in range(12)]
    path = written(frame(y=texts), tmp_path / "x.csv")
    found = read_embeddings(path)
    assert "2 of 12 labels are missing" in found.note and (found.target is None) == (numbers[0] != 0.5)
    values = found.labels if found.target is None else found.target[np.isfinite(found.target)]
    assert values.tolist() == [numbers[i % 3] for i in range(12) if texts[i] != word]
    texts[0] = "cat"
    found = read_embeddings(written(frame(y=texts), path))
    assert found.labels.tolist() == texts and f"The text {word!r} is a class" in found.note


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_spaces_around_names_and_labels(tmp_path, ending):
    (tmp_path / "x.csv").write_text("p, q , r, label\n" + "0.5, 1, 2, cat\n0.25, 3, 1, dog\n" * 6)
    found = read_embeddings(tmp_path / "x.csv")
    assert found.columns == ["p", "q", "r"] and "2 classes" in found.note
    path = written(frame(y=["cat", "cat ", "dog"] * 4), tmp_path / f"y.{ending}")
    with pytest.raises(ValueError, match="hold 'cat' and 'cat ', which differ in spaces only"):
        read_embeddings(path)


@pytest.mark.parametrize("ending", ["npy", "npz", "csv", "parquet", "pt"])
def test_numbers_far_from_zero_keep_their_precision(tmp_path, ending):
    times = 1_600_000_000 + RNG.integers(0, 3600, (200, 3))
    for z in (1e6 + 0.05 * RNG.normal(size=(200, 3)), times, times.astype(np.uint32), times.astype(">f8")):
        z = z if ending.startswith("np") else z.astype(z.dtype.newbyteorder("="))
        path = tmp_path / f"x.{ending}"
        if ending == "pt":
            torch.save(torch.from_numpy(z.astype(float)), path)
        elif ending in ("csv", "parquet"):
            written(frame(z), path)
        else:
            (np.save if ending == "npy" else np.savez)(path, z)
        found = read_embeddings(path).z_a
        assert found.dtype == torch.float64
        np.testing.assert_array_equal(found, z)
        pd.testing.assert_frame_equal(diagnose(found), diagnose(z.astype(float)))
    assert real_floats(np.array([[1e6, 1], [1e6, 2]]), "z").dtype == torch.float32, "a constant loses nothing"


@pytest.mark.parametrize("as_list", [False, True])
def test_labels_beside_features_in_a_file_of_torch(tmp_path, as_list):
    labels = LABELS.tolist() if as_list else torch.from_numpy(LABELS)
    for content in ((torch.from_numpy(A), labels), [labels, torch.from_numpy(A)]):
        torch.save(content, tmp_path / "x.pt")
        found = read_embeddings(tmp_path / "x.pt")
        assert torch.equal(found.z_a, torch.from_numpy(A)) and found.labels.tolist() == LABELS.tolist()
        assert "z_b" not in found.note


@pytest.mark.parametrize(
    "values",
    [["a", None, "b"], [True, None, False], [b"a", None, b"b"], [1, None, 2]],
    ids=lambda values: str(values[0]),
)
def test_labels_of_every_kind_in_parquet_may_be_missing(tmp_path, values):
    found = read_embeddings(written(frame().assign(y=pd.Series(values * 4, dtype=object)), tmp_path / "x.parquet"))
    assert len(found.labels) == 8 == len(found.features) and "4 of 12 labels are missing" in found.note
    assert len(set(found.labels.tolist())) == 2


def test_large_integers_beside_missing_ones_stay_exact(tmp_path):
    labels = pa.array([2**53 + 1, 2**53, None] * 4)
    columns = {f"f{i}": pa.array(column) for i, column in enumerate(A.T)}
    pq.write_table(pa.table({**columns, "label": labels}), tmp_path / "x.parquet")
    assert read_embeddings(tmp_path / "x.parquet").labels.tolist() == [2**53 + 1, 2**53] * 4
    words = {"f3": r"column 'f3' holds 4 values that are empty .* in row 2", "z": "4 of 12 rows are not, first row 1"}
    for name, values in (("f3", labels), ("z", pa.array([[1, 2], [3, None], [1, 1]] * 4))):
        pq.write_table(pa.table({**columns, name: values}), tmp_path / "x.parquet")
        with pytest.raises(ValueError, match=words[name]):
            read_embeddings(tmp_path / "x.parquet", view_a="*" if name == "f3" else name)


def test_first_line_of_labels_is_a_label_if_every_row_needs_one(tmp_path):
    values = ["0", "1", "1"] * 4
    np.save(tmp_path / "x.npy", A)
    for name, lines, taken in (("none", values, " without a header"), ("header", ["digit", *values], ",")):
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
        found = read_embeddings(tmp_path / "x.npy", labels=tmp_path / f"{name}.csv")
        assert found.labels.tolist() == [0, 1, 1] * 4 and f"Labels: {tmp_path / f'{name}.csv'}{taken}" in found.note
    (tmp_path / "short.csv").write_text("\n".join(["digit", *values[1:]]))
    with pytest.raises(ValueError, match=r"12 rows need labels of shape .*, got \(11,\)"):
        read_embeddings(tmp_path / "x.npy", labels=tmp_path / "short.csv")


def test_an_array_that_is_chosen_as_a_view_is_no_label(tmp_path):
    np.savez(tmp_path / "x.npz", x=A, y=B)
    found = read_embeddings(tmp_path / "x.npz", view_a="x", view_b="y")
    assert torch.equal(found.z_b, torch.from_numpy(B)) and found.labels is None


def test_files_of_torch_before_its_archives_are_read(tmp_path):
    torch.save(torch.from_numpy(A), tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    np.testing.assert_array_equal(read_embeddings(tmp_path / "x.pt").z_a, A)


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.95])
def test_a_file_of_torch_that_was_cut_off_is_named(tmp_path, archive, kept):
    torch.save(torch.randn(200, 8), tmp_path / "x.pt", _use_new_zipfile_serialization=archive)
    content = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=r"x\.pt cannot be read: the file was cut off"):
        read_embeddings(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it was not written by torch.save"),
        (b"hello", "it was not written by torch.save"),
        ({}, "it holds no tensor and no list, only an empty dictionary"),
        ({"a": {"z": torch.eye(5)}}, "it holds no tensor and no list, only 'a'"),
    ],
)
def test_file_without_tensors_is_refused_in_words(tmp_path, content, words):
    if isinstance(content, bytes):
        (tmp_path / "x.pt").write_bytes(content)
    else:
        torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=f"x.pt cannot be read: {words}"):
        read_embeddings(tmp_path / "x.pt")


def test_whole_numbers_that_nearly_all_differ_are_a_continuous_target(tmp_path):
    values = np.random.default_rng(0).normal(size=(60, 3))
    target = (1000 * values[:, 0]).round().astype(int)
    found = read_embeddings(written(frame(values, y=target), tmp_path / "x.csv"))
    assert found.labels is None and found.target.tolist() == target.tolist()
    assert "most of these whole numbers differ: if they are classes, write them as words" in found.note
    classes = np.repeat(np.arange(30), 2)  # half of the rows
    found = read_embeddings(written(frame(values, y=classes), tmp_path / "x.csv"))
    assert (
        found.labels.tolist() == classes.tolist() and "write one of them with a fraction, such as 41.001" in found.note
    )
    few = read_embeddings(written(frame(values, y=classes % 20), tmp_path / "x.csv"))
    assert "20 classes" in few.note and "fraction" not in few.note
    few = read_embeddings(written(frame(values[:19], y=np.arange(19)), tmp_path / "x.csv"))
    assert few.labels.tolist() == list(range(19))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("f\n" + "0.5\n" * 5, "a view needs 2 to 8192 columns of features, found 'f'"),
        ("f,label\n" + "0.5,a\n" * 5, "a view needs 2 to 8192 columns of features, found 'f'"),
        ("label\n" + "a\n" * 5, "a view needs 2 to 8192 columns of features, found none"),
        ("f,g\n" + "1,2\n" * 5 + "3,?\n", r"'g' holds string, not numbers \('\?' in row 5, from 0\)"),
    ],
)
def test_what_a_table_lacks_is_said(tmp_path, text, words):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(ValueError, match=words):
        read_embeddings(tmp_path / "x.csv")


@pytest.mark.parametrize(
    "given, error, words",
    [
        ({"labels": torch.arange(6) % 2}, TypeError, "labels must be of type ndarray or NoneType, got Tensor"),
        ({"labels": np.arange(6) / 2}, ValueError, "labels must hold integers, booleans or strings, got dtype float64"),
        ({"labels": np.array(["a", None] * 3)}, ValueError, "labels holds 3 missing values"),
        ({"target": [0.5] * 6}, TypeError, "target must be of type ndarray or NoneType, got list"),
        ({"z_b": np.zeros((6, 2))}, TypeError, "z_b must be of type Tensor or NoneType, got ndarray"),
    ],
)
def test_parts_of_embeddings_of_other_types_are_refused(given, error, words):
    with pytest.raises(error, match=words):
        Embeddings(torch.randn(6, 2), **given)


def test_labels_above_the_range_of_integers_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", z_a=A, labels=np.repeat([1e19, 2e19, 3.0], len(A) // 3))
    with pytest.raises(ValueError, match="must hold integers, booleans or strings, got dtype float64"):
        read_embeddings(tmp_path / "x.npz")


def test_labels_of_two_files_may_be_missing_in_one(tmp_path):
    values = np.random.default_rng(0).normal(size=(40, 3))
    labels = pd.Series(np.arange(40) // 2)
    a = written(frame(values, y=labels), tmp_path / "a.parquet")
    b = written(frame(values, y=labels.where(np.arange(40) % 2 == 0)), tmp_path / "b.parquet")
    found = read_embeddings(a, b)
    assert found.labels.tolist() == labels.tolist()


def test_whole_floats_of_a_text_file_are_whole_numbers(tmp_path):
    ages = pd.Series([*range(20, 31)] * 4, dtype=float)
    ages[3] = np.nan  # which makes pandas write 41.0
    found = read_embeddings(written(frame(np.random.default_rng(0).normal(size=(44, 3)), y=ages), tmp_path / "x.csv"))
    assert sorted(set(found.labels.tolist())) == list(range(20, 31)) and len(found.labels) == 43
