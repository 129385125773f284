from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml
from conftest import ROOT, refused, scale_of, settings_of, write_scale
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st

from relusym.config.reading import check_file
from relusym.config.sections import SHARED, Run, Scale
from relusym.config.settings import Settings
from relusym.errors import UserError
from relusym.records.results import Results

DEMO = scale_of(ROOT, "demo")


@pytest.mark.parametrize("scale", sorted(path.stem for path in (ROOT / "scales").glob("*.yaml")))
def test_a_scale_is_whole_in_plain_yaml(scale):
    path = ROOT / "scales" / f"{scale}.yaml"
    check_file(path)
    tokens = yaml.scan(path.read_text(encoding="utf-8"))
    assert not [token for token in tokens if isinstance(token, yaml.AnchorToken | yaml.AliasToken)]
    assert {"seeds", "data", "network", "training", "merging", "models", "pairs"} <= {*scale_of(ROOT, scale)}


def test_config_yaml_is_a_screen_and_names_every_key_of_a_run():
    text = (ROOT / "config.yaml").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 50 and [*yaml.safe_load(text)] == [*Run.model_fields]
    assert Settings.of(yaml.safe_load(text), [ROOT / "scales"]).run == Settings.of({}, [ROOT / "scales"]).run


def test_a_users_scale_is_a_copy_and_takes_precedence_over_this_projects(tmp_path):
    write_scale(tmp_path, "mine", DEMO | {"training": DEMO["training"] | {"epochs": 6}})
    write_scale(tmp_path, "demo", DEMO | {"seeds": 7, "beyond": {}})
    folders = [tmp_path / "scales", ROOT / "scales"]
    mine = Settings.of({"scale": "mine"}, folders)
    assert mine.train("cnn")["training"]["epochs"] == 6 and mine.paper.sections.seeds == [*range(24)]
    assert Settings.of({"scale": "demo"}, folders).sections.seeds == [7]
    line = r"^scale: 'min' given; allowed is one of .*mine.*\(is it mine\?\)$"
    refused(lambda: Settings.of({"scale": "min"}, folders), match=line)


def test_the_runs_settings_override_the_scales_file_and_a_models_override_both():
    training = {"batch_size": 25, "learning_rate": 0.5}
    settings = settings_of(training=training, models={"cnn_noaug": {"image_size": 40}})
    cnn, gcnn = (settings.train(model)["training"] for model in ("cnn", "gcnn"))
    assert cnn["batch_size"] == gcnn["batch_size"] == 25
    assert (cnn["learning_rate"], gcnn["learning_rate"]) == (0.5, 0.01)
    assert settings.models["cnn_noaug"].image_size == 40 and settings.models["gcnn"].image_size is None


def test_weights_take_the_place_of_a_training_of_several_stages():
    models = {"simsiam_odd": {"seeds": 0, "weights": {"file": "simsiam.pth"}}}
    assert settings_of(models=models).models["simsiam_odd"].recipe == []


@pytest.mark.parametrize(
    ("scale", "data"), [("demo", {"dataset": "cifar10"}), ("laptop", {"dataset": "mine"})]
)
def test_one_key_points_a_scale_at_other_images(scale, data):
    mine = {"source": "folder", "root": "mine", "label": "Mine"}
    of_scale = partial(settings_of, scale=scale, datasets={"mine": mine})
    plain, settings = of_scale(), of_scale(data=data)
    assert settings.train("cnn")["data"]["dataset"] == data["dataset"]
    assert {*settings.train("cnn")["data"]} == {*plain.train("cnn")["data"]} - {"test_images", "invariant_to"}
    over = {"cifar10": {}, "datasets": {"mine": mine}}
    assert data["dataset"] in plain.unread(over) and data["dataset"] not in settings.unread(over)
    same = of_scale(data=data | {"test_images": None, "invariant_to": None})
    assert same.train("cnn") == settings.train("cnn")
    line = "data.test_images: only for generated images"
    refused(lambda: of_scale(data=data | {"test_images": 9}), match=line)


def test_a_scale_needs_only_seeds_models_and_a_training():
    training = {"epochs": 2, "batch_size": 10, "learning_rate": 0.1}
    data = {"train_images": 5000, "test_images": 10}
    least = {"seeds": 0, "models": {"cnn": {}}, "training": training, "data": data}
    assert training.items() <= settings_of(least).train("cnn")["training"].items()
    for sections, missing in (
        ({"training": training}, "the keys 'seeds', 'models' are missing"),
        (least | {"training": {}}, "training: the keys 'epochs', 'batch_size', 'learning_rate' are missing"),
        (least | {"data": {}}, "data: generated images need numbers train_images and test_images"),
    ):
        refused(partial(settings_of, sections), match=f"demo.yaml: {missing}$")


