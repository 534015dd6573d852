"""The page holds the numbers of the library and loads nothing; bad files give an error of one line."""

import re
import sys
import zipfile
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.model_selection import train_test_split

from hsic_lab import cli
from hsic_lab.cka import cka
from hsic_lab.correlation import CorrelationSummary, cross_correlation
from hsic_lab.datasets import load
from hsic_lab.diagnostics import diagnose, rankme
from hsic_lab.evaluation import extract_features
from hsic_lab.plots import plot_embedding
from hsic_lab.report import Embeddings, read_embeddings, write_atlas, write_report
from hsic_lab.report._page import (
    _cells,
    as_embeddings,
    comparison_table,
    depth_table,
    independence_table,
    page_probes,
    report_html,
    similarity_table,
)
from hsic_lab.training import TrainConfig, train

RNG = np.random.default_rng(0)
N, D = 240, 8
LABELS = RNG.integers(0, 3, N)
SHARED = RNG.normal(size=(3, D))[LABELS] * 2 + RNG.normal(size=(N, D))
A, B = (torch.from_numpy(SHARED + 0.5 * RNG.normal(size=(N, D))).float() for _ in "ab")
OTHER, NOISE = (torch.from_numpy(RNG.normal(size=(N, width))).float() for width in (5, 40))


