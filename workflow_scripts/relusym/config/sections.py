"""The sections of the config: of each key its type, default and meaning, from which docs/config.md is made."""

import re
from collections import Counter
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import AfterValidator, ConfigDict, Field, create_model

from relusym import nets, paper_values
from relusym.beyond import MEASUREMENTS
from relusym.beyond.declaration import OF_PAIRS, Pairs, Selection
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
    Share,
    Text,
    allowed_names,
    among,
    refusal,
    remark,
    together,
    unknown_key,
)
from relusym.symmetry import HORIZONTAL_FLIP
from relusym.theory import STATEMENTS
from relusym.training.recipe import Recipe

NO_MARKUP = re.compile(r"[^<>$\x00-\x1f\x7f]+")
ID = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
LONGEST_ID = 64  # file names hold two of them
DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,3})?")
URL = re.compile(r"(https?|file)://\S+")
LAYOUTS = Literal["auto", "plain", "module", "module.encoder", "module.base_encoder"]


def _matches(pattern: re.Pattern[str], allowed: str, but: str | None = None) -> AfterValidator:
    def check(text: str) -> str:
        if not pattern.fullmatch(text) or text == but:
            raise refusal(allowed)
        return text

    return AfterValidator(check)


def _each_once(entries: list) -> list:
    twice = [entry for entry, count in Counter(map(str, entries)).items() if count > 1]
    if twice:
        raise remark(f"{twice[0]} is listed twice; list each once")
    return entries


def _known_options(network: dict[str, Any]) -> dict[str, Any]:
    """What an architecture takes of them is checked with the model's other sections."""
    name = network.get("architecture", "vgg11")
    if name not in nets.ARCHITECTURES:
        raise together("architecture", f"{name!r} given; {allowed_names(name, nets.ARCHITECTURES)}")
    allowed = nets.options(network.get("architecture"))
    for key in network:
        if key not in ("architecture", *allowed):
            raise unknown_key(key, allowed)
    return network


def _plain_value(value: Any) -> Any:
    if not isinstance(value, str | int | float | None):
        raise refusal("allowed is text, a number, true, false or null")
    return value


def _file(value: Any) -> Any:
    files = value if isinstance(value, list) else [value]
    if value is not None and not (files and all(isinstance(file, str) and file for file in files)):
        raise refusal("allowed is a file, [backbone, linear head], or null")
    return value


Label = Annotated[Text, _matches(NO_MARKUP, "allowed is text of one line without <, > and $")]
Id = Annotated[
    str,
    Field(max_length=LONGEST_ID),
    _matches(
        ID, "allowed are small letters and digits, with single _ between them, and not `all`", but="all"
    ),
]
Device = Annotated[str, _matches(DEVICE, "allowed is auto, cpu, cuda, or one GPU, such as cuda:1")]
Side = Annotated[int, Field(ge=8, le=4096), Number]
Pair = Annotated[list[Text], Field(min_length=2, max_length=2)]
Channels = Annotated[list[Annotated[float, Number]], Field(min_length=3, max_length=3)]
Row = Annotated[str, among(paper_values.resnets())]


# ---- of the run: config.yaml


class Source(Section):
    """Where the images of a data set come from."""

    model_config = ConfigDict(extra="allow")  # the options of a source of one's own
    __pydantic_extra__: dict[str, Annotated[Any, AfterValidator(_plain_value)]] = Field(init=False)

    source: Text = Field(
        description="`torchvision` (downloads on first use), `binary` or `python` (CIFAR10's official files), or "
        "`folder` (a tree of images)"
    )
    root: Text = Field(
        None,
        description="of a download: where it goes; of official files: cifar-10-batches-bin or -py, its archive, or the "
        "folder that holds either; of a folder: the tree, `<root>/<split>/<class>/<image>`",
    )
    train: Text = Field("train", description="of a folder: the name of the split's folder")
    test: Text = Field("test", description="likewise")
    label: Label = Field(
        description="what records call the images, and tables, too, unless their content says otherwise"
    )


class ImageNetSource(Section):
    """Where ImageNet is, `<root>/<train or val>/<wnid>/<image>`; if it isn't there, its nets are left out."""

    root: Text = Field("data/imagenet", description="the folder of both")
    train: Text = Field("train", description="of the training images")
    val: Text = Field("val", description="of those to test on")
    label: Label = Field("ImageNet", description="what records and tables call the images")


class Run(Section):
    """What a run is about, of whatever scale."""

    scale: Id = Field(
        "demo", description="a file in scales/, of yours or this project's: `demo` is scales/demo.yaml"
    )
    seeds: OrNull[Seeds] = Field(
        None, description="only these of the scale's seeds, such as 0-3 or [0, 5]; null: all. Pieces combine"
    )
    device: Device = Field(
        "auto", description="`cpu`, `cuda`, `cuda:1` …; `auto` takes a GPU where there is one"
    )
    threads: Count = Field(
        1,
        description="CPU threads of one job; for small nets, more jobs at once (`--cores`) beat more threads a job",
    )
    jobs_per_gpu: Count = Field(
        4,
        description="how many jobs share one GPU where no scheduler hands GPUs out (the paper: four nets on a T4)",
    )
    cifar10: Source = Field(
        Source(source="torchvision", root="data/cifar10", label="CIFAR10"),
        description="where CIFAR10 comes from",
    )
    imagenet: ImageNetSource = Field(ImageNetSource(), description="where ImageNet is")
    datasets: dict[Id, Source] = Field(
        {}, description="more data sets from folders, by the name that `data: {dataset: …}` gives"
    )


