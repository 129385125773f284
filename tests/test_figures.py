import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, SCRIPTS, config_of, python, refused
from docutils.core import publish_parts
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import StrictUndefined, Template
from matplotlib.colors import to_rgba
from records import NAMES, flip, pair, train
from small_training import CPU, VGG
from torch.overrides import TorchFunctionMode

from relusym import checkpoint
from relusym.channels.groups import permute
from relusym.channels.traced import TracedNet, channel_groups
from relusym.data import image_set
from relusym.data.chiral_shapes import generate
from relusym.findings import declared
from relusym.findings.figures import (
    barriers,
    figure2,
    figure3,
    figure4,
    figure9,
    figure10,
    filter_pairs,
    zero_filters,
)
from relusym.findings.figures.figure2 import exemplary_filters
from relusym.findings.figures.figure4 import COLOURS, order_counts
from relusym.findings.figures.filter_pairs import APART, WEIGHT, WITHIN, colours, pair_grid
from relusym.findings.figures.zero_filters import count_by_type
from relusym.findings.frames import Filters, are_zero, count_zero_filters, first_kept, read_filters
from relusym.findings.print_style import write_figure
from relusym.measuring.flipped_training import flipped_training_record, in_a_plane
from relusym.measuring.merge import filter_arrays, projection_to_rgb
from relusym.nets.vgg import VGG11
from relusym.permutations import channel_orders
from relusym.records.files import write_record
from relusym.symmetry import HORIZONTAL_FLIP
from relusym.theory import STATEMENTS, example_c_2

WIDTH = 1 / 16
CHANNELS = [4, 8, 16, 16, 32, 32, 32, 32]


def a_net(group_convs=0):
    torch.manual_seed(0)
    return VGG11(WIDTH, group_convs, initialization="he")


def arrays_of(net, permutations):
    """The arrays of a net's filters that a merge with these permutations stores."""
    named = {f"conv{i}": torch.as_tensor(order) for i, order in enumerate(permutations, start=1)}
    return filter_arrays(TracedNet(net.to_plain()), HORIZONTAL_FLIP, named, 0)


def kept(folder, group_convs=0, permutations=None, model="cnn"):
    """The stored arrays of a random net, read back; none without permutations, since the net was left out then."""
    arrays, about = {}, {"status": "left_out", "reason": f"{model}-0 is diverged"}
    if permutations:
        arrays, constraint = arrays_of(a_net(group_convs), permutations)
        about = {"status": "ok", "reason": None, "kernel_constraint": constraint}
    about |= {"kind": "filters", "model": model, "seed": 0}
    checkpoint.save_arrays(folder / "filters", arrays, about)
    return read_filters(folder / "filters")


def pairs_of(*nets, layer="conv1", flipped_back=False):
    """The figure of all filters of a layer of these nets, in pairs."""
    how = {"layer": layer, "flipped_back": flipped_back, "zero_filter": 0.1, "names": NAMES}
    (figure,) = filter_pairs.draw({"filters": nets}, {"models": [net.model for net in nets], **how})
    return figure


def of_one(figure, net, name=None):
    """The figure that is made of one net, whose type has this name."""
    selection = {"model": net.model, "names": NAMES | ({net.model: name} if name else {})}
    (drawing,) = figure.draw({"filters": [net]}, selection)
    return drawing


def zeros_of(nets, models):
    return zero_filters.draw({"filters": nets}, {"models": models, "zero_filter": 0.1, "names": NAMES})[0]


def random_permutations(seed=0):
    rng = np.random.default_rng(seed)
    return [rng.permutation(channels) for channels in CHANNELS]


class Convolved(TorchFunctionMode):
    """Collects the kernels of all convolutions computed under it."""

    def __init__(self):
        super().__init__()
        self.kernels = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.conv2d:
            self.kernels.append(args[1].detach().numpy())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("group_convs", [0, 2, 8])
