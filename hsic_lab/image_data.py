"""What a data set is once it is read."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from hsic_lab.images import Images
from hsic_lab.scenes import DigitScenes

_SAMPLED = 256  # pictures of a part that enter its fingerprint


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set: labelled splits, the names of the classes, and more where a set has more.

    unlabelled: pictures to train on without labels, beside ``train``; their labels are -1
    scenes: a renderer of endless training pairs, when the set is synthetic

    Raises ValueError for parts whose pictures have different shapes.
    """

    name: str
    train: Images
    test: Images
    class_names: tuple[str, ...]
    unlabelled: Images | None = None
    scenes: DigitScenes | None = None

    def __post_init__(self) -> None:
        parts = {"train": self.train, "test": self.test, "unlabelled": self.unlabelled}
        shapes = {name: tuple(part.images.shape[1:]) for name, part in parts.items() if part is not None}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"the pictures of all parts of {self.name!r} must have one shape (c, h, w), got {shapes}")

    @property
    def trained_on(self) -> tuple[Tensor, ...]:
        """The pictures that training without labels sees, the parts of an `ImageSource`: train, then unlabelled."""
        return (self.train.images,) if self.unlabelled is None else (self.train.images, self.unlabelled.images)

    @cached_property
    def fingerprint(self) -> str:
        """What tells the pictures that are trained on from others: their shape, and a hash of some hundred of them."""
        shapes, content = [], hashlib.sha256()
        for part in self.trained_on:
            shapes.append(" x ".join(map(str, part.shape)))
            for picture in part[:: max(1, len(part) // _SAMPLED)]:
                content.update(picture.cpu().contiguous().numpy().tobytes())
        return f"{' and '.join(shapes)} ({content.hexdigest()[:16]})"
