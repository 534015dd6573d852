"""`DigitScenes`: distributions of the factors, what pairs share, and what is rendered."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from hsic_lab.datasets import DigitScenes
from hsic_lab.datasets.digit_scenes import CENTER, COLUMNS, CROP_SCALE, SCALE, SHAREABLE, digit_index

N = 4000
RANGES = {
    "class": (0, 9), "digit": (0, 1796), "photograph": (0, 1), "x": CENTER, "y": CENTER, "scale": SCALE,
    "red": (0, 1), "green": (0, 1), "blue": (0, 1),
    "crop_x": (0, 1), "crop_y": (0, 1), "crop_scale": CROP_SCALE,
}  # fmt: skip


@pytest.fixture(scope="module")
def scenes():
    return DigitScenes("train")


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def as_array(factors, columns=COLUMNS):
    return np.stack([factors[column].double().numpy() for column in columns], axis=1)


def correlations(a, b):
    """|Pearson correlation| of every column of a with every column of b."""
    return np.abs(np.corrcoef(a, b, rowvar=False)[: a.shape[1], a.shape[1] :])


@pytest.mark.parametrize("split", ["train", "test"])
def test_drawn_digits_belong_to_the_split_and_to_their_class(split):
    factors = DigitScenes(split).draw(20_000, 0)
    drawn = set(factors["digit"].tolist())
    assert drawn == set(digit_index(split).tolist())  # 20 000 draws reach every one of at most 1352 digits
    assert (load_digits().target[factors["digit"].numpy()] == factors["class"].numpy()).all()


def test_columns_ranges_and_marginals(scenes):
    factors = scenes.draw(N, 3)
    assert tuple(factors) == COLUMNS and set(COLUMNS) == set(RANGES)
    for column, (low, high) in RANGES.items():
        values = factors[column].double()
        assert values.shape == (N,)
        assert low <= values.min() and values.max() <= high + 1e-6, column
        if column not in ("class", "digit", "photograph"):
            spread = (high - low) / 12**0.5  # uniform: mean within five standard errors of the middle
            assert abs(values.mean() - (low + high) / 2) < 5 * spread / N**0.5, column
            assert values.std() == pytest.approx(spread, rel=0.05), column
    counts = factors["class"].bincount(minlength=10).double()
    assert ((counts - N / 10) ** 2 / (N / 10)).sum() < 27.9  # chi-square, 9 degrees of freedom, p = 0.001
    assert factors["photograph"].double().mean() == pytest.approx(0.5, abs=5 * 0.5 / N**0.5)


def test_factors_are_uncorrelated_within_a_scene(scenes):
    array = as_array(scenes.draw(N, 4), [column for column in COLUMNS if column != "digit"])
    matrix = correlations(array, array)
    assert matrix[~np.eye(len(matrix), dtype=bool)].max() < 5 / N**0.5


@pytest.mark.parametrize(
    "shared",
    [(), *((name,) for name in SHAREABLE), ("class", "digit"), ("colour", "background"), tuple(SHAREABLE)],
    ids=lambda shared: "+".join(shared) or "nothing",
)
def test_pairs_share_exactly_what_is_named(scenes, shared):
    a, b = scenes.draw_pairs(N, 5, shared)
    same = {column for name in shared for column in SHAREABLE[name]}
    for column in same:
        assert torch.equal(a[column], b[column]), column
    for row, column in enumerate(COLUMNS):
        if column in same or (column == "digit" and "class" in same):
            continue
        expected = 1 / {"class": 10, "photograph": 2}.get(column, N)  # how often two independent draws agree
        assert (a[column] == b[column]).double().mean() < expected + 5 * (expected / N) ** 0.5, column
        # Independent of every column of the other view, not of its own counterpart only.
        assert correlations(as_array(a), as_array(b)[:, [row]]).max() < 5 / N**0.5, column


def test_sharing_the_class_draws_another_digit_of_it(scenes):
    a, b = scenes.draw_pairs(N, 6, ("class",))
    assert torch.equal(a["class"], b["class"])
    target = load_digits().target
    assert (target[b["digit"].numpy()] == b["class"].numpy()).all()
    agree = (a["digit"] == b["digit"]).double().mean()
    assert agree == pytest.approx(10 / 1352, abs=5 * (10 / 1352 / N) ** 0.5)


def test_first_view_does_not_depend_on_what_is_shared(scenes):
    choices = [(), ("class",), ("digit", "colour")]
    views = [as_array(scenes.draw_pairs(50, 7, shared)[0]) for shared in choices]
    assert (views[0] == views[1]).all() and (views[0] == views[2]).all()


def test_pairs_are_the_rendered_draws(scenes):
    images = scenes.pairs(20, seeded(8), ("position",))
    for image, factors in zip(images, scenes.draw_pairs(20, seeded(8), ("position",)), strict=True):
        assert torch.equal(image, scenes.render(factors))


def test_render_is_a_function_of_each_row_alone(scenes):
    factors = scenes.draw(1500, 9)  # more than one block
    images = scenes.render(factors)
    assert images.dtype == torch.uint8 and images.shape == (1500, 3, 32, 32)
    order = torch.randperm(1500, generator=seeded(0))
    assert torch.equal(scenes.render({c: v[order] for c, v in factors.items()}), images[order])
    alone = [scenes.render({c: v[i : i + 1] for c, v in factors.items()}) for i in (0, 1023, 1024, 1499)]
    assert torch.equal(torch.cat(alone), images[[0, 1023, 1024, 1499]])
    assert torch.equal(DigitScenes("test").render(factors), images)  # the split decides what is drawn


@pytest.mark.parametrize("column", COLUMNS)
def test_every_column_but_the_class_is_visible(scenes, column):
    factors = scenes.draw(100, 10)
    changed = factors | {column: scenes.draw(100, 11)[column]}
    moved = changed[column] != factors[column]
    differs = (scenes.render(changed) != scenes.render(factors)).flatten(1).any(dim=1)
    assert torch.equal(differs, torch.zeros_like(moved) if column == "class" else moved)


def test_ink_has_the_color_and_lies_where_the_factors_say(scenes):
    factors = scenes.draw(400, 12)
    other = factors | {"red": 1 - factors["red"], "green": 1 - factors["green"], "blue": 1 - factors["blue"]}
    images, recolored = scenes.render(factors).double(), scenes.render(other).double()
    changed = (images - recolored).abs().sum(dim=1)  # zero outside ink and outline
    middle = (torch.arange(32) + 0.5) / 32
    for axis, column in ((1, "x"), (2, "y")):
        weight = changed.sum(dim=axis)
        center = (weight * middle).sum(1) / weight.sum(1)
        distance = (middle - factors[column][:, None]).abs()
        assert ((distance <= factors["scale"][:, None] * 0.75) | (weight == 0)).all()
        assert (center - factors[column]).abs().max() < 0.17
        assert np.corrcoef(center, factors[column])[0, 1] > 0.9
    # Somewhere a stroke is opaque: the scene holds the digit's own color.
    color = torch.stack([factors[c] for c in ("red", "green", "blue")], dim=1).double() * 255
    distance = (images - color[:, :, None, None]).abs().amax(dim=1).flatten(1).amin(dim=1)
    assert (distance <= 1).double().mean() > 0.97


def test_strokes_contrast_with_their_surroundings(scenes):
    factors = scenes.draw(1000, 13)
    images = scenes.render(factors).double() / 255
    color = torch.stack([factors[c] for c in ("red", "green", "blue")], dim=1).double()
    gap = (images - color[:, :, None, None]).abs().mean(dim=1)
    ink = (gap < 0.01).double()[:, None]
    ring = torch.nn.functional.max_pool2d(ink, 5, 1, 2)[:, 0] - ink[:, 0]  # within two pixels of the ink
    visible = ink.flatten(1).sum(1) > 20
    contrast = ((gap * ring).flatten(1).sum(1) / ring.flatten(1).sum(1))[visible]
    assert visible.double().mean() > 0.99
    assert contrast.min() > 0.14  # without outlines the worst is 0.06, a stroke that nobody sees


def test_digit_survives_rendering_at_a_known_place(scenes):
    """Oracle: white digits in the center, averaged back to 8x8, are scikit-learn's digits."""
    n = 300
    digit = digit_index("train")[:n]
    fixed = {c: torch.full((n,), v) for c, v in {
        "x": 0.5, "y": 0.5, "scale": 0.5, "red": 1.0, "green": 1.0, "blue": 1.0,
        "photograph": 1, "crop_x": 0.0, "crop_y": 0.0, "crop_scale": 0.3,
    }.items()}  # fmt: skip
    fixed |= {"digit": digit, "class": torch.from_numpy(load_digits().target)[digit].long()}
    box = scenes.render(fixed)[:, :, 8:24, 8:24].double().mean(dim=1, keepdim=True)
    found = torch.nn.functional.avg_pool2d(box, 2).flatten(1).numpy()
    truth = load_digits().data[digit.numpy()]
    matches = np.corrcoef(found, truth)[:n, n:]
    assert (matches.argmax(axis=1) == np.arange(n)).mean() > 0.95
    assert matches.diagonal().mean() > 0.85


