"""How a net is trained: a `training` section or a stage of a `recipe` in the config."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from relusym.schema import (
    Count,
    Entry,
    Few,
    Flag,
    NotNegative,
    Number,
    OrNull,
    Positive,
    Section,
    among,
    key,
    together,
)

# Each is made from the net, the recipe and the symmetry; see `objectives.Objective`.
OBJECTIVES = {
    "supervised": Entry("relusym.training.objectives:Supervised"),
    "simsiam": Entry("relusym.training.objectives:SelfSupervised"),
    "linear": Entry("relusym.training.objectives:Linear"),
}
BelowOne = Annotated[float, Field(ge=0, lt=1), Number]


class Recipe(Section):
    """All settings of a training that its net depends on; ValueError (from `read`, UserError) if they contradict."""

    epochs: Count = key("passes over the images")
    batch_size: Count = key("images per step, over all processes")
    learning_rate: Positive = key("the peak")
    objective: Annotated[str, among(OBJECTIVES)] = key(
        "`supervised`, `simsiam`, or `linear`: a linear layer on the previous stage's frozen net",
        "supervised",
    )
    schedule: Literal["linear", "cosine", "step"] = key(
        "`linear` and `cosine` end at zero; `step`: ÷10 after each third of the epochs", "linear"
    )
    momentum: BelowOne = key("of SGD", 0.9)
    weight_decay: NotNegative = key("of SGD", 0.0)
    warmup_epochs: NotNegative = key("over which the learning rate rises from zero to its peak", 0)
    optimizer: Literal["sgd", "lars"] = key("`lars`: a learning rate per layer, for large batches", "sgd")
    crop_padding: Few = key("pixels of zeros around an image before its random crop", 0)
    augmentation: Flag = key(
        "each training image is moved by a random element of the group: flipped with probability 1/2", True
    )
    invariance_loss: Literal["mean_norm", "whole_batch", "mean_square"] = key(
        "of the differences of two views' logits: `mean_norm`, their mean norm over images; `whole_batch`, the whole "
        "batch's norm, divided by the number of images; `mean_square`, the mean square of their entries",
        "mean_norm",
    )
    invariance_weight: NotNegative = key(
        "factor on the invariance loss; 0.18 over 20 epochs gave about the paper's invariance error (docs/laptop.md), "
        "1 over 100 a tenth of it (docs/paper.md)",
        1.0,
    )
    invariance_from: OrNull[BelowOne] = key(
        "share of the epochs after which the invariance loss is switched on; null: never", None
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = key(
        "of forward and backward pass; `auto`: bfloat16 where the device is fast at it, else float32", "auto"
    )
    sync_batch_norm: Flag = key("whether batch norm sees all processes' batches; GPUs only", False)
    processes: Count = key("processes that train one net together, each on its own GPU", 1)
    dimensions: Count = key("of SimSiam's projection", 2048)
    bottleneck: Count = key("of the hidden layer of SimSiam's predictor", 512)

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        start, last = self.invariance_from, self.epochs - 1
        if self.warmup_epochs >= self.epochs:
            why = f"{self.warmup_epochs:g} isn't less than the {self.epochs} epochs"
            raise together("warmup_epochs", why)
        if start is not None and start * self.epochs > last > 0:  # a single epoch is a rehearsal
            most = 1000 * last // self.epochs / 1000  # rounded down
            why = (
                f"{start} given; the invariance loss would never be on in {self.epochs} epochs; allowed is at most "
                f"{most:g}, or null"
            )
            raise together("invariance_from", why)
        if self.invariance_loss == "whole_batch" and self.processes > 1:
            raise together(
                "invariance_loss", "whole_batch given, which needs a single process; allowed is another"
            )
        if self.batch_size % self.processes:
            why = f"{self.batch_size} can't be split evenly among {self.processes} processes"
            raise together("batch_size", why)
        return self

    def settings(self) -> dict[str, Any]:
        """The settings that a net depends on: those that its objective and its loss read."""
        unread = set() if self.objective == "simsiam" else {"dimensions", "bottleneck"}
        if self.invariance_from is None:
            unread |= {"invariance_weight", "invariance_loss"}
        return self.model_dump(include={*Recipe.model_fields} - unread)

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
        if self.invariance_from is None:
            return False
        return epoch >= round(self.invariance_from * self.epochs, 9)  # 0.28 · 25 is 7.000000000000001
