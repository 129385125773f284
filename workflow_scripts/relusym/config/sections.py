"""The sections of the config: each key's type, default and meaning, from which docs/config.md is made."""

import re
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import AfterValidator, ConfigDict, Field, create_model

from relusym import nets, paper_values
from relusym.beyond import MEASUREMENTS
from relusym.beyond.declaration import OF_PAIRS, Pair, Pairs, Parts, Selection
from relusym.data import SymmetryName
from relusym.matching import MATCHINGS, STARTS
from relusym.schema import (
    Count,
    Few,
    Flag,
    Number,
    OrNull,
    Positive,
    Section,
    Seed,
    Seeds,
    Several,
    Share,
    Text,
    allowed_names,
    among,
    each_once,
    key,
    refusal,
    together,
    unknown_key,
)
from relusym.symmetry import HORIZONTAL_FLIP
from relusym.theory import STATEMENTS
from relusym.training.recipe import Recipe

NO_MARKUP = re.compile(r"[^<>$]+")
ID = re.compile(r"(?!all$)[a-z][a-z0-9]*(_[a-z0-9]+)*")
LONGEST_ID = 64  # file names hold two of them
DEVICE = re.compile(r"auto|cpu|cuda(:(0|[1-9][0-9]{0,2}))?")
# without . and .. in the path, since the file's path below data/weights follows from it
URL = re.compile(
    r"(https?|file)://(?!([^#]*/)?\.\.?(/|#|$))[!-\"$-~]*[!-\"$-.0-~]/?(#sha256=[0-9a-fA-F]{64})?"
)
ADDRESS = (
    "allowed is a URL in ASCII, https://…, without . and .. in its path, with or without #sha256= and "
    "64 hexadecimal digits at its end"
)
LAYOUTS = Literal["auto", "plain", "module", "module.encoder", "module.base_encoder"]


def _matches(pattern: re.Pattern[str], allowed: str) -> AfterValidator:
    def check(text: str) -> str:
        if not pattern.fullmatch(text):
            raise refusal(allowed)
        return text

    return AfterValidator(check)


def _known_options(network: dict[str, Any]) -> dict[str, Any]:
    """Check the names of options; their values are checked with the model's other sections."""
    name = network.get("architecture", "vgg11")
    if not isinstance(name, str) or name not in nets.ARCHITECTURES:
        raise together("architecture", f"{name!r} given; {allowed_names(name, nets.ARCHITECTURES)}")
    allowed = nets.options(network.get("architecture"))
    for unknown in (name for name in network if name not in ("architecture", *allowed)):
        raise unknown_key(unknown, allowed)
    return network


def _plain_value(value: Any) -> Any:
    if not isinstance(value, str | int | float | None):
        raise refusal("allowed is text, a number, true, false or null")
    return value


def _file(value: Any) -> Any:
    files = value if isinstance(value, list) else [value]
    if value is not None and not (files and all(isinstance(file, str) and file for file in files)):
        raise refusal("allowed is a file, [backbone, linear head], or null")
    _are_distinct(files if value else [])
    return value


def _are_distinct(files: list[str]) -> list[str]:
    """Check that no file or URL is repeated, ignoring case: some file systems take a.pth for A.pth."""
    each_once([file.partition("#")[0].casefold() for file in files])
    return files


Label = Annotated[Text, _matches(NO_MARKUP, "allowed is text of one line without <, > and $")]
Id = Annotated[
    str,
    Field(max_length=LONGEST_ID),
    _matches(ID, "allowed are small letters and digits, with single _ between them, and not `all`"),
]
Device = Annotated[str, _matches(DEVICE, "allowed is auto, cpu, cuda, or one GPU, such as cuda:1")]
Side = Annotated[int, Field(ge=8, le=4096), Number]
Channels = Annotated[list[Annotated[float, Number]], Field(min_length=3, max_length=3)]
Row = Annotated[str, among(paper_values.resnets())]


