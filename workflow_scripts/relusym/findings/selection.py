"""Which tables and figures a scale has, the part of the config that each shows, and the records it is made from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from itertools import chain, groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from relusym.beyond import MEASUREMENTS
from relusym.findings import BEYOND, Results, Selection, Settings, declared

if TYPE_CHECKING:
    from relusym.config.models import Model, Values

UNSCALED = "images as they are"
USUAL = UNSCALED, "horizontal flip", "supervised"  # left out if all nets have it
# strides of 2 that meet an even width if the image's is a power of two
STRIDES = {"resnet": 5, "cifar_resnet": 2}


def findings(settings: Settings) -> list[str]:
    return [name for name, finding in declared().items() if finding.exists(settings)]


def select(settings: Settings, name: str) -> Selection:
    return {"names": settings.names, **declared()[name].select(settings)}


def of_nets_shown(results: Results, keys: Mapping[str, list[str]]) -> Settings:
    """The settings on the nets of these jobs alone, of each type that has any: notes then name the seeds of a table's
    nets, which may be a part of the scale's, and include those that other runs have done."""
    settings, shown = (
        results.settings,
        {net for key in chain(*keys.values()) for net in results.jobs[key].nets},
    )
    entries = {}
    for id_, model in settings.models.items():
        if seeds := [seed for seed in model.seeds if (id_, seed) in shown]:
            entries[id_] = model.entry.model_copy(update={"seeds": seeds})
    models = {**settings.sections.models, **entries}
    return replace(settings, sections=settings.sections.model_copy(update={"models": models}))


def keys(results: Results, name: str) -> dict[str, list[str]]:
    """The jobs, by kind, whose records ("filters": arrays beside flip merges) it shows: all done, and this run's.

    Measurements beyond the paper come with the trainings of their nets, whose accuracies are compared.
    """
    finding, selection = declared()[name], select(results.settings, name)

    def of_kind(kind: str) -> list[str]:
        if kind in MEASUREMENTS:
            return results.shown(kind, [*results.settings.models])
        return (finding.keys or of_types)(results, "flip_merge" if kind == "filters" else kind, selection)

    shown = {kind: of_kind(kind) for kind in finding.reads}
    if "train" not in shown and not MEASUREMENTS.keys().isdisjoint(shown):
        trained: dict[str, bool] = {}  # whether a job that needs it is still to be made
        for key in chain(*shown.values()):
            for net in results.jobs[key].nets:
                training = results.key("train", net)
                trained[training] = trained.get(training, False) or not results.is_there(key)
        shown["train"] = [
            key for key, made in trained.items() if (results.load(key) if results.is_there(key) else made)
        ]
    return shown


# ---- whose records, as `keys` of a declaration


def of_types(results: Results, kind: str, selection: Selection) -> list[str]:
    """Jobs on the selected types; on all those in the paper's tables if the selection isn't of types."""
    types = types_in(selection)
    return results.shown(kind, reproduced(results.settings) if types is None else types)


def of_all_types(results: Results, kind: str, selection: Selection) -> list[str]:
    return results.shown(kind, reproduced(results.settings))


def of_every_matching(results: Results, kind: str, selection: Selection) -> list[str]:
    """Jobs on the nets of the target `matchings`, merged by each matching."""
    settings = results.settings
    models = beyond_selection(settings, "matchings")["models"]
    matchings = (None,) if kind == "train" else (None, *settings.compared)
    keys = chain(*(results.shown(kind, models, matching) for matching in matchings))
    return [key for key in keys if settings.is_in_matchings(results.jobs[key].nets)]


# parts of declarations: for every job of the paper's tables, including earlier stages of trainings; for every
# measurement beyond the paper
OF_EVERY_JOB = {"keys": lambda results, kind, _: results.shown(kind), "section": "Costs and provenance"}
OF_ALL_MEASURED = {"keys": of_every_matching, "section": BEYOND, "exists": lambda settings: settings.measured}


# ---- what is selected


def reproduced(settings: Settings) -> list[str]:
    return [model.id for model in settings.models.values() if model.is_in_paper]


def types_in(selection: Selection) -> list[str] | None:
    """All types that a selection names, including those in pairs; None if it isn't of types."""
    if not {"model", "models", "pairs"} & selection.keys():
        return None
    models = [selection["model"]] if "model" in selection else selection.get("models", [])
    return list(dict.fromkeys(chain(models, *selection.get("pairs", []))))


def types_merged(selection: Selection) -> list[tuple[str, str]]:
    """The pairs of types that are merged; an empty second one stands for the flipped self."""
    return [*((model, "") for model in selection["models"]), *map(tuple, selection["pairs"])]


def has_vgg11s(settings: Settings) -> bool:
    return bool(settings.table("table2"))


OF_VGG11S = {"exists": has_vgg11s, "select": lambda settings: {"models": settings.table("table2")}}


def vgg11s(settings: Settings, *, merged: bool = True) -> Selection:
    """All of them, and notes; `merged`: whether merges and their invariance errors are shown."""
    models = settings.table("table2")
    return {"models": models, "notes": net_notes(settings, models, merged=merged, invariance=merged)}


def beyond(name: str, order: int, **shown: bool) -> Mapping[str, Any]:
    """What the declarations of a measurement beyond the paper have in common; `name`: its section of the config;
    `shown`: `merged` and `invariance` of `net_notes`."""

    def select(settings: Settings) -> Selection:
        selection = beyond_selection(settings, name)
        notes = net_notes(settings, selection["models"], settings.beyond.get(name), **shown)
        return {**selection, "notes": notes}

    about = {"section": BEYOND, "order": order, "reads": (name,)}
    return about | {"exists": lambda settings: name in settings.measured, "select": select}