# ---- of a scale and of its models: scales/<scale>.yaml


class Normalisation(Section):
    """Of pixels in 0…1, a number for each colour."""

    mean: Channels = Field(description="that is subtracted")
    std: Annotated[list[Positive], Field(min_length=3, max_length=3)] = Field(
        description="that is divided by"
    )


class Data(Section):
    """The images that nets are trained and tested on."""

    dataset: Text = Field(
        "generated", description="`generated` (images of shapes), `cifar10`, `imagenet`, or one of `datasets`"
    )
    train_images: OrNull[Count] = Field(None, description="a seeded choice of so many; null: all")
    seed: Seed = Field(0, description="of that choice, and of generated images")
    test_images: OrNull[Count] = Field(None, description="of generated images alone")
    invariant_to: OrNull[SymmetryName] = Field(
        HORIZONTAL_FLIP.name,
        description="of generated images alone: the symmetry that their classes don't depend on",
    )
    resize: OrNull[Side] = Field(None, description="of ImageNet alone: the shorter side before the crop")
    normalisation: OrNull[Normalisation] = Field(
        None, description="`{mean: [r, g, b], std: [r, g, b]}`; null: CIFAR10's"
    )

    def settings(self) -> dict[str, Any]:
        """What a training depends on."""
        always = {"dataset": self.dataset, "train_images": self.train_images, "seed": self.seed}
        return always | {key: value for key, value in self.explicit().items() if key != "resize"}


class Running(Section):
    """How a training runs, as far as its net doesn't depend on it."""

    save_every: Count = Field(1, description="epochs between saved training states")
    snapshots: Annotated[list[Few], AfterValidator(_each_once)] = Field(
        [], description="epochs after which the net is kept as well as at the end; 0: as initialized"
    )
    restarts: Few = Field(0, description="of all processes, if one dies")
    workers: Few = Field(0, description="that read image files, of each process")


class Training(Running, Recipe):
    """How a net is trained."""


# What a stage has unless the config changes it; all else it has from `training`.
STAGES: dict[str, dict[str, Any]] = {
    "training": {},
    "pretraining": {"objective": "simsiam", "schedule": "cosine"},
    "linear": {"objective": "linear", "schedule": "cosine", "weight_decay": 0, "warmup_epochs": 0},
}


class Merging(Section):
    """What nets are merged and measured on."""

    matching: Annotated[str, among(MATCHINGS)] = Field(
        "activation",
        description="`activation` (the paper's), `weight` (no images; the best of several starts), `weight_identity` "
        "(from the identity alone, as in git-re-basin), `involution` (activation matching among the permutations that "
        "undo themselves, as a flip does; of a net with its flipped self alone), `identity` (no permutation), `random`",
    )
    starts: Count = Field(
        STARTS,
        description="of weight matching: the identity, activation matching's permutations, outside in, and random ones",
    )
    images: OrNull[Count] = Field(
        None,
        description="training images that channels are matched, batch norm reset and REPAIR's statistics taken on; "
        "null: all",
    )
    invariance_images: Count = Field(
        5000, description="training images that the invariance error is averaged over"
    )
    batch_size: Count = Field(500, description="images at once; no result depends on it")


class Weights(Section):
    """Where a model's weights come from, if no training is to make them: of several, the first of these."""

    file: Annotated[Any, AfterValidator(_file)] = Field(
        None, description="a local checkpoint, or [backbone, linear head]"
    )
    urls: Annotated[
        list[Annotated[str, _matches(URL, "allowed is an address, https://…")]], Field(min_length=1)
    ] = Field(
        None, description="of one file or several, downloaded on first use; `#sha256=…` at the end is checked"
    )
    torchvision: Text = Field(
        None, description="the name of one of torchvision's enums of weights, as IMAGENET1K_V1"
    )
    layout: LAYOUTS = Field(
        "auto",
        description="what stands before torchvision's names of the tensors in a file; `auto`: any of these",
    )


def _partial(section: type[Section]) -> Any:
    """The section with no key required: what other sections leave out."""
    types = get_type_hints(section, include_extras=True)
    fields = {
        name: (types[name], Field(None, description=field.description))
        for name, field in section.model_fields.items()
    }
    return create_model(f"Partial{section.__name__}", __base__=Section, __doc__=section.__doc__, **fields)


PartialTraining = _partial(Training)