# ---- of the run: config.yaml


class Source(Section):
    """Where the images of a data set come from."""

    model_config = ConfigDict(extra="allow")  # the options of sources that users add
    __pydantic_extra__: dict[str, Annotated[Any, AfterValidator(_plain_value)]] = Field(init=False)

    source: Text = key(
        "`torchvision` (downloads on first use), `binary` or `python` (CIFAR10's official files), or "
        "`folder` (a tree of images)"
    )
    root: Text = key(
        "where the download goes; for official files cifar-10-batches-bin or -py, its archive, or the folder "
        "that holds either; for `folder` the tree, `<root>/<split>/<class>/<image>`",
        None,
    )
    train: Text = key("for `folder`: the name of the training images' folder", "train")
    test: Text = key("for `folder`: the name of the test images' folder", "test")
    label: Label = key("the images' name in records, and in tables unless their content says otherwise")


class ImageNetSource(Section):
    """Where ImageNet is, `<root>/<train or val>/<wnid>/<image>`; if it isn't there, its nets are left out."""

    root: Text = key("the folder that holds both", "data/imagenet")
    train: Text = key("the training images' folder", "train")
    val: Text = key("the test images' folder", "val")
    label: Label = key("the images' name in records and tables", "ImageNet")


class Run(Section):
    """What to run, at any scale."""

    scale: Id = key("a file in scales/, yours or this project's: `demo` is scales/demo.yaml", "demo")
    seeds: OrNull[Seeds] = key(
        "only these of the scale's seeds, such as 0-3 or [0, 5]; null: all. Parts combine", None
    )
    device: Device = key("`cpu`, `cuda`, `cuda:1` …; `auto` takes a GPU where there is one", "auto")
    threads: Several = key(
        "CPU threads per job; for small nets, more jobs at once (`--cores`) beat more threads per job", 1
    )
    jobs_per_gpu: Several = key(
        "how many jobs share a GPU where no scheduler assigns GPUs (the paper: four nets on a T4)", 4
    )
    cifar10: Source = key(
        "where CIFAR10 comes from", Source(source="torchvision", root="data/cifar10", label="CIFAR10")
    )
    imagenet: ImageNetSource = key("where ImageNet is", ImageNetSource())
    datasets: dict[Id, Source] = key(
        "more data sets from folders, by the name used in `data: {dataset: …}`", {}
    )


# ---- of a scale and of its models: scales/<scale>.yaml


class Normalisation(Section):
    """How pixels in 0…1 are normalised, one number per colour."""

    mean: Channels = key("subtracted")
    std: Annotated[list[Positive], Field(min_length=3, max_length=3)] = key("divided by")


class Data(Section):
    """The images that nets are trained and tested on."""

    dataset: Text = key(
        "`generated` (images of shapes), `cifar10`, `imagenet`, or one of `datasets`", "generated"
    )
    train_images: OrNull[Count] = key("how many, chosen at random by `seed`; null: all", None)
    seed: Seed = key("for that choice, and for generated images", 0)
    test_images: OrNull[Count] = key("how many; generated images only", None)
    invariant_to: OrNull[SymmetryName] = key(
        "generated images only: the symmetry that their classes are invariant to", HORIZONTAL_FLIP.name
    )
    resize: OrNull[Side] = key("ImageNet only: the shorter side before the crop", None)
    normalisation: OrNull[Normalisation] = key("`{mean: [r, g, b], std: [r, g, b]}`; null: CIFAR10's", None)

    def settings(self) -> dict[str, Any]:
        """The settings that a training depends on."""
        always = {"dataset": self.dataset, "train_images": self.train_images, "seed": self.seed}
        return always | {key: value for key, value in self.explicit().items() if key != "resize"}


