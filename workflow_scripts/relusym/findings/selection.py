"""What each table and figure shows: which records, and what of the config (`about`, see `relusym.findings`)."""

from collections.abc import Callable, Iterable
from itertools import chain, groupby
from typing import Any

from relusym import paper_values
from relusym.beyond import MEASUREMENTS
from relusym.config.models import Model, Values
from relusym.config.settings import Settings
from relusym.findings import BEYOND, FIGURES, TABLES, kinds_of
from relusym.matching import OF_FLIPS
from relusym.records.results import Results
from relusym.theory import STATEMENTS

About = dict[str, Any]

# figure: conv layer, the paper's types, whether the matches are flipped back
FILTER_PAIRS = {
    "figure1": ("conv1", ["cnn_inv", "cnn"], True),
    "figure5": ("conv2", ["cnn_inv"], False),
    "figure6": ("conv2", ["cnn"], False),
    "figure7": ("conv1", ["gcnn"], False),
    "figure8": ("conv2", ["gcnn"], False),
}
THE_PAPERS = paper_values.vgg11s()  # which its claims are about
AS_THEY_ARE = "images as they are"
STRIDES = {
    "resnet": 5,
    "cifar_resnet": 2,
}  # of two, in all, that meet an even width if the image's is a power of two
USUAL = AS_THEY_ARE, "horizontal flip", "supervised"  # goes without saying, if it is so of all nets
OF_ALL_MEASUREMENTS = "beyond_claims", "beyond_provenance"
COMPARED = ("table1", "table2", "table3", "table4", "table5")


def tables(settings: Settings) -> list[str]:
    """The tables of a scale; Tables 3 and 5 only where it has such models, others only where it measures their like."""
    has = {"table3": settings.table("table5"), "table5": settings.table("table5")}
    has |= {name: measurement_of(name) in settings.measured for name in BEYOND - {"matchings"}}
    has |= dict.fromkeys(OF_ALL_MEASUREMENTS, settings.measured)
    return [name for name in TABLES if has.get(name, True)]


def figures(settings: Settings) -> list[str]:
    """The figures of a scale: those whose types the config has."""

    def has(name: str) -> bool:
        if name in FILTER_PAIRS:
            return any(model in settings.models for model in FILTER_PAIRS[name][1])
        if name in ("barriers", "figure2", "figure4", "zero_filters"):
            return bool(settings.table("table2"))
        if name in BEYOND:
            return measurement_of(name) in ("matchings", *settings.measured)
        return settings.figure9 is not None if name == "figure9" else name != "filter_pairs"

    return [name for name in FIGURES if has(name)]


def measurement_of(name: str) -> str:
    """The measurement beyond the paper that a table or figure shows."""
    return name.removesuffix("_figure")


def _papers_types(settings: Settings) -> list[str]:
    return [model.id for model in settings.models.values() if model.is_papers]


def _beyond(settings: Settings, name: str) -> About:
    """Of a measurement beyond the paper: types and pairs of types, as far as the config has them."""
    section = settings.beyond.get(name, {})
    if name == "matchings":
        models = section.get("models", _papers_types(settings))
        pairs = section.get("pairs", settings.types_paired)
        pairs = [list(pair) for pair in pairs if {*pair} <= {*models}]
        return {
            "models": models,
            "pairs": pairs,
            "matchings": settings.compared,
            "of_flips": sorted(OF_FLIPS),
        }
    return {"models": section.get("models", []), "pairs": [*section.get("pairs", [])]}


def _types_of(several: Iterable[About]) -> list[str]:
    """All types that are named, in pairs as well."""
    return list(dict.fromkeys(chain(*(chain(of["models"], *of.get("pairs", [])) for of in several))))