def test_kernels_are_those_of_the_nets_convolutions_and_of_its_permuted_flipped_self(group_convs):
    net = a_net(group_convs)
    permutations = random_permutations()
    arrays, constraint = arrays_of(net, permutations)
    with Convolved() as seen:
        net(torch.zeros(1, 3, 32, 32))
    assert len(seen.kernels) == 8
    net = net.to_plain()
    orders = {f"conv{i}": torch.from_numpy(order) for i, order in enumerate(permutations, start=1)}
    matched = permute(HORIZONTAL_FLIP.transform(net).state_dict(), channel_groups(net), orders)
    flipped = [matched[f"features.conv{i}.weight"].numpy() for i in range(1, 9)]
    weights = [np.stack(both) for both in zip(seen.kernels, flipped, strict=True)]
    assert np.array_equal(arrays["conv1"], weights[0].astype(np.float16))
    projected = np.tensordot(weights[1], projection_to_rgb(CHANNELS[0], 0), (2, 1))  # RGB comes out last
    assert np.allclose(arrays["conv2"], np.moveaxis(projected, -1, 2), atol=2e-3)
    for i, (both, order) in enumerate(zip(weights, permutations, strict=True), start=1):
        norms = np.sqrt((both[0].astype(float) ** 2).sum((1, 2, 3)))
        assert np.array_equal(arrays[f"norm.conv{i}"], norms.astype(np.float32))
        difference = np.linalg.norm(both[1] - both[0]) / np.linalg.norm(both[0])
        assert constraint[f"conv{i}"] == pytest.approx(difference, rel=1e-5)
        assert i > 2 or np.array_equal(arrays[f"permutation.conv{i}"], order)


def test_a_net_left_out_has_no_arrays_and_its_figures_have_the_reason(tmp_path):
    net = kept(tmp_path)
    assert (net.status, net.drawn, net.norms) == ("left_out", {}, {})
    assert count_zero_filters([net], 0.1).empty
    drawn = pairs_of(net, net, flipped_back=True)
    assert "cnn-0 is diverged" in drawn.axes[0].get_title()
    assert "cnn-0 is diverged" in of_one(figure2, net).texts[0].get_text()
    figure = zeros_of([net], ["cnn"])
    assert [text.get_text() for text in figure.legends[0].texts] == ["CNN (0)", "below: zero-filter"]


def test_the_first_net_that_trained_well_is_shown():
    nets = [Filters("gcnn", 0, "ok", None, {}, {}, {}, {})]
    for seed, status in enumerate(("left_out", "ok", "ok")):
        nets.append(Filters("cnn", seed, status, "diverged", {}, {}, {}, {}))
    assert first_kept(nets, "cnn").seed == 1 and first_kept(nets[:2], "cnn").seed == 0
    line = r"of type pgcnn: `snakemake --cores all` makes them, .*models\.pgcnn\.weights\.file"
    refused(lambda: first_kept(nets, "pgcnn"), match=line)


def test_a_checkpoint_is_refused_as_a_file_of_filters(tmp_path):
    checkpoint.save(tmp_path / "net", a_net().state_dict(), {"settings": {}})
    refused(lambda: read_filters(tmp_path / "net"), match="holds no filters")


def test_a_filter_below_a_share_of_the_largest_norm_is_zero_however_many_others_are_zero():
    assert are_zero(np.array([2, 0.21, 0.19, 0]), 0.1).tolist() == [False, False, True, True]
    assert are_zero(np.array([2, 0.21, *[0.0] * 100]), 0.1).sum() == 100
    assert not are_zero(np.ones(4), 0.1).any()


def net_with_norms(model, seed, *norms):
    by_layer = {f"conv{i}": np.array(n, np.float32) for i, n in enumerate(norms, start=1)}
    return Filters(model, seed, "ok", None, {}, {}, by_layer, {})


def test_zero_filters_are_counted_by_layer_and_type():
    nets = [
        net_with_norms("gcnn", 0, [1, 0.05, 0.01, 0.5], [1, 1]),
        net_with_norms("gcnn", 1, [1, 0.9, 0.9, 0.5], [1, 0]),
        net_with_norms("cnn", 0, [1, 1, 1, 0.2], [1, 1]),
    ]
    by_net = count_zero_filters(nets, 0.1)
    assert by_net["zero_filters"].tolist() == [2, 0, 0, 1, 0, 0]
    by_type = count_by_type(by_net, ["cnn", "gcnn"]).set_index(["model", "layer"])
    assert by_type.index.tolist() == [(m, layer) for m in ("cnn", "gcnn") for layer in ("conv1", "conv2")]
    first = by_type.loc[("gcnn", "conv1")]
    assert (first["zero_filters_mean"], first["share_mean"], first["n"]) == (1, 0.25, 2)
    assert first["zero_filters_std"] == pytest.approx(2**0.5)
    assert pd.isna(by_type.loc[("cnn", "conv1"), "share_std"])
    figure = zeros_of(nets, ["cnn", "gcnn"])
    legend = [text.get_text() for text in figure.legends[0].texts]
    assert legend == ["CNN (1)", "GCNN (2)", "below: zero-filter"]


