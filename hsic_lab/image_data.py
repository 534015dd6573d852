"""What a data set is once it is read."""

from dataclasses import dataclass

from torch import Tensor

from hsic_lab.images import Images
from hsic_lab.scenes import DigitScenes


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set: labelled splits, the names of the classes, and more where a set has more.

    unlabelled: pictures to train on without labels, beside ``train``; their labels are -1
    scenes: a renderer of endless training pairs, when the set is synthetic
    """

    name: str
    train: Images
    test: Images
    class_names: tuple[str, ...]
    unlabelled: Images | None = None
    scenes: DigitScenes | None = None

    @property
    def trained_on(self) -> tuple[Tensor, ...]:
        """The pictures that training without labels sees, the parts of an `ImageSource`: train, then unlabelled."""
        return (self.train.images,) if self.unlabelled is None else (self.train.images, self.unlabelled.images)