def about(settings: Settings, name: str) -> About:
    """What of the config a table or figure shows."""
    of_table2, of_table5 = settings.table("table2"), settings.table("table5")
    rows = {row: model for model in of_table5 if (row := settings.paper_row(model))}
    of_claims = [model for model in of_table2 if model in THE_PAPERS] or of_table2
    zero = settings.sections.filters.zero_filter
    common: About = {"names": settings.names}
    pairs = [list(pair) for pair in settings.types_paired]
    if name in FILTER_PAIRS:
        layer, models, flipped_back = FILTER_PAIRS[name]
        models = [model for model in models if model in settings.models]
        return common | {"models": models, "layer": layer, "flipped_back": flipped_back, "zero_filter": zero}
    if name in OF_ALL_MEASUREMENTS:
        models = _types_of(_beyond(settings, of) for of in ("matchings", *settings.measured))
        made = [of for of in [*tables(settings), *figures(settings)] if of in BEYOND - {"beyond_provenance"}]
        of_each = {of: _types_of([about(settings, of)]) for of in made} if name == "beyond_provenance" else {}
        return common | {"models": models, "made": of_each, "notes": notes(settings, models)}
    if name in BEYOND:
        shown = _beyond(settings, measurement_of(name))
        section = settings.beyond.get(measurement_of(name), {})
        return common | shown | {"notes": notes(settings, shown["models"], section)}
    given: dict[str, Callable[[], About]] = {
        "table1": lambda: {
            "models": of_table2,
            "descriptions": {model: settings.models[model].entry.description for model in of_table2},
            "notes": notes(settings, of_table2),
        },
        "table3": lambda: _rows(settings, settings.in_table3),
        "table4": lambda: {"pairs": pairs, "notes": notes(settings, _paired(settings))},
        "table5": lambda: _rows(settings, of_table5),
        "theory": lambda: {"notes": [f"Random draws from seed {settings.sections.theory.seed}"]},
        "comparison": lambda: {
            "tables": {table: about(settings, table) for table in COMPARED if table in tables(settings)},
            "scale": settings.scale,
            "paper": _papers(settings),
            "notes": notes(settings, of_table2),
        },
        "claims": lambda: {
            "models": [*of_claims, *rows.values()],
            "rows": rows,
            "zero_filter": zero,
            "notes": notes(settings, [*of_claims, *rows.values()]),
        },
        "costs": dict,
        "provenance": lambda: {
            "made": {
                made: list(about(settings, made).get("models", [])) or None
                for made in [*tables(settings), *figures(settings)]
                if made not in ("costs", "provenance", "figure10", *BEYOND)
            },
            "notes": notes(settings, of_table2),
        },
        "barriers": lambda: {"models": of_table2},
        "figure2": lambda: {"model": "cnn_inv" if "cnn_inv" in settings.models else of_table2[0]},
        "figure3": dict,
        "figure4": lambda: {"models": of_table2},
        "figure9": lambda: {"model": settings.figure9, "absent": settings.absent},
        "figure10": lambda: {"seed": settings.sections.theory.seed, "images": 4},
        "zero_filters": lambda: {"models": of_table2, "zero_filter": zero},
    }
    return common | given.get(name, lambda: {"models": of_table2, "notes": notes(settings, of_table2)})()


def _paired(settings: Settings) -> list[str]:
    return list(dict.fromkeys(model for pair in settings.types_paired for model in pair))


def _papers(settings: Settings) -> About:
    """By model, what the flip merge of its counterpart in the paper depends on; empty without a valid scale `paper`."""
    paper = settings.paper
    if paper is None:
        return {}
    rows = {paper.paper_row(model): model for model in paper.table("table5")}
    its = {model: model for model in settings.table("table2") if model in paper.models}
    its |= {model: rows.get(settings.paper_row(model)) for model in settings.table("table5")}
    return {model: paper.flip_merge(other) for model, other in its.items() if other}


def _rows(settings: Settings, models: list[str]) -> About:
    return {
        "models": {model: settings.shown(model) for model in models},
        "absent": {model: reason for model, reason in settings.absent.items() if model in models},
        "notes": notes(settings, models),
    }


def inputs(results: Results, name: str) -> dict[str, list[str]]:
    """The jobs whose records a table or figure shows, by kind: all that are done, and those of this run.

    Those of "filters" are flip merges, whose arrays it shows.
    """
    settings, shown = results.settings, about(results.settings, name)
    models = shown.get("models") or ([shown["model"]] if "model" in shown else None)
    if name == "table4":
        models = _paired(settings)
    if name in ("comparison", "costs", "provenance"):
        models = None
    matched = name in ("matchings", "matchings_figure", *OF_ALL_MEASUREMENTS)
    matchings = (None, *settings.matchings) if matched else (None,)
    keys: dict[str, list[str]] = {}
    for kind in kinds_of(name):
        if kind == "theory":
            keys[kind] = [results.statement(statement) for statement in STATEMENTS]
        elif kind == "flipped_training":
            keys[kind] = [results.flipped_training]
        elif kind == "filters":
            keys[kind] = results.shown("flip_merge", models)
        elif matched and kind in ("train", "flip_merge", "pair_merge"):  # the same nets by every matching
            keys[kind] = [
                key
                for by in (matchings if kind != "train" else (None,))
                for key in results.shown(kind, _beyond(settings, "matchings")["models"], by)
                if settings.is_in_matchings(results.jobs[key].nets)
            ]
        elif kind in MEASUREMENTS:
            keys[kind] = results.shown(kind, [*settings.models])
        else:
            of = models if models or name in ("costs", "provenance") else _papers_types(settings)
            keys[kind] = [key for by in matchings for key in results.shown(kind, of, by)]
    return keys


