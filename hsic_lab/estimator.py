"""Plain rows of numbers in the place of images: how they travel through `train`, their views, their encoder."""

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import effective_n_jobs
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from hsic_lab.datasets import ImageData, Images, from_arrays
from hsic_lab.evaluation import extract_features
from hsic_lab.training import Run, TrainConfig, train
from hsic_lab.training._run import SETTINGS

RowViews = Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]]


class CorruptedRows:
    """Two views of each row `(m, p)`: in each view, each entry is replaced with probability `corruption` by the same
    column's entry of a random row of the batch.

    The corruption of SCARF (Bahri, Jiang, Tay and Metzler 2022, arXiv 2106.15147), which needs neither units nor
    additive noise: a replaced entry is one that the column takes. SCARF corrupts 60 % of one view and leaves the other
    alone; here both views have one law. What the views share is what several columns say together.
    Raises ValueError unless `0 < corruption < 1`.
    """

    def __init__(self, corruption: float = 0.3) -> None:
        if not 0 < corruption < 1:
            raise ValueError(f"corruption must be a share between 0 and 1, got {corruption!r}")
        self.corruption = corruption

    def __call__(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return self._view(rows, generator), self._view(rows, generator)

    def _view(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        chosen = torch.rand(rows.shape, generator=generator, device=rows.device) < self.corruption
        donors = torch.randint(len(rows), rows.shape, generator=generator, device=rows.device)
        return torch.where(chosen, rows.gather(0, donors), rows)


class RowEncoder(nn.Sequential):
    """Two linear layers of `16 width` features, each with batch normalization and ReLU: `(m, p) -> (m, 16 width)`."""

    def __init__(self, width: int, columns: int) -> None:
        features = 16 * width
        super().__init__(
            nn.Linear(columns, features, bias=False),
            nn.BatchNorm1d(features),
            nn.ReLU(inplace=True),
            nn.Linear(features, features, bias=False),
            nn.BatchNorm1d(features),
            nn.ReLU(inplace=True),
        )


class OnImages(nn.Module):
    """An encoder of rows `(m, p)` that reads them as images `(m, p, h, w)`, off the pixel at the top left."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder(images[:, :, 0, 0])


def as_images(rows: Tensor) -> Images:
    """Float32 rows `(n, p)` as uint8 images `(n, p, 4, 1)` that hold each number's four bytes: nothing is rounded."""
    pixels = rows.contiguous().view(torch.uint8).view(*rows.shape, 4, 1)
    return Images(pixels, torch.zeros(len(rows), dtype=torch.int64))


def views_of_images(views: RowViews) -> Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]]:
    """Views of rows as views of what `as_images` made of them: float32 `(m, p, 1, 1)` each."""

    def pair(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = images.flatten(2).contiguous().view(torch.float32)[:, :, 0]
        view_a, view_b = views(rows, generator)
        return view_a[:, :, None, None], view_b[:, :, None, None]

    return pair


HELD = 2048  # rows at the start of X of whose views C is kept


class SelfSupervisedEncoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Learn features from pairs of views of X, without y; `transform` returns them, float32 `(n, p)`.

    X is one of

    * images: `(n, h, w)`, `(n, h, w, c)` or `(n, c, h, w)` with c = 1 or 3, uint8 or floats in [0, 1] (rounded to
      1/255), or the same flattened to `(n, pixels)` with `image_shape`, so that they pass through pipelines. To
      scikit-learn a image is the row of its pixels: `n_features_in_` is their number.
    * rows of numbers `(n, p)`: columns are standardized (constant ones become 0), the encoder is an MLP and the views
      are `rows.CorruptedRows`.

    Parameters
    ----------
    loss, lambda_param, projector, width, epochs, learning_rate : see `TrainConfig`; d is the projector's last width.
    batch_size : pairs that the loss sees at once; if X has fewer rows, all of them. A last ragged batch is left out,
        of other rows in each epoch.
    encoder : "auto" (`ConvEncoder` or `rows.RowEncoder`), "resnet18", "resnet34", "resnet50" for images, or a module
        of your own, from images on the scale of `views.normalize` (or rows, standardized) to `(n, p)`; it is copied.
    views : None for `TwoViews` (images) or `CorruptedRows` (rows), or a callable `(x, generator) -> (view_a, view_b)`
        of uint8 images `(m, c, h, w)`, or of standardized float32 rows `(m, p)`.
    image_shape : of the images in flattened rows, `(h, w)`, `(h, w, c)` or `(c, h, w)`.
    random_state : as everywhere in scikit-learn; an integer repeats the fit.
    n_jobs : torch's threads in fit and transform. None leaves them as they are, -1 takes all cores.
    device : "auto" (CUDA where there is one), "cpu", "cuda". The fitted networks are kept on the CPU.
    verbose : a progress bar if it is not 0.

    Attributes
    ----------
    encoder_, projector_ : the trained modules, in evaluation mode.
    history_ : data frame, one row a logged step: loss and its terms, mean diagonal and off-diagonal of C.
    correlation_ : `(d, d)` array, C after training, of views of the first 2048 rows of X in evaluation mode.
    n_features_in_, feature_names_in_ : as everywhere in scikit-learn.

    An interrupted fit (Ctrl-C) raises KeyboardInterrupt and keeps these as they were by then: it can transform.
    A loss that is not finite raises FloatingPointError. Fewer than two rows raise ValueError.
    """

    def __init__(
        self,
        loss: str = "barlow_twins",
        *,
        lambda_param: float | None = None,
        projector: tuple[int, ...] = (512, 128),
        width: int = 16,
        encoder: str | nn.Module = "auto",
        views: Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]] | None = None,
        image_shape: tuple[int, ...] | None = None,
        epochs: int = 22,
        batch_size: int = 256,
        learning_rate: float = 2e-3,
        random_state: int | np.random.RandomState | None = None,
        n_jobs: int | None = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.loss = loss
        self.lambda_param = lambda_param
        self.projector = projector
        self.width = width
        self.encoder = encoder
        self.views = views
        self.image_shape = image_shape
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.device = device
        self.verbose = verbose

    def fit(self, X: ArrayLike | Tensor, y: Any = None) -> "SelfSupervisedEncoder":
        """Train on X; y is ignored. Returns self."""
        shape = tuple(X.shape[1:]) if getattr(X, "ndim", 2) > 2 else self.image_shape
        rows = self._rows(X, reset=True)
        self._image_shape = None if shape is None else tuple(shape)
        if self._image_shape is None:
            self._scaler = StandardScaler().fit(rows)
        config = TrainConfig(
            loss=self.loss,
            lambda_param=self.lambda_param,
            projector=tuple(self.projector),
            width=self.width,
            encoder=self.encoder if isinstance(self.encoder, str) and self.encoder != "auto" else "conv",
            epochs=self.epochs,
            batch_size=min(self.batch_size, len(rows)),
            learning_rate=self.learning_rate,
            snapshots=2,
            checkpoint_every=self.epochs,
            device=self.device,
            seed=check_random_state(self.random_state).randint(np.iinfo(np.int32).max),
        )
        images = self._images(rows)
        data = ImageData("X", images, images.subset(slice(HELD)), ("unknown",))
        encoder, views = self._own_encoder(config.seed), self.views
        if self._image_shape is None:
            views = views_of_images(views or CorruptedRows())
        with tempfile.TemporaryDirectory() as folder, _threads(self.n_jobs):
            try:
                run = train(config, Path(folder, "run"), data, bool(self.verbose), encoder=encoder, views=views)
            except KeyboardInterrupt:
                if Path(folder, "run", SETTINGS).exists():  # else it came before the first step
                    self._keep(Run.load(Path(folder, "run"), encoder))
                raise
        self._keep(run)
        return self

    def transform(self, X: ArrayLike | Tensor) -> np.ndarray:
        """The encoder's features of X, float32 `(n, p)`: they depend on no other row."""
        check_is_fitted(self, "encoder_")
        with _threads(self.n_jobs):
            rows = self._rows(X, reset=False)
            if self._image_shape is None:
                images = self._standardized(rows)[:, :, None, None]
            else:
                images = self._images(rows).images
            return extract_features(self.encoder_, images).numpy()

    def _rows(self, X: ArrayLike | Tensor, reset: bool) -> np.ndarray:
        """X as rows that scikit-learn has checked."""
        of_images = getattr(X, "ndim", 2) > 2 or (self.image_shape if reset else self._image_shape) is not None
        if of_images and (kind := np.asarray(X).dtype).kind in "iu" and kind != np.uint8:
            raise ValueError(f"X holds images as {kind}: convert them to uint8, or to floats in [0, 1]")
        if getattr(X, "ndim", 2) > 2:
            shape = tuple(X.shape[1:])
            if not reset and shape != self._image_shape:
                raise ValueError(f"X has images of shape {shape}, fit saw {self._image_shape or 'rows of numbers'}")
            X = np.asarray(X).reshape(len(X), -1)
        dtypes = [np.float64, np.float32, np.uint8]
        return validate_data(self, X, reset=reset, dtype=dtypes, ensure_min_samples=2 if reset else 1)

    def _images(self, rows: np.ndarray) -> Images:
        """Rows as images `(n, c, h, w)`; those of plain numbers hold the bytes of what is standardized."""
        if self._image_shape is None:
            return as_images(self._standardized(rows))
        if rows.shape[1] != np.prod(self._image_shape):
            raise ValueError(f"image_shape {self._image_shape} does not fit the {rows.shape[1]} columns of X")
        images, labels = rows.reshape(len(rows), *self._image_shape), np.zeros(len(rows), dtype=np.int64)
        return from_arrays(images, labels, images[:1], labels[:1]).train

    def _standardized(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(self._scaler.transform(rows).astype(np.float32))

    def _own_encoder(self, seed: int) -> nn.Module | None:
        """The module that `train` is given: None if the settings name it."""
        rows = self._image_shape is None
        if isinstance(self.encoder, str):
            if not rows:
                return None
            if self.encoder != "auto":
                raise ValueError(f"encoder must be 'auto' or a module where X holds rows, got {self.encoder!r}")
            with torch.random.fork_rng(devices=[]):
                torch.random.default_generator.manual_seed(seed)
                return OnImages(RowEncoder(self.width, self.n_features_in_))
        own = copy.deepcopy(self.encoder)
        return OnImages(own) if rows else own

    def _keep(self, run: Run) -> None:
        self.encoder_, self.projector_ = run.encoder.cpu().eval(), run.projector.cpu().eval()
        self.history_ = run.history
        self.correlation_ = run.snapshots[max(run.snapshots)].numpy()
        self._n_features_out = self.projector_[0].in_features

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = []  # features are float32, whatever X is
        return tags


@contextmanager
def _threads(n_jobs: int | None) -> Iterator[None]:
    """Torch with as many threads as `n_jobs` means within the block, as before afterwards."""
    before = torch.get_num_threads()
    if n_jobs is not None:
        torch.set_num_threads(effective_n_jobs(n_jobs))
    try:
        yield
    finally:
        torch.set_num_threads(before)