def test_sample_is_deterministic_and_labelled(scenes):
    first, other = scenes.sample(64, 14), scenes.sample(64, 15)
    second = DigitScenes("train").sample(64, seeded(14))
    assert torch.equal(first.images, second.images) and first.factors.equals(second.factors)
    assert not torch.equal(first.images, other.images)
    assert tuple(first.factors.columns) == COLUMNS and len(first.factors) == len(first) == 64
    assert (first.factors["class"].to_numpy() == first.labels.numpy()).all()


def test_generator_advances(scenes):
    generator = seeded(16)
    assert not torch.equal(scenes.pairs(8, generator)[0], scenes.pairs(8, generator)[0])


def test_global_random_state_is_untouched(scenes):
    torch.manual_seed(0)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    scenes.sample(10, 1)
    scenes.pairs(10, 2)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()  # noqa: NPY002


@pytest.mark.parametrize("size", [16, 48])
def test_other_sizes_show_the_same_scene(size):
    factors = DigitScenes().draw(50, 17)
    small = DigitScenes(size=16).render(factors).double()
    image = DigitScenes(size=size).render(factors).double()
    assert image.shape == (50, 3, size, size)
    shrunk = torch.nn.functional.adaptive_avg_pool2d(image, 16)
    assert np.corrcoef(shrunk.flatten(), small.flatten())[0, 1] > 0.9


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda s: DigitScenes("valid"), ValueError, "'valid'"),
        (lambda s: DigitScenes(size=4), ValueError, "4"),
        (lambda s: s.draw(0, 0), ValueError, "got 0"),
        (lambda s: s.draw(1.5, 0), TypeError, "n must be an integer of at least 1, got 1.5"),
        (lambda s: s.draw_pairs(4, 0, ("digit", "shape")), ValueError, r"\['shape'\].*'background', 'class'"),
        (lambda s: s.pairs(4, 0, ("x",)), ValueError, r"\['x'\].*'position'"),
        (lambda s: s.draw_pairs(4, 0, "digit"), TypeError, "collection"),
    ],
)
def test_bad_input(scenes, call, error, message):
    with pytest.raises(error, match=message):
        call(scenes)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_renders_the_same_scenes(scenes):
    factors = scenes.draw(200, 18)
    there = scenes.render({column: values.cuda() for column, values in factors.items()})
    assert there.is_cuda
    assert (there.cpu().int() - scenes.render(factors).int()).abs().max() <= 2
    pair = scenes.pairs(16, torch.Generator("cuda").manual_seed(0), ("class",))
    assert all(view.is_cuda and view.shape == (16, 3, 32, 32) for view in pair)