class Page(HTMLParser):
    """Tables as lists of rows of words, the words of the page, alt texts, and all addresses that a browser loads."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.words, self.loaded, self.alt, self.open = [], [], [], [], []
        self.feed(text)
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        self.alt += [dict(attributes).get("alt", "")] if tag == "img" else []
        self.loaded += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.cdata_elem:  # of a script or a style sheet
            return
        self.words.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1].append(data)


def page_of(path):
    return Page(path.read_text(encoding="utf-8"))


def test_page_of_two_views(tmp_path):
    found = Embeddings(A, B, LABELS, name="<i>mine</i> & yours.npz")
    path = write_report(found, tmp_path / "new" / "page.html", reference=OTHER)
    page = page_of(path)
    assert all(address.startswith("data:image/png;base64,") for address in page.loaded) and len(page.loaded) == 2
    assert path.read_text().count('<div class="hsic-explorer">') == 1
    assert "url(" not in path.read_text() and "@import" not in path.read_text()
    words = " ".join(page.words)
    assert "<i>mine</i> & yours.npz" in words and f"two views of {N} rows and {D} features; 3 different labels" in words
    frame = diagnose(A, B)
    assert f"Verdict: {frame.attrs['verdict']}" in words and frame.attrs["explanation"] in words
    compared, board, probe, similarity, tests = page.tables
    assert [row[0] for row in compared[1:]] == ["CKA (linear)", "neighbors kept, k = 10"]
    assert board[1:] == [
        [r.diagnostic.replace("_", " "), f"{r.value + 0.0:.4g}", r.verdict, r.threshold, r.meaning]
        for r in frame.itertuples()
    ]
    evaluations = ["linear probe", "13 nearest neighbors"]
    assert [row[:2] for row in probe[1:]] == [[name, evaluation] for name in "AB" for evaluation in evaluations]
    assert float(probe[1][2]) > 0.8 > 0.5 > float(probe[3][2]), "B is noise"
    assert float(similarity[1][2]) == pytest.approx(float(cka(A, B)), rel=1e-3)
    assert [row[0] for row in similarity[1::2]] == [
        "view A and view B", "view A and the reference", "view B and the reference"
    ]  # fmt: skip
    assert [row[2] for row in tests[1:]] == [str(N)] * 3 and all(float(row[4]) <= 0.01 for row in tests[1:])


def test_page_of_one_view_takes_tensors_arrays_and_tuples(tmp_path):
    for source in (A, A.numpy(), A.double().numpy(), (A,)):
        page = page_of(write_report(source, tmp_path / "page.html"))
        assert len(page.tables) == 1 and "one view of" in " ".join(page.words)
    assert as_embeddings((A, B.numpy())).z_b.dtype == torch.float32
    with pytest.raises(TypeError, match="a pair of them, got \\['int'\\]"):
        write_report(3, tmp_path / "page.html")
    with pytest.raises(ValueError, match="a row for each of the 240 rows, got 100"):
        write_report(A, tmp_path / "page.html", reference=OTHER[:100])


@pytest.mark.parametrize(
    ("z_a", "z_b", "verdict"),
    [
        (torch.ones(50, 6), torch.ones(50, 6), "complete collapse"),
        (torch.zeros(50, 6), None, "complete collapse"),
        (OTHER[:, :1] * torch.ones(1, 40) + 1e-3 * NOISE, None, "dimensional collapse"),
        (OTHER, -OTHER, "branch anti-alignment"),
        (OTHER, OTHER + 0.1, "healthy"),
        (torch.cat([OTHER, OTHER], 1), None, "redundant"),
        (OTHER, OTHER.roll(1, 0), "unrelated views"),
    ],
)
def test_verdict_is_at_the_top(z_a, z_b, verdict, tmp_path):
    labels = np.arange(len(z_a)) % 2
    path = write_report(Embeddings(z_a, z_b, labels), tmp_path / "page.html")
    page, text = page_of(path), path.read_text()
    assert f"Verdict: {verdict}" in page.words
    kind = {"healthy": " good", "redundant": ""}.get(verdict, " bad")  # correlated features are no alarm
    assert f'class="verdict{kind}"' in text and (f'class="alarm">{verdict}' in text) == (kind == " bad")
    assert "nan" not in " ".join(page.words).lower().split()


def test_page_names_other_rows_and_unused_arrays(tmp_path):
    found = Embeddings(A, B, np.arange(100) % 2, features=OTHER[:100], note="Not used: when")
    words = " ".join(" ".join(page_of(write_report(found, tmp_path / "page.html")).words).split())
    words_of_rows = (
        "Labels, their prediction and principal axes are of 100 rows and 5 features of an encoder. Not used: when"
    )
    assert words_of_rows in words
    unlabeled = Embeddings(A, B, features=OTHER[:100])
    words = " ".join(" ".join(page_of(write_report(unlabeled, tmp_path / "page.html")).words).split())
    assert "Principal axes are of 100 rows and 5 features of an encoder" in words and "Labels" not in words
    some = Embeddings(A, B, LABELS[:90], features=A[:90], note="150 labels are missing")
    words = " ".join(" ".join(page_of(write_report(some, tmp_path / "page.html")).words).split())
    assert "are of 90 rows with a label. 150 labels are missing" in words and "90 of 90 rows were used" in words


def test_unrelated_views_have_no_similarity_and_no_dependence():
    unrelated = Embeddings(A, OTHER[:, torch.arange(D) % 5] + 0.01 * NOISE[:, :D])
    assert similarity_table(unrelated.z_a, unrelated.z_b, None)["CKA"].abs().max() < 0.1
    table = independence_table(unrelated)
    assert (table["pvalue"] > 0.01).all() and (table["answer"] == "nothing speaks against it").all()
    assert np.isnan(similarity_table(A, torch.ones(N, D), None)["CKA"]).all()


def test_probe_leaves_out_rare_classes_and_notes_it():
    labels = LABELS.astype(str)
    labels[:5] = "rare"
    table, note = page_probes(Embeddings(A, labels=labels))
    assert table["train rows"].tolist() == [164] * 2 and table["test rows"].tolist() == [71] * 2
    left_out = "1 of 4 classes have fewer than 10 of the 240 rows sampled and are left out."
    assert note == f"235 of 240 rows were used; {left_out}"
    table, note = page_probes(Embeddings(A, labels=np.arange(N)))
    assert table.empty and note.endswith("there is nothing to predict.")
    table, _ = page_probes(Embeddings(torch.cat([A[:-1], torch.zeros(1, D)]), labels=LABELS))
    assert table["evaluation"].tolist() == ["linear probe"], "a zero row has no neighbors"


def test_failed_write_leaves_the_previous_page(tmp_path, monkeypatch):
    path = write_report(A, tmp_path / "page.html")
    before = path.read_bytes()
    monkeypatch.setattr("hsic_lab.report._page.report_html", lambda *_: "\ud800")
    with pytest.raises(UnicodeEncodeError):
        write_report(B, path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_pvalue_below_all_floats_is_not_zero():
    cells = _cells(pd.DataFrame({"statistic": [0.0], "pvalue": [0.0]}))
    assert cells == {"columns": ["statistic", "pvalue"], "rows": [[("number", "0"), ("number", "< 1e-300")]]}


def test_all_text_is_escaped():
    evil = '<script>alert("x")</script>'
    page = report_html(Embeddings(A, labels=np.array([evil] * N), name=evil, note=evil))
    assert page.count("<script") == 3 and evil not in page
    assert page.count("&lt;script&gt;alert(&#34;x&#34;)") == 4 + N, "title, heading, note, legend and rows"


@pytest.mark.parametrize("text", ["US$_low_$", "_hidden", "<b>bold</b> & co", "x" * 300, "a\0b"])
def test_texts_of_the_user_are_on_the_page_as_they_are(text, tmp_path):
    labels = np.array([text, "other"] * (N // 2))
    path = write_report(Embeddings(A, B, labels, name=text, note=text), tmp_path / "page.html")
    page = page_of(path)
    assert "\\frac" not in path.read_text() and "2 different labels" in " ".join(page.words)
    assert page.words.count(text.replace("\0", "\ufffd")) >= 1 or text in path.read_text(), "the title"


@pytest.mark.parametrize("dependent", [True, False])
def test_page_with_a_continuous_target_has_a_test_and_no_probe(dependent, tmp_path):
    target = (A[:, 0] if dependent else torch.from_numpy(RNG.normal(size=N))).numpy().astype(float)
    target[:40] = np.nan
    found = Embeddings(A, target=target, note="40 values are missing")
    page = page_of(write_report(found, tmp_path / "page.html"))
    words = " ".join(page.words)
    assert "Prediction of the labels" not in words and "40 values are missing" in words
    (row,) = page.tables[-1][1:]
    assert row[0] == "are features and target independent?" and row[2] == "200"
    assert (float(row[4]) <= 0.01) == dependent


def test_page_without_labels_has_no_probe_and_says_nothing_of_labels(tmp_path):
    words = " ".join(page_of(write_report((A, B), tmp_path / "page.html")).words)
    assert "label" not in words


def test_steps_and_verdict_are_logged(tmp_path, caplog):
    with caplog.at_level("INFO", logger="hsic_lab"):
        write_report(Embeddings(A, B, LABELS), tmp_path / "page.html")
    said = [record.getMessage() for record in caplog.records]
    assert len(said) >= 4 and str(diagnose(A, B)) in said[1] and all(message.endswith("...") for message in said)


def test_small_page_is_made_in_one_thread_and_restores_their_number(tmp_path, monkeypatch):
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        page = "<!DOCTYPE html>"
        monkeypatch.setattr(
            "hsic_lab.report._page.report_html", lambda *_: seen.append(torch.get_num_threads()) or page
        )
        write_report(A, tmp_path / "page.html")
        monkeypatch.setattr("hsic_lab.report._page.ONE_THREAD_VALUES", 10)
        write_report(A, tmp_path / "page.html")
        assert seen == [1, 2] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("kind", "words"), [("projections", "lambda too small"), ("data", "neighboring pixels")])
def test_words_of_the_verdict_fit_the_features(kind, words):
    assert words in report_html(Embeddings(torch.cat([OTHER, OTHER], 1), kind=kind))


def test_formulas_are_legible_without_a_network(tmp_path):
    text = write_report((A, B), tmp_path / "page.html").read_text()
    visible = re.sub(r"base64,[^\"]*|<(style|script).*?</\1>", "", text, flags=re.DOTALL)
    assert "C<sub>ij</sub>" in visible and not re.search(r"[\\$]|mathjax", visible, re.IGNORECASE)


@pytest.fixture
def stills(monkeypatch):
    """Heatmaps as images, as they are drawn for many features."""
    monkeypatch.setattr("hsic_lab.report._page.LIVE_FEATURES", 0)


def test_every_image_has_alt_text_that_describes_it(stills, tmp_path):
    text = write_report(Embeddings(A, B, LABELS), tmp_path / "page.html").read_text()
    heatmap, spectrum = Page(text).alt
    c = cross_correlation(A, B)
    assert f"Heatmap of {D} x {D} correlations" in heatmap
    assert f"root mean square is {c.square().mean().sqrt():.3f}" in " ".join(heatmap.split())
    ratio = np.linalg.cond((A - A.mean(0)).numpy())
    assert "Singular values" in spectrum and f"view A: {D} positive values of at most {D}" in spectrum
    assert f"{1 / ratio:.2g}" in spectrum and "view B" in spectrum
    assert f'aria-label="Scatter plot of {N} rows on two principal axes, colored by label.' in text
    oracle = PCA(2, svd_solver="full").fit(A.numpy()).explained_variance_ratio_
    assert "axis 1 has {:.0f} % of the variance, axis 2 {:.0f} %".format(*(100 * oracle)) in text


def test_page_has_the_summary_of_the_correlations(tmp_path):
    words = " ".join(" ".join(page_of(write_report((A, B), tmp_path / "page.html")).words).split())
    summary = CorrelationSummary.from_matrix(cross_correlation(A, B), N)
    assert f"{summary.rms_off_diagonal:.3g} (expected if independent: {summary.expected_rms:.3g})" in words
    squares = summary.off_diagonal_squared_norm, summary.expected_squared_norm
    assert "{:.4g} (expected if independent: {:.4g})".format(*squares) in words
    assert f"The sum of all entries is {summary.total:.4g}." in words


# The command `hsic-lab inspect`, run in this process.


def inspect(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["hsic-lab", "inspect", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code, capsys.readouterr()


def test_command_writes_beside_the_file_or_to_the_given_path(tmp_path, monkeypatch, capsys, caplog):
    np.save(tmp_path / "a.npy", A)
    np.save(tmp_path / "b.npy", B)
    np.save(tmp_path / "labels.npy", LABELS)
    code, said = inspect(monkeypatch, capsys, tmp_path / "a.npy")
    default = tmp_path / "a.npy.html"
    assert code == 0 and said.out.splitlines()[-1] == str(default) and default.is_file()
    assert str(diagnose(A)) in caplog.text, "the verdict and its numbers"
    assert "No labels to predict." in caplog.text and "Prediction of the labels" not in caplog.text
    page = tmp_path / "page.html"
    code, said = inspect(
        monkeypatch, capsys, tmp_path / "a.npy", tmp_path / "b.npy", "--labels", tmp_path / "labels.npy",
        "--reference", tmp_path / "b.npy", "--output", page,
    )  # fmt: skip
    assert code == 0 and page_of(page).tables[3][5][2] == "1", "view B and the reference are equal"


def with_nan(z):
    z = z.numpy().copy()
    z[7, 2] = np.nan
    return z


def truncated(path):
    np.save(path, A)
    path.write_bytes(path.read_bytes()[:-40])


def huge(path):
    """Write a header of 2^40 rows, followed by a few bytes."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 8)})
        file.write(bytes(64))