def beyond_selection(settings: Settings, name: str) -> dict[str, Any]:
    """Types and pairs of types of a measurement beyond the paper, as far as the config has them."""
    section = settings.beyond.get(name, {})
    models, pairs = section.get("models", []), section.get("pairs", [])
    if name == "matchings" and settings.compared:
        models = section.get("models", reproduced(settings))
        pairs = [pair for pair in section.get("pairs", settings.types_paired) if {*pair} <= {*models}]
    return {"models": models, "pairs": [list(pair) for pair in pairs]}


def measured_types(settings: Settings) -> list[str]:
    """All types that are measured beyond the paper."""
    sections = (beyond_selection(settings, name) for name in ("matchings", *settings.measured))
    return list(dict.fromkeys(chain(*map(types_in, sections))))


# ---- notes on nets


def net_notes(
    settings: Settings,
    models: Iterable[str],
    section: Values | None = None,
    *,
    merged: bool = True,
    invariance: bool = False,
) -> list[str]:
    """Notes on a table's nets and their differences; `section`: that of the measurement that the table shows;
    `merged`, `invariance`: whether it shows merges, and invariance errors."""
    section, nets = section or {}, [settings.models[model] for model in models]
    if not nets:
        return []
    data_of = Counter(name for name, _ in {(net.name, net.data.dataset) for net in nets})

    def with_data(net: Model) -> str:
        """A type's name, with its data if another type of that name has others."""
        return net.name if data_of[net.name] == 1 else f"{net.name} on {net.data.dataset} data"

    lines = _lines(nets, _net, "; ", f"Scale {settings.scale}")
    for stage in dict.fromkeys(stage for net in nets for stage in net.recipe):
        trained = [net for net in nets if stage in net.recipe]
        describe = partial(_stage, stage=stage)
        lines += _lines(trained, describe, ", ", stage.capitalize(), with_data)
    if merged:
        describe = partial(_merging, section=section, invariance=invariance)
        lines += _lines(nets, describe, "; ", "Merging", with_data)
    strided = {(net.image_size, STRIDES.get(net.network["architecture"], 0)) for net in nets}
    return lines + [
        f"At {size} pixels the {strides} strides of a flipped net are off by {2**strides - 1} pixels in all, "
        f"{(2**strides - 1) / size:.0%} of the width (the paper's ResNet50 at 224: 14%): accuracies fall by that "
        "alone, and barriers can be negative"
        for size, strides in sorted(pair for pair in strided if pair[0] in (32, 64) and pair[1])
    ]


def _net(net: Model) -> list[str]:
    network = dict(net.network)
    architecture, width = network.pop("architecture"), network.pop("width", None)
    options = [f"width {width:g}"] if width is not None else []
    options += [f"{key} {value}" for key, value in network.items() if key != "group_convs"]
    size = net.image_size if net.table == "table2" else None  # Table 5 has a column of it
    data = f"{net.data.dataset} data, {_count(net.data.train_images)}"
    scaled = UNSCALED if size is None else f"images scaled to {size} pixels"
    symmetry, named = net.symmetry.replace("_", " "), "seeds" if len(net.seeds) > 1 else "seed"
    return [data, scaled, ", ".join([architecture, *options]), symmetry, f"{named} {_ranges(net.seeds)}"]


def _ranges(seeds: list[int]) -> str:
    """Seeds as text, with ranges: 0, 9-11."""
    runs = [[seed for _, seed in run] for _, run in groupby(enumerate(seeds), key=lambda at: at[1] - at[0])]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _stage(net: Model, stage: str) -> list[str]:
    how = net.stages[stage]
    other = "" if how.invariance_loss == "mean_norm" else f" of the {how.invariance_loss.replace('_', ' ')}"
    loss = (
        [how.objective, f"invariance weight {how.invariance_weight:g}{other}"] if stage == "training" else []
    )
    steps = [f"{how.epochs} epochs", f"batch {how.batch_size}", f"learning rate {how.learning_rate:g}"]
    return [*steps, f"{how.schedule} schedule", *loss, f"weight decay {how.weight_decay:g}"]


def _merging(net: Model, section: Values, invariance: bool) -> list[str]:
    matched = section.get("images") or net.merging.images
    on = f" on {_count(matched)}," if section.get("repair_images") else " and"
    measured = "all test images" if section else _count(net.merging.invariance_images)
    merging = (
        f"channels matched{on} REPAIR's statistics taken on {_count(section.get('repair_images') or matched)}"
    )
    return [merging, f"invariance error over {measured}"] if invariance else [merging]


def _count(images: int | None) -> str:
    return "all training images" if images is None else f"{images:,} training images"


def _lines(
    nets: list[Model],
    describe: Callable[[Model], list[str]],
    comma: str,
    what: str,
    name: Callable[[Model], str] = attrgetter("name"),
) -> list[str]:
    """A line on the first net, then one for each group of nets that differ from it: their names and those parts."""
    descriptions = [describe(net) for net in nets]
    first, of_all = descriptions[0], map(set, zip(*descriptions, strict=True))
    common = [part for part, kinds in zip(first, of_all, strict=True) if kinds - {*USUAL} or len(kinds) > 1]
    others: dict[str, dict[str, None]] = {}
    for net, description in zip(nets, descriptions, strict=True):
        differing = [part for part, usual in zip(description, first, strict=True) if part != usual]
        if differing:
            others.setdefault(comma.join(differing), {})[name(net)] = None
    lines = [f"{what}, {'; '.join(names)}: {text}" for text, names in others.items()]
    return [f"{what}: {comma.join(common)}", *lines]