def notes(settings: Settings, models: list[str], section: Values | None = None) -> list[str]:
    """What a reader of a table has to know of its nets: data, architecture, training and merging, and what differs.

    Args:
        section: of the measurement beyond the paper that the table shows.
    """
    section = section or {}
    if not models:
        return []
    nets = [settings.models[model] for model in models]
    lines = _lines(nets, [_net(net, section) for net in nets], "; ", f"Scale {settings.scale}")
    for stage in dict.fromkeys(stage for net in nets for stage in net.recipe):
        trained = [net for net in nets if stage in net.recipe]
        lines += _lines(trained, [_stage(net, stage) for net in trained], ", ", stage.capitalize())
    lines += _lines(nets, [_merging(net, section) for net in nets], "; ", "Merging")
    misaligned = {
        (size, strides)
        for net in nets
        if (strides := STRIDES.get(net.network["architecture"])) and (size := net.image_size) in (32, 64)
    }
    lines += [
        f"At {size} pixels the {strides} strides of a flipped net are off by {2**strides - 1} pixels in all, "
        f"{(2**strides - 1) / size:.0%} of the width (the paper's ResNet50 at 224: 14%): accuracies fall by that "
        "alone, and barriers can be negative"
        for size, strides in sorted(misaligned)
    ]
    return lines


def _net(net: Model, section: Values) -> list[str]:
    data, network = net.data, dict(net.network)
    seeds = [seed for seed in net.seeds if seed in (section.get("seeds") or net.seeds)]
    architecture, width = network.pop("architecture"), network.pop("width", None)
    options = [f"width {width:g}"] if width is not None else []
    options += [f"{key} {value}" for key, value in network.items() if key != "group_convs"]
    size = net.image_size if net.table == "table2" else None  # Table 5 has a column of it
    return [
        f"{data.dataset} data, {_count(data.train_images)}",
        AS_THEY_ARE if size is None else f"images scaled to {size} pixels",
        ", ".join([architecture, *options]),
        net.symmetry.replace("_", " "),
        f"{'seeds' if len(seeds) > 1 else 'seed'} {_ranges(seeds)}",
    ]


def _ranges(seeds: list[int]) -> str:
    """Seeds as a reader lists them: 0, 9-11."""
    runs = [[seed for _, seed in run] for _, run in groupby(enumerate(seeds), key=lambda at: at[1] - at[0])]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _stage(net: Model, stage: str) -> list[str]:
    how = net.stages[stage]
    weight = [how.objective, f"invariance weight {how.invariance_weight:g}"] if stage == "training" else []
    return [
        f"{how.epochs} epochs",
        f"batch {how.batch_size}",
        f"learning rate {how.learning_rate:g}",
        f"{how.schedule} schedule",
        *weight,
    ]


def _merging(net: Model, section: Values) -> list[str]:
    matched = section.get("images") or net.merging.images
    on = f" on {_count(matched)}," if section.get("repair_images") else " and"
    measured = "all test images" if "images" in section else _count(net.merging.invariance_images)
    return [
        f"channels matched{on} REPAIR's statistics taken on {_count(section.get('repair_images') or matched)}",
        f"invariance error over {measured}",
    ]


def _count(images: int | None) -> str:
    return "all training images" if images is None else f"{images:,} training images"


def _lines(nets: list[Model], said: list[list[str]], comma: str, what: str) -> list[str]:
    """A line on the first net, then one on each other kind of nets: their names, and what is other than of the first.

    Args:
        said: of each net, part by part.
    """
    first = said[0]
    usual = [len({*parts}) == 1 and parts[0] in USUAL for parts in zip(*said, strict=True)]
    others: dict[str, list[str]] = {}
    for net, parts in zip(nets, said, strict=True):
        if differing := [part for part, of_first in zip(parts, first, strict=True) if part != of_first]:
            others.setdefault(comma.join(differing), []).append(net.name)
    whole = comma.join(part for part, is_usual in zip(first, usual, strict=True) if not is_usual)
    return [
        f"{what}: {whole}",
        *(f"{what}, {'; '.join(dict.fromkeys(names))}: {text}" for text, names in others.items()),
    ]
