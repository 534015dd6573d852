"""Every file format gives back the arrays that were written. Files that could be misread are refused."""

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors

from hsic_lab.datasets import load
from hsic_lab.encoders import ConvEncoder
from hsic_lab.report import Embeddings, read_embeddings
from hsic_lab.report import _embeddings as module
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
        "l.parquet": lambda path: pd.DataFrame({"row": LABELS, "label": LABELS}).to_parquet(path),
    }.items():
        write(tmp_path / name)
        found = read_embeddings(tmp_path / "a.npy", tmp_path / "b.csv", tmp_path / name)
        assert found.name == "a.npy and b.csv" and found.labels.tolist() == LABELS.tolist()
        np.testing.assert_allclose(found.z_b, B, rtol=1e-6)


def test_same_rows_of_both_views_are_sampled_from_large_files(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_VALUES", 20)
    z = np.arange(300.0).reshape(100, 3)
    np.save(tmp_path / "a.npy", z)
    np.save(tmp_path / "b.npy", z + 1)
    found = read_embeddings(tmp_path / "a.npy", tmp_path / "b.npy")
    assert found.rows == 100 and len(found.z_a) == 6 and torch.equal(found.z_a + 1, found.z_b)
    assert len({row for row, *_ in found.z_a.tolist()}) == 6
    np.save(tmp_path / "longer.npy", np.concatenate([z, z]))
    with pytest.raises(ValueError, match="different numbers of rows"):
        read_embeddings(tmp_path / "a.npy", tmp_path / "longer.npy")
    frame(z[:10], label=np.arange(10)).to_parquet(tmp_path / "c.parquet", index=False)
    drawn = read_embeddings(tmp_path / "c.parquet")
    assert drawn.rows == 10 and len(drawn.z_a) == 6 and (drawn.z_a[:, 0] / 3).tolist() == drawn.labels.tolist()
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
    assert len(found.labels) == 445
    train(
        TrainConfig(dataset="digits", epochs=1, projector=(6,)), tmp_path / "own", None, False,
        encoder=ConvEncoder(1, 1),
    )  # fmt: skip
    with pytest.raises(ValueError, match="encoder must be 'custom' exactly if a module is given"):
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
        ("ab.csv", lambda path: frame(A, B).rename(columns={"b_2": "b_7"}).to_csv(path, index=False), "'b_2' is miss"),
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
    assert found.labels.tolist() == LABELS.tolist() and found.note == "Not used: when"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"z_a": A[:3]}, r"at least 4 rows and 2 to 8192 columns, got shape \(3, 3\)"),
        ({"z_a": A[:, :1]}, r"\(12, 1\)"),
        ({"z_a": A[0]}, r"\(3,\)"),
        ({"z_a": A, "z_b": B[:9]}, r"got \(12, 3\) and \(9, 3\)"),
        ({"z_a": A, "labels": LABELS[:9]}, r"12 rows need as many labels, got \(9,\)"),
        ({"z_a": A, "features": B[:9], "labels": LABELS}, "9 rows need as many labels"),
    ],
)
def test_embeddings_that_do_not_match_raise(values, words):
    tensors = {name: value if name == "labels" else torch.from_numpy(value) for name, value in values.items()}
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