class Running(Section):
    """How a training runs: settings that its net doesn't depend on."""

    save_every: Count = key("epochs between saved training states", 1)
    snapshots: Annotated[list[Few], AfterValidator(each_once)] = key(
        "epochs after which the net is kept, besides the last; 0: as initialized", []
    )
    restarts: Few = key("how often all processes are restarted if one dies", 0)
    workers: Few = key("processes that read image files, per training process", 0)


class Training(Running, Recipe):
    """How a net is trained."""


# The defaults of each stage; it has all other settings from `training`.
STAGES: dict[str, dict[str, Any]] = {
    "training": {},
    "pretraining": {"objective": "simsiam", "schedule": "cosine"},
    "linear": {"objective": "linear", "schedule": "cosine", "weight_decay": 0, "warmup_epochs": 0},
}


class Merging(Section):
    """How nets are merged, and the images that they are merged and measured on."""

    matching: Annotated[str, among(MATCHINGS)] = key(
        "`activation` (the paper's), `weight` (no images; the best of several starts), `weight_identity` "
        "(from the identity alone, as in git-re-basin), `involution` (activation matching among permutations that are "
        "their own inverse, as a flip is; only for a net with its flipped self), `identity` (no permutation), `random`",
        "activation",
    )
    starts: Count = key(
        "number of starts of weight matching: the identity, activation matching's, outside in, and random ones",
        STARTS,
    )
    images: OrNull[Count] = key(
        "training images for matching channels, resetting batch norm and REPAIR's statistics; null: all",
        None,
    )
    invariance_images: Count = key("training images over which the invariance error is averaged", 5000)
    batch_size: Count = key("images at a time; no result depends on it", 500)


class Weights(Section):
    """Where a model's weights come from, instead of a training: from the first of these that is set."""

    file: Annotated[Any, AfterValidator(_file)] = key("a local checkpoint, or [backbone, linear head]", None)
    urls: Annotated[
        list[Annotated[str, Field(max_length=1000), _matches(URL, ADDRESS)]],
        Field(min_length=1),
        AfterValidator(_are_distinct),
    ] = key("URLs of one or several files, downloaded on first use; `#sha256=…` at the end is checked", None)
    torchvision: Text = key("a name from torchvision's enums of weights, such as IMAGENET1K_V1", None)
    layout: LAYOUTS = key("the prefix of torchvision's tensor names in a file; `auto`: any of these", "auto")


def _partial(section: type[Section]) -> Any:
    """The section with no key required, for what a scale or a model sets."""
    types = get_type_hints(section, include_extras=True)
    fields = {
        name: (types[name], key(field.description, None)) for name, field in section.model_fields.items()
    }
    return create_model(f"Partial{section.__name__}", __base__=Section, __doc__=section.__doc__, **fields)


PartialTraining = _partial(Training)


class Sections(Section):
    """The sections that a scale sets for all its models, and that each model may override."""

    data: Data = key("the images", Data())
    image_size: OrNull[Side] = key("pixels that images are scaled to; null: unscaled", None)
    network: Annotated[dict[str, Any], AfterValidator(_known_options)] = key(
        "`architecture` and its options; those of other architectures are ignored",
        {"architecture": "vgg11", "group_convs": 0},
    )
    symmetry: SymmetryName = key(
        "or `vertical_flip`, `quarter_turn`; for augmentation, invariance loss, group convs and flip merge",
        HORIZONTAL_FLIP.name,
    )
    recipe: Annotated[list[Literal[*STAGES]], AfterValidator(each_once)] = key(
        "the stages of a training: any of `pretraining`, `training`, `linear`", ["training"]
    )
    training: PartialTraining = key("how nets are trained", PartialTraining())
    pretraining: PartialTraining = key(
        "what differs in this stage; by default `objective: simsiam, schedule: cosine`", PartialTraining()
    )
    linear: PartialTraining = key(
        "what differs in this stage; by default `objective: linear, schedule: cosine, weight_decay: 0, "
        "warmup_epochs: 0`",
        PartialTraining(),
    )
    merging: Merging = key("how nets are merged and measured", Merging())
    table: OrNull[Literal["table2", "table5"]] = key(
        "the paper's table that shows them; null: none, only measurements beyond the paper", "table2"
    )