@pytest.mark.parametrize("scale", ["laptop", "paper"])
def test_every_committed_record_has_the_settings_of_its_scales_file(scale):
    results = Results(settings_of(scale=scale), root=str(ROOT / "results"))
    records = (ROOT / "results" / scale / "records").rglob("*.json")
    keys = {str(path): results.key_of(str(path)) for path in records if path.name != "settings.json"}
    assert len(keys) > 15
    assert [path for path, key in keys.items() if key is None or not results.is_there(key)] == []


SCALARS = st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=12)
ANYTHING = st.recursive(
    SCALARS,
    lambda it: st.lists(it, max_size=3) | st.dictionaries(st.text(max_size=8), it, max_size=3),
    max_leaves=6,
)
MODELS = st.sampled_from([*DEMO["models"], "cn", "all", ""])
SEEDS = st.lists(st.integers(-1, 20) | st.text(max_size=3), max_size=4) | st.integers(-2, 2**33)
SEEDS |= st.from_regex(r"[0-9,\-_ ]{0,12}", fullmatch=True)
KEYS = {
    "pairs": st.lists(st.lists(MODELS, max_size=3), max_size=4) | ANYTHING,
    "seeds": SEEDS | ANYTHING,
    "jobs_per_gpu": st.integers(-2, 2**70) | ANYTHING,
    "matchings": st.lists(st.sampled_from(["weight", "identity", "weigth"]) | ANYTHING, max_size=3)
    | ANYTHING,
    "threads": st.integers(-2, 5) | st.sampled_from(["2", "2.0", "two", "1e3", "nan"]) | ANYTHING,
    "device": st.from_regex(r"(cpu|cuda|auto|gpu)?(:[0-9]*)?\n?", fullmatch=True) | ANYTHING,
    "models": st.dictionaries(MODELS | st.text(max_size=80), ANYTHING, max_size=2),
    "beyond": st.dictionaries(
        st.sampled_from(["curves", "matchings", "by_layer", "curve"]),
        st.fixed_dictionaries({},
         optional={"models": st.lists(MODELS), "seeds": SEEDS, "points": st.integers()}) | ANYTHING,
        max_size=2,
    ),
}  # fmt: skip


def lines_of(error):
    """The lines of an error, which must be single, distinct and short."""
    lines = str(error).split("\n")
    assert len({*lines}) == len(lines), lines
    assert all(line.isprintable() and 0 < len(line) < 1000 for line in lines), lines
    return lines


@pytest.mark.parametrize("key", KEYS)
def test_any_value_of_a_key_is_accepted_or_refused_in_a_line_that_begins_with_the_key(key):
    @how(max_examples=150, derandomize=True)
    @given(KEYS[key])
    def check(value):
        try:
            settings = Settings.of({"scale": "demo", key: value}, [ROOT / "scales"])
        except UserError as error:
            # a model's value may conflict with a key of the scale
            lines = lines_of(error)
            assert key == "models" or all(line.startswith(key) for line in lines), lines
        else:
            seeds = {*(settings.run.seeds or settings.sections.seeds)}
            assert settings.run.threads >= 1 and seeds <= {0, 1, 2}
            assert all(pair[0] != pair[1] for pair in settings.pairs)

    check()


DICTS = [section for name in SHARED if isinstance(section := DEMO.get(name), dict)]
KEYS_BELOW = [None, *dict.fromkeys(key for section in DICTS for key in section)]


@how(max_examples=400, derandomize=True)
@given(st.sampled_from([*Run.model_fields, *Scale.model_fields]), st.sampled_from(KEYS_BELOW), ANYTHING)
def test_anything_anywhere_is_accepted_or_refused_in_one_line(section, key, value):
    try:
        Settings.of({"scale": "demo", section: value if key is None else {key: value}}, [ROOT / "scales"])
    except UserError as error:
        lines_of(error)


TOKENS = [
    "!!int x", "2023-02-30", "&a ", "*a", "? ", ": ", "\t", "[", "{", "<<: ", "=", "%", "---", "!x ", "'",
    "- ",
]  # fmt: skip
TOKENS += ["!!binary é", "!!timestamp x", "\n ", "\u2028", ".inf"]


@how(max_examples=300, derandomize=True)
@given(st.lists(st.tuples(
    st.integers(0, 10**4), st.sampled_from(TOKENS).map(str.encode) | st.binary(min_size=1, max_size=3),
), min_size=1, max_size=3))  # fmt: skip
def test_a_config_file_of_any_bytes_is_read_or_refused_in_one_line(edits):
    text = (ROOT / "config.yaml").read_bytes()
    for place, what in edits:
        place %= len(text)
        text = text[:place] + what + text[place:]
    with TemporaryDirectory() as folder:
        path = Path(folder, "config.yaml")
        path.write_bytes(text)
        try:
            check_file(path)
        except UserError as error:
            assert "\n" not in str(error)