def test_each_filter_is_drawn_left_of_its_match():
    pairs = np.random.default_rng(0).standard_normal((2, 5, 3, 3, 3))
    shown, grid = colours(pairs), pair_grid(pairs, 2)
    side = 3 * WEIGHT
    height, width = side + APART, 2 * side + WITHIN + APART
    assert grid.shape == (3 * height, 2 * width, 3)
    for number in range(5):
        top, left = number // 2 * height + APART // 2, number % 2 * width + APART // 2
        for which, start in enumerate((left, left + side + WITHIN)):
            drawn = grid[top : top + side, start : start + side][WEIGHT // 2 :: WEIGHT, WEIGHT // 2 :: WEIGHT]
            assert np.array_equal(drawn, shown[which, number])
    assert (grid[2 * height :, width:] == 1).all()  # the sixth place is blank


def test_zero_weights_are_grey_even_in_a_layer_of_zeros():
    weights = np.zeros((2, 3, 3, 3))
    assert (colours(weights) == 0.5).all()
    weights[0, 0] = 1
    assert (colours(weights)[1] == 0.5).all() and colours(weights)[0, 0, 0].tolist() == [1, 0.5, 0.5]


def test_figure_1_shows_matches_as_they_are_in_the_net_and_figure_5_as_they_are_permuted(tmp_path):
    net = kept(tmp_path, 0, random_permutations())
    figures = (pairs_of(net, flipped_back=flipped_back) for flipped_back in (True, False))
    back, permuted = (figure.axes[0] for figure in figures)
    original, matched = net.drawn["conv1"]
    order = net.permutations["conv1"]
    assert np.array_equal(back.images[0].get_array(), pair_grid(np.stack([original, original[order]]), 8))
    assert np.array_equal(permuted.images[0].get_array(), pair_grid(np.stack([original, matched]), 8))
    assert permuted.get_title().startswith("CNN, seed 0\nrelative difference 1.")


@pytest.mark.parametrize("permutation, expected", [
    ([1, 0, 2, 3, 4], {0, 1, 2}),  # a swapped pair and the most symmetric of the fixed ones
    ([1, 0, 3, 2, 4], {0, 1, 4}),  # the pair whose filters are alike once flipped
    ([0, 1, 2, 3, 4], {0, 1, 2, 3, 4}),  # fixed ones only
    ([1, 2, 0, 4, 3], {3, 4}),  # a pair alone
    ([1, 2, 3, 4, 0], set()), ([1, 2, 0], {0, 1, 2}),
])  # fmt: skip
def test_figure_2_takes_filters_that_the_permutation_keeps_among_themselves(permutation, expected):
    filters = np.random.default_rng(0).standard_normal((5, 3, 3, 3))
    filters[1] = filters[0, ..., ::-1]
    filters[2] += filters[2, ..., ::-1]
    chosen = exemplary_filters(filters[: len(permutation)], permutation)
    assert set(chosen) <= expected and len(chosen) == min(3, len(expected))
    assert {permutation[c] for c in chosen} == set(chosen)


@pytest.mark.slow(seconds=1)
def test_figure_2_has_four_steps(tmp_path):
    orders = random_permutations()
    orders[0] = np.array([1, 0, 2, 3])
    net = kept(tmp_path, 0, orders)
    figure = of_one(figure2, net)
    images = np.stack([axes.images[0].get_array() for axes in figure.axes]).reshape(3, 4, 3, 3, 3)
    shown = colours(net.drawn["conv1"][0])
    chosen = [int(axes.get_xlabel().split()[-1]) for axes in figure.axes[::4]]
    assert {chosen[0], chosen[2]} == {0, 1} and chosen[1] in (2, 3)
    assert np.array_equal(images[:, 0], shown[chosen])
    assert np.array_equal(images[:, 1], shown[chosen][:, :, ::-1])
    assert np.array_equal(images[:, 3], shown[orders[0][chosen]])
    assert np.array_equal(images[:, 2], images[:, 3][:, :, ::-1])
    write_figure(figure, [tmp_path / "figure2.png", tmp_path / "figure2.pdf"])


@pytest.fixture(scope="module")
def flipped(tmp_path_factory):
    data = tmp_path_factory.mktemp("data") / "data"
    image_set.save(data, *generate(60, 20, 0))
    settings = {
        "data": {"dataset": "generated", "train_images": None, "seed": 0}, "network": VGG,
        "training": {**{"seed": 0, "steps": 12, "batch_size": 10, "learning_rate": 0.02},
         **{"momentum": 0.9, "weight_decay": 5e-4, "crop_padding": 2}},
    }  # fmt: skip
    return settings, data, flipped_training_record(settings, data, "generated shapes", device=CPU)


def test_figure_3_the_flipped_twin_stays_the_flipped_net_only_on_flipped_batches(flipped):
    _, _, record = flipped
    json.dumps(record, allow_nan=False)
    assert record["largest_difference"]["float64"] < 1e-12
    assert record["largest_difference_on_same_batches"]["float64"] > 1e-3
    for run in record["runs"].values():
        assert len(run["loss"]) == 12 and len(run["flipped_batches"]) == len(run["same_batches"]) == 13
        assert run["flipped_batches"][0] == run["same_batches"][0] == 0
        assert run["flipped_batches"][1] < 1e-6 < run["same_batches"][1]


@pytest.mark.slow(seconds=1)
def test_figure_3_the_two_paths_are_mirror_images(flipped, tmp_path):
    net, twin = (np.array(flipped[2]["paths"][name]) for name in ("net", "flipped"))
    assert net.shape == (13, 2) and np.ptp(net[:, 1]) > 1e-3
    assert net * [-1, 1] == pytest.approx(twin, abs=1e-12)
    path = list(np.random.default_rng(0).standard_normal((4, 2, 3, 3, 3)))
    for point, mirrored in zip(*in_a_plane([path, [p[..., ::-1] for p in path]]), strict=True):
        assert point * [-1, 1] == pytest.approx(mirrored)
    (figure,) = figure3.draw({"flipped_training": [flipped[2]]}, {})
    write_figure(figure, [tmp_path / "figure3.png", tmp_path / "figure3.pdf"])


@pytest.mark.parametrize("changed, message", [
    ({"learning_rate": 1e9}, "diverged"), ({"batch_size": 61}, "more than the 60"),
])  # fmt: skip
def test_figure_3_refuses_impossible_settings(flipped, changed, message):
    settings, data, _ = flipped
    settings = {**settings, "training": {**settings["training"], **changed}}
    refused(lambda: flipped_training_record(settings, data, "generated shapes", device=CPU), match=message)


def resnet(status="ok"):
    pairs = np.random.default_rng(0).standard_normal((2, 16, 3, 7, 7))
    drawn = {"conv1": pairs} if status == "ok" else {}
    return Filters("old", 0, status, "it is no better than chance", drawn, {}, {}, {})


def test_figure_9_shows_each_filter_beside_its_match_or_the_reason_why_not():
    net = resnet()
    (panel,) = of_one(figure9, net, "A net").axes
    assert panel.get_title() == "A net"
    assert np.array_equal(panel.images[0].get_array(), pair_grid(net.drawn["conv1"], 8))
    left_out = of_one(figure9, resnet("left_out"), "A net")
    assert "A net is left out: it is no better than chance" in [text.get_text() for text in left_out.texts]


def test_a_layer_whose_filters_are_not_stored_is_named():
    line = "no filters of conv2 are kept for old-0, only conv1"
    refused(lambda: pairs_of(resnet(), layer="conv2"), match=line)


def test_figure_10_draws_both_classes_of_images_of_example_c_2(tmp_path):
    classes = example_c_2.image_classes(0, 3)
    (figure,) = figure10.draw({}, {"seed": 0, "images": 3})
    assert [axes.get_ylabel() for axes in figure.axes[::3]] == ["class 1", "class 2"]
    drawn = np.stack([axes.images[0].get_array() for axes in figure.axes]).reshape(2, 3, 20, 20)
    assert (drawn == classes).all()
    figure.savefig(tmp_path / "figure10.pdf")
    assert (tmp_path / "figure10.pdf").stat().st_size > 0


SCRIPT = """
import json, runpy, sys
from types import SimpleNamespace

class Files(list):
    def __init__(self, all, **named):
        super().__init__(all)
        self.named = named
    def get(self, name, default=None):
        return self.named.get(name, default)

for given in json.loads(sys.argv[1]):
    params = Files([])
    params.selection, params.name, params.files = given["selection"], given["rule"], given["input"]
    rule = SimpleNamespace(
        rule=given["rule"], params=params, input=Files([]), output=Files(given["output"]),
        log=[given["rule"] + ".log"], threads=1, resources={},
    )
    runpy.run_path(given["script"], {"snakemake": rule})
sys.exit("torch" in sys.modules)
"""


def run_script(made, selection, folder, environment, **inputs):
    """Run finding.py as Snakemake does, for one rule after another, in a folder; it must not need PyTorch."""
    same = {"script": str(SCRIPTS / "finding.py"), "selection": selection, "input": inputs}
    rules = [same | {"rule": rule, "output": [f"{rule}{end}" for end in ends]} for rule, ends in made.items()]
    python(SCRIPT, json.dumps(rules), folder=folder, **environment)


@pytest.mark.slow(seconds=10)
def test_the_same_records_give_the_same_bytes_on_another_day_in_another_process(tmp_path):
    kept(tmp_path, 8, random_permutations(), "gcnn")
    filters = (tmp_path / "filters").rename(tmp_path / "gcnn-0.safetensors")
    inputs = {"filters": [str(filters)], "train": [], "flip_merge": []}
    for kind, make in (("train", train), ("flip_merge", flip)):
        for seed in range(3):
            path = tmp_path / kind / f"{seed}.json"
            record = make("gcnn", seed, 0.9 if kind == "train" else 0.1 + 0.7 / (seed + 3))
            write_record(path, record)
            inputs[kind].append(str(path))
    selection = {"models": ["gcnn"], "names": NAMES, "notes": ["a note"], "zero_filter": 0.1}
    selection |= {"layer": "conv1", "flipped_back": False, "seed": 0, "images": 4}
    made = {
        "table2": (".csv", ".md", ".tex", ".html"), "barriers": (".png", ".pdf", ".csv"),
        "figure4": (".png", ".pdf", ".csv"), "figure7": (".png", ".pdf"), "figure10": (".png", ".pdf"),
        "zero_filters": (".png", ".pdf", ".csv", "_by_net.csv"),
    }  # fmt: skip
    days = ("a", "1", "1000000000", "UTC"), ("b", "2", "1700000000", "Asia/Tokyo")
    for folder, seed, epoch, zone in days:
        (tmp_path / folder).mkdir()
        environment = {"PYTHONHASHSEED": seed, "SOURCE_DATE_EPOCH": epoch, "TZ": zone}
        run_script(made, selection, tmp_path / folder, environment, **inputs)
    for rule, endings in made.items():
        for ending in endings:
            first, second = (tmp_path / folder / f"{rule}{ending}" for folder in "ab")
            assert first.stat().st_size > 0 and first.read_bytes() == second.read_bytes()
            assert b"atplotlib" not in first.read_bytes()


@pytest.mark.slow(seconds=2)
def test_tables_figures_and_theory_start_without_torch():
    code = "import sys; from relusym import findings, theory; theory.demonstrate('example_2_1'); "
    code += "[finding.load() for finding in findings.declared().values()]; "
    code += "rooms = {name.split('.')[1] for name in sys.modules if name.startswith('relusym.')}; "
    rooms = "not rooms & {'data', 'nets', 'merging', 'measuring'}"
    python(f"{code}assert {rooms} and 'torch' not in sys.modules")


def test_every_declaration_is_read_without_pandas():
    code = "import sys; from relusym import findings; assert len(findings.declared()) > 30; "
    python(code + "assert not {'numpy', 'pandas', 'scipy', 'matplotlib'} & {*sys.modules}")


CAPTIONS = sorted(path.stem for path in (ROOT / "report").glob("*.rst"))
FILLED = {"figure1": "CNN + inv-loss (Net A) and CNN (Net B), each", "figure7": "GCNN", "figure9": "(GCNN)"}
FILLED |= dict.fromkeys(("figure5", "figure6", "figure8", "zero_filters"), "0.125")


def test_every_table_figure_and_statement_has_a_caption_and_there_are_no_others():
    assert set(CAPTIONS) == {*declared(), *STATEMENTS, "workflow"}


@pytest.mark.parametrize("name", CAPTIONS)
def test_captions_are_valid(name):
    models = ["cnn_inv", "cnn"] if name == "figure1" else ["gcnn"]
    selection = {"models": models, "model": "gcnn", "names": NAMES, "zero_filter": 0.125}
    config = config_of(ROOT) | {"net": {"width": 0.125, "epochs": 14}}
    params = SimpleNamespace(selection=selection)
    job = SimpleNamespace(params=params, config=config, wildcards=SimpleNamespace())
    text = Template((ROOT / "report" / f"{name}.rst").read_text(encoding="utf-8"), undefined=StrictUndefined)
    filled = text.render(snakemake=job, files=[])  # without results, which Snakemake inserts
    strict = {"halt_level": 2, "report_level": 2}
    body = publish_parts(filled, writer="html", settings_overrides=strict)["body"]
    assert len(body) > 100 and "{{" not in body and "{%" not in body
    assert FILLED.get(name, "") in " ".join(body.split())


def test_the_figure_at_a_glance_has_a_point_for_every_net_and_pair_and_lines_at_their_means():
    inputs = {"train": [], "flip_merge": [], "pair_merge": []}
    for model, barrier in {"cnn": 0.05, "gcnn": 0.0, "pgcnn": 0.035}.items():
        for seed in range(3):
            inputs["train"].append(train(model, seed))
            status = "ok" if (model, seed) != ("pgcnn", 0) else "left_out"
            inputs["flip_merge"].append(flip(model, seed, barrier + 0.01 * seed, status))
    pairs = (("cnn", 0, "cnn", 1, 0.1), ("cnn", 1, "cnn", 2, 0.2), ("cnn", 0, "gcnn", 0))
    inputs["pair_merge"] += [pair(*each) for each in pairs]
    figure, points = barriers.draw(inputs, {"models": ["gcnn", "cnn", "pgcnn"], "names": NAMES})
    counted = points.groupby(["model", "merged"]).size().to_dict()
    flips = {("gcnn", barriers.FLIP): 3, ("cnn", barriers.FLIP): 3, ("pgcnn", barriers.FLIP): 2}
    assert counted == flips | {("cnn", barriers.PAIR): 2}
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["GCNN", "CNN", "PGCNN"]
    lines = [(line.get_xdata(), line.get_linewidth()) for line in axes.lines]
    means = sorted(xs[0] for xs, width in lines if len(set(xs)) == 1 and width > 1)
    assert means == pytest.approx([0.01, 0.05, 0.06, 0.15])
    marks = {float(x) for marks in axes.collections for x, _ in marks.get_offsets()}
    diamonds = marks - set(points["barrier"])
    assert {0.04, 0.0508, 8.92e-4, 0.0659, 0.0309} <= diamonds  # the paper's means
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first type on top


def record(model, seed, permutations):
    status = "ok" if permutations else "left_out"
    return flip(model, seed, status=status, permutations=permutations)


RECORDS = [  # conv10 before conv2: the order of the layers is the net's, not the alphabet's
    record("gcnn", 0, {"conv10": [1, 0, 3, 2], "conv2": [0, 1, 2, 3, 4, 5]}),
    record("gcnn", 1, {"conv10": [1, 2, 3, 0], "conv2": [1, 2, 3, 4, 5, 0]}), record("gcnn", 2, None),
    record("cnn", 0, {"conv10": [0, 2, 3, 1], "conv2": [1, 0, 3, 4, 2, 5]}), record("pgcnn", 0, None),
]  # fmt: skip


def literal_orders(permutation):
    orders = []
    for channel in range(len(permutation)):
        k, at = 1, permutation[channel]
        while at != channel:
            k, at = k + 1, permutation[at]
        orders.append(k)
    return orders


@given(st.integers(1, 60).flatmap(lambda size: st.permutations(range(size))))
def test_channel_orders_equal_literal_iteration(permutation):
    assert channel_orders(permutation).tolist() == literal_orders(permutation)
    by_hand = ([0], [1]), ([0, 2, 1, 4, 5, 3], [1, 2, 2, 3, 3, 3]), (np.roll(np.arange(512), 1), [512] * 512)
    assert all(channel_orders(by).tolist() == orders for by, orders in by_hand)


@pytest.mark.parametrize("wrong", [[0, 0], [1, 2], [-1, 0], [], [[0, 1]], [0.0, 1.0], ["a"], [[0], [0, 1]]])
def test_a_list_that_is_no_permutation_is_refused(wrong):
    with pytest.raises(ValueError, match=r"not a permutation of \d channels|inhomogeneous"):
        channel_orders(wrong)


def test_counts_are_means_over_the_nets_that_are_ok():
    frame = order_counts(RECORDS)
    rows = [tuple(row) for row in frame[["model", "layer", "order", "channels", "n"]].to_numpy()]
    assert rows == [
        ("gcnn", "conv10", 2, 2.0, 2), ("gcnn", "conv10", 4, 2.0, 2), ("gcnn", "conv2", 1, 3.0, 2),
        ("gcnn", "conv2", 6, 3.0, 2), ("cnn", "conv10", 1, 1.0, 1), ("cnn", "conv10", 3, 3.0, 1),
        ("cnn", "conv2", 1, 1.0, 1), ("cnn", "conv2", 2, 2.0, 1), ("cnn", "conv2", 3, 3.0, 1),
    ]  # fmt: skip
    assert frame["order_class"].to_list() == ["2", "4", "1", "5+", "1", "3", "1", "2", "3"]
    assert frame["share"].to_list() == pytest.approx([1 / 2] * 4 + [1 / 4, 3 / 4, 1 / 6, 1 / 3, 1 / 2])


def bars(panel, layers):
    """Heights of the bars of a panel by layer and colour: {(layer, colour): height}; layers are numbered from 1."""
    places = [(layers[round(bar.get_x() + bar.get_width() / 2) - 1], bar) for bar in panel.patches]
    at = {(layer, bar.get_facecolor()): bar for layer, bar in places}
    return {key: bar.get_height() for key, bar in at.items() if bar.get_height()}


def orders_of(records, *models):
    return figure4.draw({"flip_merge": records}, {"models": models, "names": NAMES})


def test_figure4_draws_the_shares_of_the_csv():
    figure, frame = orders_of(RECORDS, "cnn", "gcnn", "mine")
    pd.testing.assert_frame_equal(frame, order_counts(RECORDS))
    panels = figure.axes
    colour = {order_class: to_rgba(value) for order_class, value in COLOURS.items()}
    layers = [layer.removeprefix("conv") for layer in frame.query("model == 'cnn'")["layer"].unique()]
    shares = {"10": {"1": 1 / 4, "3": 3 / 4}, "2": {"1": 1 / 6, "2": 1 / 3, "3": 1 / 2}}
    expected = {(layer, colour[k]): share for layer, of in shares.items() for k, share in of.items()}
    assert bars(panels[0], layers) == pytest.approx(expected)
    assert bars(panels[2], []) == {}
    titles = [panel.get_title() for panel in panels[:3]]
    assert titles == ["CNN\n(1 net)", "GCNN\n(2 nets)", "mine\n(0 nets)"]


def test_figure4_has_labelled_axes_and_a_key():
    figure, _ = orders_of(RECORDS, "cnn", "gcnn")
    assert figure.get_supxlabel() == "Conv layer (4, 6 channels)"
    assert figure.get_supylabel() == "Share of the layer's channels"
    labels = [text.get_text() for text in figure.axes[2].get_legend().get_texts()]
    assert labels == ["5 or more", "4", "3", "2 (swapped)", "1 (fixed)"]


def test_figure4_can_be_saved_without_nets(tmp_path):
    write_figure(orders_of([], "cnn", "gcnn", "pgcnn")[0], [tmp_path / "figure4.png"])
    assert (tmp_path / "figure4.png").stat().st_size > 0