class Sections(Section):
    """What all models of a scale have, and each model over that."""

    data: Data = Field(Data(), description="the images")
    image_size: OrNull[Side] = Field(None, description="pixels that images are scaled to; null: as they are")
    network: Annotated[dict[str, Any], AfterValidator(_known_options)] = Field(
        {"architecture": "vgg11", "group_convs": 0},
        description="`architecture` and its options; those of another architecture don't count",
    )
    symmetry: SymmetryName = Field(
        HORIZONTAL_FLIP.name,
        description="or `vertical_flip`, `quarter_turn`: of augmentation, invariance loss, group convs and flip merge",
    )
    recipe: Annotated[list[Literal[*STAGES]], AfterValidator(_each_once)] = Field(
        ["training"], description="the stages of a training, of `pretraining`, `training` and `linear`"
    )
    training: PartialTraining = Field(PartialTraining(), description="how nets are trained")
    pretraining: PartialTraining = Field(
        PartialTraining(),
        description="what differs in this stage: by default `objective: simsiam, schedule: cosine`",
    )
    linear: PartialTraining = Field(
        PartialTraining(),
        description="likewise: `objective: linear, schedule: cosine, weight_decay: 0, warmup_epochs: 0`",
    )
    merging: Merging = Field(Merging(), description="how they are merged and measured")
    table: OrNull[Literal["table2", "table5"]] = Field(
        "table2",
        description="which of the paper's tables shows them; null: none, measurements beyond the paper alone",
    )


class ModelSection(Sections):
    """One type of nets: a name, and what differs from the scale's sections."""

    name: Label = Field(None, description="what tables call it; by default its id")
    description: Label = Field("", description="for Table 1")
    seeds: OrNull[Seeds] = Field(None, description="one net each; null: the scale's")
    weights: OrNull[Weights] = Field(
        None, description="where weights come from, if no training is to make them"
    )
    paper: OrNull[Row] = Field(
        None, description="the row of the paper's Table 5 that it stands beside, if its id isn't that row's"
    )
    trained_by_authors: Flag = Field(None, description="for Table 5; by default the paper's row's")
    self_supervised: Flag = Field(None, description="likewise")


class Filters(Section):
    """The arrays of filters beside the records, for Figures 1, 2 and 5 to 9, and the count of zero-filters."""

    projection_seed: Seed = Field(0, description="of the random projection of conv 2's input channels to RGB")
    zero_filter: Share = Field(
        0.1, description="a filter whose norm is below this share of the largest in its layer counts as zero"
    )


class FlippedTraining(Section):
    """Figure 3: a net and its flipped counterpart, trained side by side on batches and on the flipped batches."""

    seed: Seed = Field(0, description="of the net and of the batches")
    steps: Count = Field(50, description="of either")
    batch_size: Count = Field(16, description="images a step")
    learning_rate: Positive = Field(
        0.01, description="constant; momentum, weight decay and padding are the scale's"
    )


Draws = create_model(
    "Draws",
    __base__=Section,
    __doc__="How many random draws each of the paper's statements is tested on.",
    **{name: (Count, Field(draws, description=what)) for name, (draws, what) in STATEMENTS.items()},
)


class Theory(Section):
    """The demonstrations of the paper's statements."""

    seed: Seed = Field(0, description="of all draws")
    draws: Draws = Field(Draws(), description="how many, by statement")


class Matchings(Selection):
    """The target `matchings`: its merges are flip_merge and pair_merge records."""

    pairs: Pairs = Field(None, description=OF_PAIRS)
    matchings: OrNull[Annotated[list[Annotated[str, among(MATCHINGS)]], Field(min_length=1)]] = Field(
        None, description="that are compared; null: the scale's `matchings`"
    )


BEYOND = {"matchings": Matchings} | {name: each.options for name, each in MEASUREMENTS.items()}
Beyond = create_model(
    "Beyond",
    __base__=Section,
    __doc__="Measurements beyond the paper (docs/beyond.md), each with the nets that it is of.",
    **{name: (OrNull[section], Field(None, description=section.__doc__)) for name, section in BEYOND.items()},
)


class Scale(Sections):
    """Which nets, how each is made, what is merged with what."""

    seeds: Seeds = Field(description="one net of each type for each, such as 0-3")
    models: dict[Id, OrNull[ModelSection]] = Field(
        description="the types of nets, by an id; null removes a type, also from pairs and measurements that name it"
    )
    pairs: list[Pair] = Field(
        [],
        description="which types are merged with each other. Two types: seed i with seed i. One: seed i with the next "
        "seed of the type, the last with the first; two seeds are one pair (the paper doesn't say which seeds it "
        "paired: an assumption)",
    )
    matchings: Annotated[
        list[Annotated[str, among(MATCHINGS)]], Field(min_length=1), AfterValidator(_each_once)
    ] = Field(
        ["activation", "weight", "weight_identity", "involution", "identity", "random"],
        description="the target `matchings` compares these",
    )
    figure9: OrNull[Text] = Field(None, description="the model whose filters Figure 9 shows")
    filters: Filters = Field(Filters(), description="arrays of filters")
    flipped_training: FlippedTraining = Field(FlippedTraining(), description="Figure 3")
    theory: Theory = Field(Theory(), description="the paper's statements")
    beyond: Beyond = Field(Beyond(), description="measurements beyond the paper")


SHARED = (*Sections.model_fields,)