def huge_npz(path):
    huge(path.with_suffix(".npy"))
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(path.with_suffix(".npy"), "z_a.npy")


BAD = {
    "missing.npy": (lambda path: None, "does not exist"),
    "unknown.mat": (lambda path: path.write_text("x"), r"accepted are files ending in .npy, .npz"),
    "empty.npy": (lambda path: path.touch(), "cannot be read"),
    "empty.npz": (lambda path: path.touch(), "cannot be read"),
    "empty.csv": (lambda path: path.touch(), "cannot be read"),
    "empty.parquet": (lambda path: path.touch(), "cannot be read"),
    "empty.safetensors": (lambda path: path.touch(), "cannot be read"),
    "text.npy": (lambda path: path.write_text("1 2 3"), "magic string"),
    "text.parquet": (lambda path: path.write_text("1 2 3" * 9), "cannot be read"),
    "truncated.npy": (truncated, "cannot be read"),
    "pickled.npy": (lambda path: np.save(path, np.array([{}, []], dtype=object)), "Python objects"),
    "pickled.npz": (lambda path: np.savez(path, z_a=np.array([[{}, {}]] * 9)), "pickled Python objects"),
    "huge.npy": (huge, "cannot be read"),
    "huge.npz": (huge_npz, "save it as .npy"),
    "norows.npy": (lambda path: np.save(path, np.zeros((0, 8))), r"at least 4 rows .* got shape \(0, 8\)"),
    "nocolumns.npy": (lambda path: np.save(path, np.zeros((8, 0))), r"2 to 8192 columns, got shape \(8, 0\)"),
    "onerow.npy": (lambda path: np.save(path, A[:1]), r"at least 4 rows .* got shape \(1, 8\)"),
    "vector.npy": (lambda path: np.save(path, A[:, 0]), r"one or two matrices"),
    "wide.npy": (lambda path: np.save(path, np.zeros((4, 8193), np.int8)), r"2 to 8192 columns"),
    "complex.npy": (lambda path: np.save(path, A.numpy() * 1j), "real numbers, got complex64"),
    "nan.npy": (lambda path: np.save(path, with_nan(A)), "1 of 240 rows are not, first row 7"),
    "overflow.npy": (lambda path: np.save(path, A.double().numpy() * 1e300), r"e\+300, outside the range of float32"),
    "underflow.npy": (lambda path: np.save(path, A.double().numpy() * 1e-300), "e-300, outside the range of float32"),
    "three.npz": (lambda path: np.savez(path, u=A, v=A, w=A), "expected one or two matrices"),
    "mismatch.npz": (lambda path: np.savez(path, a=A, b=B[1:]), r"\(240, 8\) and \(239, 8\)"),
    "column.npz": (lambda path: np.savez(path, a=A, labels=LABELS[:, None]), r"rows need labels of shape.*\(240, 1\)"),
    "labels.npz": (lambda path: np.savez(path, a=A, labels=LABELS[1:]), r"240 rows need labels of shape.*\(239,\)"),
    "words.csv": (lambda path: path.write_text("f0,f1,kind\n" + "1.5,2,cat\n" * 9), "column 'kind' holds string"),
    "index.csv": (lambda path: path.write_text(",f1,f2\n" + "1.5,2,3\n" * 9), "column '' looks like an index"),
    "unnamed.csv": (lambda path: path.write_text("Unnamed: 0,f1,f2\n" + "1,2,3\n" * 9), "'Unnamed: 0' looks like"),
    "class.csv": (lambda path: path.write_text("f0,f1,class\n" + "1.5,2,3\n" * 9), "column 'class' is no feature"),
    "twice.csv": (lambda path: path.write_text("f0,f1,f0\n" + "1.5,2,3\n" * 9), "column 'f0' occurs twice"),
    "header.csv": (lambda path: path.write_text("f0,f1\n"), "no row below the names"),
    "ragged.csv": (lambda path: path.write_text("f0,f1\n1,2\n3\n"), "cannot be read"),
    "gaps.csv": (lambda path: path.write_text("f0,f1\n" + "1,2\n" * 5 + "3,\n"), "'f1' holds 1 values .* in row 5"),
    "prefixes.csv": (lambda path: path.write_text("a_0,b_0,c\n" + "1,2,3\n" * 5), "column 'c' is neither"),
    "folder": (lambda path: path.mkdir(), "is not a run"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_files_give_one_line_and_exit_code_2(name, tmp_path, monkeypatch, capsys):
    write, words = BAD[name]
    write(tmp_path / name)
    before = set(tmp_path.iterdir())
    code, said = inspect(monkeypatch, capsys, tmp_path / name)
    assert code == 2 and said.out == ""
    assert re.search(words, said.err) and name in said.err
    assert said.err.startswith("hsic-lab: ") and said.err.count("\n") == 1 and "Traceback" not in said.err
    assert set(tmp_path.iterdir()) == before, "no page, and nothing half-written"


@pytest.mark.parametrize(
    ("second", "labels", "words"),
    [
        (B[1:], None, r"\(240, 8\) and \(239, 8\)"),
        (B, LABELS[1:], "240 rows need labels of shape"),
        (None, LABELS.reshape(-1, 2), r"240 rows need labels of shape .*, got \(120, 2\)"),
    ],
)
def test_files_that_do_not_match_raise(second, labels, words, tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "a.npy", A)
    arguments = [tmp_path / "a.npy"]
    for option, name, value in ((None, "b.npy", second), ("--labels", "l.npy", labels)):
        if value is not None:
            np.save(tmp_path / name, value)
            arguments += [option, tmp_path / name] if option else [tmp_path / name]
    code, said = inspect(monkeypatch, capsys, *arguments)
    assert code == 2 and re.search(words, said.err) and said.err.count("\n") == 1


def test_plot_embedding_shows_principal_components():
    ax = plot_embedding(A, LABELS)
    points = np.concatenate([np.asarray(part.get_offsets()) for part in ax.collections])
    oracle = PCA(2, svd_solver="full").fit(A.numpy())
    expected = oracle.transform(A.numpy())[np.argsort(LABELS, kind="stable")]
    np.testing.assert_allclose(np.abs(points), np.abs(expected), atol=1e-4)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["0", "1", "2"]
    assert f"{oracle.explained_variance_ratio_[0]:.0%}" in ax.get_xlabel()
    many = plot_embedding(A, np.arange(N))
    named = [text.get_text() for text in many.get_legend().get_texts()]
    assert len(named) == 21 and named[0] == f"others ({N - 20})"
    gray = many.collections[0]
    assert len(gray.get_offsets()) == N - 20
    for z, labels, words in (
        (A[:1], None, r"\(1, 8\)"), (torch.ones(5, 3), None, "5 equal rows"), (A, LABELS[1:], r"\(240,\), one a row"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            plot_embedding(z, labels)


def test_page_shows_the_cross_correlation_matrix(stills, monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr("hsic_lab.report._page.plot_cross_correlation", lambda c, ax, *_: drawn.append(c))
    write_report((A, B), tmp_path / "page.html")
    torch.testing.assert_close(drawn[0], cross_correlation(A, B))


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e8])
def test_degenerate_embeddings_have_a_page(unit, tmp_path):
    collapsed = A[:1].expand(N, D).clone()
    collapsed[7] = A[7]
    for pair in ((unit * collapsed, unit * collapsed.clone()), (unit * A, unit * B), (torch.eye(N)[:, :50],) * 2):
        assert write_report(pair, tmp_path / "page.html").exists()
    table = similarity_table(collapsed, A, None)
    assert table["CKA"].isna().tolist() == [True, True]


def test_nearly_constant_column_has_a_page(tmp_path, monkeypatch, capsys):
    frame = pd.DataFrame(A.numpy()).add_prefix("f").assign(time=1.7e12 + 6e5 * np.linspace(0, 1, len(A)), label=LABELS)
    frame.to_csv(tmp_path / "stamped.csv", index=False)
    code, said = inspect(monkeypatch, capsys, tmp_path / "stamped.csv")
    assert code == 0, said.err
    assert "linear probe" in (tmp_path / "stamped.csv.html").read_text()


@pytest.mark.parametrize("name", ["a.npy", "page", "page.pdf"])
def test_page_does_not_overwrite_data(tmp_path, name):
    np.save(tmp_path / "a.npy", A)
    before = (tmp_path / "a.npy").read_bytes()
    with pytest.raises(ValueError, match=rf"ending in \.html, got .*{name}"):
        write_report(tmp_path / "a.npy", tmp_path / name)
    assert (tmp_path / "a.npy").read_bytes() == before
    assert write_report(tmp_path / "a.npy", tmp_path / "page.HTML").is_file()
    with pytest.raises(ValueError, match="the source must hold real numbers, got complex64"):
        write_report(A.numpy() * 1j, tmp_path / "page.html")


def test_features_of_two_networks_are_explained():
    other = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    page = report_html(Embeddings(other, other.flip(1)))
    assert "unrelated views" in page and "the features are not (two different networks)" in page


def test_sections_without_a_figure_say_that_all_rows_are_equal():
    page = report_html(Embeddings(torch.zeros(20, 4)))
    assert page.count("All rows are equal: there is nothing to draw.") == 2


def test_page_of_one_view_with_constant_columns():
    z = torch.cat([A, torch.full((N, 30), 3.0)], dim=1)
    page = " ".join(Page(report_html(Embeddings(z, labels=LABELS))).words)
    words = " ".join(page.split())
    alone = CorrelationSummary.from_matrix(cross_correlation(A, A), N)
    assert "The diagonal is 1, and 0 for constant features." in words and "The mean of the diagonal is 1." in words
    assert "30 of 38 features are constant: they have no correlation" in words
    assert f"the other entries is {alone.rms_off_diagonal:.3g} (expected" in words
    assert "random sample of them" not in words
    many = RNG.normal(size=(600, 3)).astype(np.float32)
    page = report_html(Embeddings(torch.from_numpy(many), labels=np.arange(600) % 2))
    assert "The diagonal is 1.</p>" in page and "random sample of them" in page


@pytest.mark.parametrize("second", [A, 1e6 + 0.05 * B.double(), None], ids=["mixed", "double", "one view"])
def test_features_far_from_zero_have_a_page_with_their_own_numbers(second, tmp_path):
    found = as_embeddings((1e6 + 0.05 * A.double(), second) if second is not None else 1e6 + 0.05 * A.double())
    page = Page(report_html(replace(found, labels=LABELS)))
    exact = cross_correlation(A.double(), A.double() if second is None else second.double())
    summary = CorrelationSummary.from_matrix(exact, N)
    assert f"entries is {summary.rms_off_diagonal:.3g} (expected" in " ".join(" ".join(page.words).split())
    assert page.tables[0][2][:2] == ["dead features", "0"]


# Two embeddings of the same rows, on one page.

MIXED = A @ torch.from_numpy(RNG.normal(size=(D, 13))).float()
ORDER = torch.from_numpy(RNG.permutation(N))


def words_of(text):
    return " ".join(" ".join(Page(text).words).split())


def test_comparison_is_that_of_independent_formulas():
    table = comparison_table(A, MIXED)
    assert table["rows"].tolist() == [N, N]
    assert table["value"][0] == pytest.approx(float(cka(A.double(), MIXED.double())), rel=1e-9)
    near = [np.argsort(np.linalg.norm(z[:, None] - z, axis=2), axis=1)[:, 1:11] for z in (A.numpy(), MIXED.numpy())]
    shares = [len(set(a) & set(b)) / 10 for a, b in zip(*near, strict=True)]
    np.testing.assert_allclose(table.attrs["kept"], shares)
    assert table["value"][1] == pytest.approx(np.mean(shares))
    assert table["unrelated_rows_give"].tolist() == [0, pytest.approx(10 / (N - 1))]
    assert "they depend on each other" in table["remark"][0] and table.attrs["warning"] == ""


def test_unrelated_rows_keep_the_neighbors_that_chance_gives():
    shares = [comparison_table(A, MIXED[torch.from_numpy(RNG.permutation(N))])["value"][1] for _ in range(30)]
    assert np.mean(shares) == pytest.approx(10 / (N - 1), abs=4 * np.std(shares) / 30**0.5)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (A[ORDER], True),
        (3 - 7 * A[ORDER], True),  # neither shift nor scale matters
        (B[ORDER], True),  # the other view
        (torch.cat([A[ORDER], torch.zeros(N, 5)], 1), True),  # of another width
        (A, False),
        (B, False),
        (MIXED, False),
        (torch.from_numpy(RNG.normal(size=(N, 2))).float(), False),  # independent, and of another distribution
        (torch.ones(N, 3), False),
    ],
)
@pytest.mark.filterwarnings("error")
def test_rows_in_another_order_are_named(other, named, caplog):
    with caplog.at_level("INFO", logger="hsic_lab"):
        page = report_html(Embeddings(A), Embeddings(other))
    said = "The rows may be in another order"
    assert (said in words_of(page)) == (said in caplog.text) == named
    assert ('class="verdict bad" role="alert"' in page) == named


def test_labels_that_differ_name_the_order_of_the_rows():
    page = report_html(Embeddings(A, labels=LABELS), Embeddings(MIXED, labels=LABELS[::-1].astype(str)))
    counts = pd.crosstab(LABELS, LABELS[::-1])  # the names of the classes may differ, but a class stays together
    differ = N - max(counts.max(axis=0).sum(), counts.max(axis=1).sum())
    assert differ > 0 and f"in another order: {differ} labels differ" in words_of(page)
    for same in (LABELS.astype(str), LABELS.astype(float).astype(str), np.array(["one", "two", "three"])[LABELS]):
        assert "another order" not in report_html(Embeddings(A, labels=LABELS), Embeddings(B, labels=same))


def test_row_without_a_label_takes_no_labels_from_a_comparison(tmp_path):
    table = pd.DataFrame(A.numpy()).add_prefix("f").assign(label=[f"class {label}" for label in LABELS])
    table.loc[3, "label"] = None
    table.to_csv(tmp_path / "x.csv", index=False)
    found = read_embeddings(tmp_path / "x.csv")
    probe, _ = page_probes(found, Embeddings(MIXED))
    assert probe["features"].tolist() == ["A", "A", "B", "B"]
    assert probe["accuracy"].min() > 0.8, "the rows of B are those of the labels"
    page = report_html(found, Embeddings(MIXED))
    dots = re.findall(r'"(?: style="fill:(#\w+)")? data-words="Row (\d+)(?:, label class (\d))?:', page)
    assert [(int(row), label) for _, row, label in dots] == [
        (row, "" if row == 3 else str(label)) for row, label in enumerate(LABELS)
    ]
    assert dots[3][0] == "" and len({color for color, *_ in dots}) == 4
    words = words_of(page)
    assert "Labels and their prediction are of 239 rows with a label" in words and "Other rows have the color" in words


def test_page_of_two_embeddings_links_their_rows_and_draws_c_of_any_widths():
    labels = np.array(["<b>", "plain", "x"])[LABELS]
    page = report_html(Embeddings(A, labels=labels, name="one"), Embeddings(MIXED, name="<two>"))
    assert page.count('class="dot"') == 2 * N and page.count('tabindex="0"') == 2 and page.count("data-words") == N
    assert "Comparison with <two>" in Page(page).words and "label &lt;b&gt;: " in page
    assert f"Heatmap of {D} x 13 correlations" in " ".join(Page(page).alt)
    c = np.corrcoef(A.T, MIXED.T)[:D, D:]
    assert f"root mean square is {np.sqrt((c**2).mean()):.3f}" in " ".join(" ".join(Page(page).alt).split())
    assert "url(" not in page and "http" not in re.sub(r"base64,[^\"]*", "", page).replace("http://www.w3.org", "")
    same = report_html(Embeddings(A), Embeddings(B))
    assert same.count('<div class="hsic-explorer">') == 2 and "data-words" in same and 'class="legend"' not in same


def test_dots_of_many_rows_are_a_sample(monkeypatch):
    monkeypatch.setattr("hsic_lab.report._page.DOTS", 100)
    page = report_html(Embeddings(A), Embeddings(B))
    assert page.count("data-words") == 80 and "Row 237: " in page


def test_labels_are_compared_where_both_files_have_one(tmp_path, caplog):
    """They are equal but for the names of the classes, and another one is missing in each file."""
    for name, z, row, labels in (("a", A, 3, LABELS), ("b", B, 90, LABELS), ("c", B, 90, LABELS[ORDER])):
        table = pd.DataFrame(z.numpy()).add_prefix("f").assign(label=labels.astype(float))
        table.loc[row, "label"] = None
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    a, b, c = (tmp_path / f"{name}.csv" for name in "abc")
    assert "another order" not in report_html(*map(read_embeddings, (a, b)))
    assert "labels differ" in report_html(*map(read_embeddings, (a, c)))
    assert len(read_embeddings(a, b).labels) == N - 1 and read_embeddings(a, b).z_b is not None
    with pytest.raises(ValueError, match="their rows are not the same images"):
        read_embeddings(a, c)


@pytest.mark.parametrize("given", ["in the table", "in another file"])
def test_dots_have_the_numbers_of_their_rows_in_the_source(tmp_path, given):
    """Rows without a label have no dot, and those after them keep their numbers."""
    table = pd.DataFrame(A[:12].numpy(), columns=[f"f{i}" for i in range(D)])
    labels = pd.DataFrame({"label": [None] * 3 + ["a", "b"] * 4 + [None]})
    if given == "in the table":
        table.join(labels).to_csv(tmp_path / "x.csv", index=False)
        found = read_embeddings(tmp_path / "x.csv")
    else:
        table.to_csv(tmp_path / "x.csv", index=False)
        labels.fillna("").to_csv(tmp_path / "y.csv", index=False)
        found = read_embeddings(tmp_path / "x.csv", labels=tmp_path / "y.csv")
    shown = re.findall(r"Row (\d+), label (\w)", report_html(found))
    assert shown == [(str(row), "ab"[(row - 3) % 2]) for row in range(3, 11)]


def test_different_numbers_of_rows_are_refused_with_both(tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "a.npy", A)
    np.save(tmp_path / "b.npy", B[:77])
    code, said = inspect(monkeypatch, capsys, tmp_path / "a.npy", "--against", tmp_path / "b.npy")
    assert code == 2 and re.search(r"b\.npy, must have a row for each of the 240 rows, got 77", said.err)
    assert not list(tmp_path.glob("*.html"))


def test_command_compares_two_tables_and_drops_columns_of_either(tmp_path, monkeypatch, capsys, caplog):
    for name, z, more in (("a", A, {"image_id": np.arange(N)}), ("b", MIXED, {})):
        table = pd.DataFrame(z.numpy()).add_prefix("f").assign(kind=LABELS.astype(str), **more)
        table.to_parquet(tmp_path / f"{name}.parquet", index=False)
    files = tmp_path / "a.parquet", "--against", tmp_path / "b.parquet"
    code, said = inspect(monkeypatch, capsys, *files, "--drop", "image_id", "--label-column", "kind")
    assert code == 0, said.err
    page = page_of(tmp_path / "a.parquet-vs-b.parquet.html")
    assert [row[:2] for row in page.tables[2][1:]] == [
        [z, e] for z in "AB" for e in ("linear probe", "13 nearest neighbors")
    ]
    assert "CKA (linear)" in caplog.text and "they depend on each other" in caplog.text


def test_run_is_probed_by_depth_and_compared_with_another(tmp_path, monkeypatch, capsys, caplog):
    config = TrainConfig(dataset="digits", epochs=1, width=1, projector=(12, 6), precision="float32")
    runs = [train(replace(config, seed=seed), tmp_path / str(seed), progress=False) for seed in (0, 1)]
    found = as_embeddings(runs[0])
    table = depth_table(found)
    assert table["layer"].tolist() == ["encoder", "projector 1", "projector 2"]
    assert table["features"].tolist() == [16, 12, 6]
    assert torch.equal(found.layers["encoder"], found.features)
    projected = extract_features(torch.nn.Sequential(runs[0].encoder, runs[0].projector), load("digits").test.images)
    torch.testing.assert_close(found.layers["projector 2"], projected)
    held = np.sort(train_test_split(np.arange(445), test_size=0.3, stratify=found.labels, random_state=0)[1])
    for _, row in table.iterrows():
        x = found.layers[row["layer"]][held]
        one_hot = torch.nn.functional.one_hot(torch.from_numpy(found.labels[held])).double()
        assert row["CKA with labels"] == pytest.approx(float(cka(x.double(), one_hot)), rel=1e-6)
        assert row["RankMe"] == pytest.approx(rankme(x), rel=1e-4)
    with caplog.at_level("INFO", logger="hsic_lab"):
        page = page_of(write_report(runs[0], tmp_path / "page.html", reference=tmp_path / "1"))
    assert "CKA with labels" in caplog.text and "projector 2" in caplog.text
    depth = page.tables[3]
    assert depth[0][:2] == ["layer", "accuracy"] and [row[0] for row in depth[1:]] == table["layer"].tolist()
    assert "(features of the encoder)" in " ".join(page.words)
    table = pd.DataFrame(found.features.numpy()).add_prefix("f").assign(species=found.labels)
    table.to_csv(tmp_path / "x.csv", index=False)
    choice = "--label-column", "species", "--against"
    code, said = inspect(monkeypatch, capsys, tmp_path / "x.csv", *choice, tmp_path / "0")
    assert code == 0, said.err
    code, said = inspect(monkeypatch, capsys, tmp_path / "0", *choice, tmp_path / "x.csv")
    assert code == 2 and "is a run: columns and arrays are chosen in files only" in said.err


# The rows with two axes, for other tools.


def test_atlas_has_axes_labels_and_columns_that_are_no_features(tmp_path, monkeypatch, capsys):
    table = (
        pd.DataFrame(A.numpy()).add_prefix("f").assign(image=[f"{i}.png" for i in range(N)], kind=LABELS.astype(str))
    )
    table.loc[3, "kind"] = None
    table.to_parquet(tmp_path / "x.parquet", index=False)
    chosen = tmp_path / "x.parquet", "--drop", "image", "--label-column", "kind"
    code, said = inspect(monkeypatch, capsys, *chosen, "--atlas", tmp_path / "atlas.parquet")
    assert code == 0 and "--x projection_x --y projection_y" in said.err, said.err
    atlas = pd.read_parquet(tmp_path / "atlas.parquet")
    assert list(atlas) == ["projection_x", "projection_y", "row", "image", "label"] and atlas["row"].tolist() == [
        *range(N)
    ]
    assert atlas["image"][7] == "7.png" and atlas["label"].isna().tolist() == [i == 3 for i in range(N)]
    oracle = PCA(2, svd_solver="full").fit_transform(A.numpy())
    np.testing.assert_allclose(np.abs(atlas[["projection_x", "projection_y"]]), np.abs(oracle), atol=1e-4)


def test_columns_with_names_of_the_atlas_get_another_name(tmp_path):
    more = {"row": np.arange(N) + 1000, "row_": "x", "label": "y", "species": LABELS}
    table = pd.DataFrame(A.numpy()).add_prefix("f").assign(**more)
    table.to_csv(tmp_path / "x.csv", index=False)
    found = read_embeddings(tmp_path / "x.csv", drop=["row*", "label"], label="species")
    atlas = pd.read_parquet(write_atlas(found, tmp_path / "atlas.parquet"))
    assert atlas["row"].tolist() == [*range(N)] and atlas["label"].tolist() == table["species"].tolist()
    assert atlas["row_"].tolist() == table["row"].tolist() and atlas["row__"][0] == "x" and atlas["label_"][0] == "y"
    assert f"Row {N - 1}, label" in report_html(found)


def test_atlas_of_arrays_files_and_runs(tmp_path):
    read = lambda source: pd.read_parquet(write_atlas(source, tmp_path / "new" / "atlas.parquet"))  # noqa: E731
    assert list(read(A)) == ["projection_x", "projection_y", "row"] and len(read(A)) == N
    assert read(Embeddings(A, labels=LABELS))["label"].tolist() == LABELS.tolist()
    assert read(Embeddings(A, labels=LABELS[:9], features=OTHER[:9]))["label"].tolist() == LABELS[:9].tolist()
    np.savez(tmp_path / "x.npz", z=A, y=LABELS)
    assert read(tmp_path / "x.npz")["label"].tolist() == LABELS.tolist()
    again = Embeddings(A, table=pd.DataFrame({"projection_x": ["of another file"] * N, "id": range(N)}))
    assert list(read(again)) == ["projection_x", "projection_y", "id"] and read(again)["projection_x"].dtype != object
    assert not read(torch.ones(5, 3))[["projection_x", "projection_y"]].any(axis=None)
    config = TrainConfig(dataset="digits", epochs=1, width=1, projector=(6,))
    run = train(config, tmp_path / "run", progress=False)
    assert read(run)["label"].tolist() == [str(label) for label in load("digits").test.labels.tolist()]
    with pytest.raises(ValueError, match=r"a name ending in \.parquet, got .*atlas\.csv"):
        write_atlas(A, tmp_path / "atlas.csv")


def test_columns_of_other_units_do_not_hide_a_dependence(tmp_path):
    noise = np.random.default_rng(0)
    x = noise.normal(size=(200, 3))
    table = pd.DataFrame(x, columns=["f1", "f2", "f3"]).assign(salary=noise.normal(5e4, 1.5e4, 200))
    table.assign(label=np.where(x[:, 0] > 0, "a", "b")).to_csv(tmp_path / "units.csv", index=False)
    found = read_embeddings(tmp_path / "units.csv")
    (row,) = independence_table(found).to_dict("records")
    assert row["pvalue"] < 0.01 and row["test"].endswith("columns standardized, because their spreads differ")
    words = words_of(report_html(found))
    assert "If the columns have different units, divide each by its standard deviation" in words
    # Columns of one unit, and features without names, are compared as they are.
    for other in (replace(found, z_a=found.z_a[:, :3], columns=found.columns[:3]), replace(found, columns=())):
        assert "standardized" not in independence_table(other)["test"][0]


def test_labels_that_occur_once_cannot_be_tested():
    z = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    (row,) = independence_table(Embeddings(z, labels=np.array([f"row {i}" for i in range(30)]))).to_dict("records")
    assert row["answer"] == "cannot be tested: no label occurs twice" and np.isnan(row["pvalue"])
