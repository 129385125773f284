"""What the benchmark runs: bench.yaml, beside this file."""

from pathlib import Path

from relusym.config.models import Place
from relusym.config.reading import read_file
from relusym.schema import Count, Flag, OrNull, Positive, Section


class Task(Section):
    """Trainings and merges on one kind of device."""

    nets: OrNull[Count]
    width: Positive
    train_images: Count
    test_images: Count
    epochs: Count
    batch_size: Count
    learning_rate: Positive
    matched_images: Count
    merge_batch_size: Count


class Bench(Section):
    """The whole benchmark."""

    repeats: Count
    demo: Flag
    cpu: Task
    cuda: Task


def read_settings() -> Bench:
    """The settings in bench.yaml. Raises UserError: names the key, what was given and what is allowed."""
    path = Path(__file__).with_name("bench.yaml")
    return Bench.read(read_file(path), Place(path.name, {}))
