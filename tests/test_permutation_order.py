import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgba
from records import NAMES, flip

from relusym.errors import UserError
from relusym.findings.figures import figure4 as drawing
from relusym.findings.figures.figure4 import COLOURS, figure4, order_counts
from relusym.permutations import channel_orders


def record(model, seed, permutations):
    status = "ok" if permutations else "left_out"
    return flip(model, seed, status=status, permutations=permutations)


RECORDS = [
    # conv10 before conv2: the order of the layers is the net's, not the alphabet's
    record("gcnn", 0, {"conv10": [1, 0, 3, 2], "conv2": [0, 1, 2, 3, 4, 5]}),
    record("gcnn", 1, {"conv10": [1, 2, 3, 0], "conv2": [1, 2, 3, 4, 5, 0]}),
    record("gcnn", 2, None),
    record("cnn", 0, {"conv10": [0, 2, 3, 1], "conv2": [1, 0, 3, 4, 2, 5]}),
    record("pgcnn", 0, None),
]


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


def test_channel_orders_by_hand():
    assert channel_orders([0]).tolist() == [1]
    assert channel_orders([0, 2, 1, 4, 5, 3]).tolist() == [1, 2, 2, 3, 3, 3]
    assert channel_orders(np.roll(np.arange(512), 1)).tolist() == [512] * 512


@pytest.mark.parametrize("wrong", [[0, 0], [1, 2], [-1, 0], [], [[0, 1]], [0.0, 1.0], ["a"], [[0], [0, 1]]])
def test_what_is_no_permutation_is_refused(wrong):
    with pytest.raises(ValueError):
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


def test_a_broken_record_is_named():
    with pytest.raises(UserError, match=r"cnn-3, conv2: not a permutation of 3 channels"):
        order_counts([record("cnn", 3, {"conv1": [0], "conv2": [0, 1, 1]})])
    with pytest.raises(UserError, match=r"cnn-4 lacks 'permutations'"):
        order_counts([flip("cnn", 4) | {"permutations": None}])


def bars(panel, layers):
    """Heights of the bars of a panel by layer and colour: {(layer, colour): height}; layers are numbered from 1."""
    places = [(layers[round(bar.get_x() + bar.get_width() / 2) - 1], bar) for bar in panel.patches]
    at = {(layer, bar.get_facecolor()): bar for layer, bar in places}
    return {key: bar.get_height() for key, bar in at.items() if bar.get_height()}


@pytest.mark.parametrize("read_back", [False, True])
def test_figure4_draws_the_shares_of_the_csv(read_back):
    frame = order_counts(RECORDS)
    if read_back:  # without "5+", whose absence makes the CSV's column one of integers
        frame = frame[(frame["order"] < 5)]
        frame = pd.read_csv(io.StringIO(frame.to_csv(index=False)))
    panels = figure4(frame, ["cnn", "gcnn", "pgcnn"], NAMES).axes
    colour = {order_class: to_rgba(value) for order_class, value in COLOURS.items()}
    layers = [layer.removeprefix("conv") for layer in frame.query("model == 'cnn'")["layer"].unique()]
    assert bars(panels[0], layers) == pytest.approx(
        {
            ("10", colour["1"]): 1 / 4, ("10", colour["3"]): 3 / 4, ("2", colour["1"]): 1 / 6,
            ("2", colour["2"]): 1 / 3, ("2", colour["3"]): 1 / 2,
        }
    )  # fmt: skip
    assert bars(panels[2], []) == {}
    titles = [panel.get_title() for panel in panels[:3]]
    assert titles == ["CNN\n(1 net)", "GCNN\n(2 nets)", "PGCNN\n(0 nets)"]


def test_figure4_has_labelled_axes_and_a_key():
    figure = figure4(order_counts(RECORDS), ["cnn", "gcnn"], NAMES)
    assert figure.get_supxlabel() == "Conv layer (4, 6 channels)"
    assert figure.get_supylabel() == "Share of the layer's channels"
    labels = [text.get_text() for text in figure.axes[2].get_legend().get_texts()]
    assert labels == ["5 or more", "4", "3", "2 (swapped)", "1 (fixed)"]


@pytest.mark.parametrize("ending", ["png", "pdf"])
@pytest.mark.parametrize("records", [RECORDS, []])
def test_figure4_can_be_saved(ending, records):
    buffer = io.BytesIO()
    figure4(order_counts(records), ["cnn", "gcnn", "pgcnn"], NAMES).savefig(buffer, format=ending)
    assert buffer.getvalue().startswith({"png": b"\x89PNG", "pdf": b"%PDF"}[ending])


def test_figure4_and_its_numbers_come_from_the_records():
    figure, counts = drawing.draw({"flip_merge": RECORDS}, {"models": ["mine", "gcnn"], "names": NAMES})
    assert [panel.get_title() for panel in figure.axes[:2]] == ["mine\n(0 nets)", "GCNN\n(2 nets)"]
    pd.testing.assert_frame_equal(counts, order_counts(RECORDS))
    other = flip("gcnn", 3) | {"inputs": {"data": "0b" * 32, "source": "my copy"}}
    with pytest.raises(UserError, match="gcnn-3 from my copy"):
        drawing.draw({"flip_merge": [*RECORDS, other]}, {"models": ["gcnn"], "names": NAMES})