class ModelSection(Sections):
    """A type of net: its name, and what differs from the scale's sections."""

    name: Label = key("its name in tables; by default its id", None)
    description: Label = key("for Table 1", "")
    seeds: OrNull[Seeds] = key("one net per seed; null: the scale's", None)
    weights: OrNull[Weights] = key("where weights come from, instead of a training", None)
    paper: OrNull[Row] = key(
        "the row of the paper's Table 5 to compare it with, if its id isn't that row's", None
    )
    trained_by_authors: Flag = key("for Table 5; by default as in the paper's row", None)
    self_supervised: Flag = key("for Table 5; by default as in the paper's row", None)


class Filters(Section):
    """The arrays of filters beside the records, for Figures 1, 2 and 5 to 9, and the count of zero-filters."""

    projection_seed: Seed = key("for the random projection of conv 2's input channels to RGB", 0)
    zero_filter: Share = key(
        "a filter whose norm is below this share of the largest in its layer counts as zero", 0.1
    )


class FlippedTraining(Section):
    """Figure 3: a net and its flipped counterpart, trained side by side on batches and on the flipped batches."""

    seed: Seed = key("for the net and the batches", 0)
    steps: Count = key("of either net", 50)
    batch_size: Count = key("images per step", 16)
    learning_rate: Positive = key("constant; momentum, weight decay and padding are the scale's", 0.01)


Draws = create_model(
    "Draws",
    __base__=Section,
    __doc__="How many random draws each of the paper's statements is tested on.",
    **{name: (Count, key(what, draws)) for name, (draws, what) in STATEMENTS.items()},
)


class Theory(Section):
    """The demonstrations of the paper's statements."""

    seed: Seed = key("for all draws", 0)
    draws: Draws = key("how many, by statement", Draws())


Compared = Annotated[list[Annotated[str, among(MATCHINGS)]], Field(min_length=1), AfterValidator(each_once)]


class Matchings(Selection):
    """The target `matchings`: its merges are flip_merge and pair_merge records. Left out: of all types and pairs."""

    models: OrNull[Parts] = key("which types of nets; null: all", None)
    pairs: Pairs = key(f"{OF_PAIRS}; null: all", None)
    matchings: OrNull[Compared] = key("which ones are compared; null: the scale's `matchings`", None)


BEYOND = {"matchings": Matchings} | {name: each.options for name, each in MEASUREMENTS.items()}
Beyond = create_model(
    "Beyond",
    __base__=Section,
    __doc__="Measurements beyond the paper (docs/beyond.md), each with its nets.",
    **{name: (OrNull[section], key(section.__doc__, None)) for name, section in BEYOND.items()},
)


class Scale(Sections):
    """Which nets, how each is made, what is merged with what."""

    seeds: Seeds = key("one net of each type per seed, such as 0-3")
    models: dict[Id, OrNull[ModelSection]] = key(
        "the types of nets, by id; null removes a type, also from pairs and measurements that name it"
    )
    pairs: list[Pair] = key(
        "which types are merged with each other. Two types: seed i with seed i. One type: seed i with the next "
        "seed of the type, the last with the first; two seeds are one pair (the paper doesn't say which seeds it "
        "paired: an assumption)",
        [],
    )
    matchings: Compared = key(
        "those that the target `matchings` compares",
        ["activation", "weight", "weight_identity", "involution", "identity", "random"],
    )
    figure9: OrNull[Text] = key("the model whose filters Figure 9 shows", None)
    filters: Filters = key("arrays of filters", Filters())
    flipped_training: FlippedTraining = key("Figure 3", FlippedTraining())
    theory: Theory = key("the paper's statements", Theory())
    beyond: Beyond = key("measurements beyond the paper", Beyond())


SHARED = (*Sections.model_fields,)
