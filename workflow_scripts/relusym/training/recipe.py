"""How a net is trained: a `training` section or a stage of a `recipe` in the config."""

import math
from dataclasses import dataclass

from relusym.errors import UserError
from relusym.registry import Entry, one_of

# Each is made from the net, the recipe and the symmetry; see `objectives.Objective`.
OBJECTIVES = {
    "supervised": Entry("relusym.training.objectives:Supervised"),
    "simsiam": Entry("relusym.training.objectives:SelfSupervised"),
    "linear": Entry("relusym.training.objectives:Linear"),
}
CHOICES = {
    "objective": OBJECTIVES,
    "schedule": ("linear", "cosine", "step"),
    "optimizer": ("sgd", "lars"),
    "precision": ("auto", "float32", "bfloat16", "float16"),
}


@dataclass(frozen=True)
class Recipe:
    """One training.

    Attributes:
        epochs, batch_size: passes over the images; images a step, of all processes together.
        learning_rate: its peak.
        objective: one of `OBJECTIVES`.
        schedule: "linear" and "cosine" end at zero; "step" divides the rate by ten after each third of the epochs.
        momentum, weight_decay: of SGD.
        warmup_epochs: over which the rate grows linearly from zero.
        optimizer: "sgd" or "lars".
        crop_padding: pixels of zero padding before the random crop of images kept on the device.
        augmentation: whether each image is moved by a random power of the symmetry's generator.
        invariance_weight: factor on the invariance loss.
        invariance_from: share of the epochs after which the invariance loss is on; None leaves it out.
        save_every: epochs between saved training states.
        precision: of the forward and backward pass: "float32", "bfloat16" or "float16" (autocast), or "auto", see
            `loop.autocast_to`.
        sync_batch_norm: whether batch norm sees the batches of all processes (GPUs only).
        processes: how many train the net together.
        dimensions, bottleneck: of SimSiam's projection and of its predictor's hidden layer.

    Raises (on creation):
        UserError: a choice that there isn't, or a batch that the processes can't share.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    objective: str = "supervised"
    schedule: str = "linear"
    momentum: float = 0.9
    weight_decay: float = 0.0
    warmup_epochs: float = 0
    optimizer: str = "sgd"
    crop_padding: int = 0
    augmentation: bool = True
    invariance_weight: float = 1.0
    invariance_from: float | None = None
    save_every: int = 1
    precision: str = "auto"
    sync_batch_norm: bool = False
    processes: int = 1
    dimensions: int = 2048
    bottleneck: int = 512

    def __post_init__(self) -> None:
        for key, allowed in CHOICES.items():
            if getattr(self, key) not in allowed:
                raise UserError(one_of(key, getattr(self, key), allowed))
        if self.batch_size % self.processes:
            raise UserError(
                f"batch_size: {self.batch_size} can't be shared evenly by {self.processes} processes"
            )

    @property
    def views(self) -> int:
        """How many views of each image its objective takes."""
        return OBJECTIVES[self.objective].load().views

    @property
    def classifies(self) -> bool:
        """Whether its objective makes a classifier."""
        return OBJECTIVES[self.objective].load().classifies

    def learning_rate_at(self, epoch: float) -> float:
        """The learning rate at a point in training, in epochs from 0 to `epochs`."""
        if epoch < self.warmup_epochs:
            return self.learning_rate * epoch / self.warmup_epochs
        if self.schedule == "step":
            return self.learning_rate / 10 ** math.floor(3 * epoch / self.epochs)
        if self.schedule == "linear":
            return self.learning_rate * (self.epochs - epoch) / (self.epochs - self.warmup_epochs)
        share = (epoch - self.warmup_epochs) / (self.epochs - self.warmup_epochs)
        return self.learning_rate * ((1 + math.cos(math.pi * share)) / 2)

    def invariance_at(self, epoch: int) -> bool:
        """Whether the invariance loss is on in this epoch (counted from 0)."""
        return self.invariance_from is not None and epoch >= self.invariance_from * self.epochs
