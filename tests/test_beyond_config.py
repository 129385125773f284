import shutil
from pathlib import Path

import pytest
from conftest import ROOT, python, refused, scale_of, settings_of

from relusym.beyond import MEASUREMENTS
from relusym.config.settings import Settings
from relusym.findings import Table, declared, selection
from relusym.records.files import snapshot_path
from relusym.records.fingerprint import differences
from relusym.records.results import Results
from relusym.schema import seed_list

BEYOND = {name for name, finding in declared().items() if finding.is_beyond}
# tables that belong to other scales
APART = {"regime", "identifiability", "identifiability_figure", "universe", "invariance_errors"}
SCALES = sorted(path.stem for path in ROOT.glob("scales/*.yaml"))
LAPTOP = scale_of(ROOT, "laptop")
SEEDS = {*seed_list(LAPTOP["beyond"]["curves"]["seeds"])}  # of all measurements, but those of several nets
IN_NOTES = f"; seeds {LAPTOP['beyond']['curves']['seeds'].replace(',', ', ')}"
FROM_SCRATCH = {"models": ["cnn"], "from_scratch": ["cnn_inv"]}


def settings(**beyond) -> Settings:
    return settings_of(LAPTOP | ({"beyond": beyond} if beyond else {}), "laptop")


@pytest.fixture(scope="module")
def laptop() -> Results:
    return Results(settings())


def jobs(results, kind):
    return {path: job for path, job in results.jobs.items() if job.kind == kind}


def noted(results, name):
    """The notes of a table on the nets that it shows."""
    settings = selection.of_nets_shown(results, selection.keys(results, name))
    return selection.select(settings, name).get("notes", [])


def test_the_laptop_measures_everything_on_four_seeds_of_each_type(laptop):
    assert {*laptop.settings.measured} == {*MEASUREMENTS} - APART
    for kind in (name for name in laptop.settings.measured if not MEASUREMENTS[name].several):
        planned = jobs(laptop, kind).values()
        assert {seed for job in planned for _, seed in job.nets} == SEEDS and len(SEEDS) == 4
        for model in {job.nets[0][0] for job in planned if len(job.nets) == 1}:
            assert sum(job.nets[0][0] == model and len(job.nets) == 1 for job in planned) == 4
    assert {*selection.findings(laptop.settings)} & BEYOND == BEYOND - APART


def test_the_scale_regime_has_the_table_of_its_claims():
    assert "regime" in selection.findings(settings_of(scale="regime"))


def test_the_scale_identifiability_measures_each_net_with_the_factors_its_activation_allows():
    results = Results(settings_of(scale="identifiability"))
    assert APART - {"regime", "universe", "invariance_errors"} <= {*selection.findings(results.settings)}
    measured = jobs(results, "identifiability").values()
    variants = {job.nets[0][0]: job.settings["variants"] for job in measured}
    assert len(measured) == 36 and not jobs(results, "flip_merge")
    assert variants["gelu"] == ["activation"] and variants["tanh"] == ["activation", "signed_activation"]
    assert variants["relu"][-2:] == ["towers", "towers_apart"] and len(variants["relu_inv"]) == 13
    seeds = {seed for job in measured for _, seed in job.nets}
    others = [settings_of(scale=name) for name in ("laptop", "regime", "paper")]
    assert not seeds & {seed for other in others for _, seed in other.nets}


def test_a_type_set_to_null_is_left_out_everywhere():
    gone = {"cnn_noaug", "cnn_inv"}
    left = settings_of(scale="laptop", models=dict.fromkeys(gone))
    everything = settings()
    assert gone & {*everything.models} == gone and not gone & {*left.models}
    assert left.types_paired == [pair for pair in everything.types_paired if not gone & {*pair}]
    assert left.measured == everything.measured and left.beyond["exact_gcnn"]["from_scratch"] == []
    for kind in everything.measured:
        kept = [nets for nets in everything.subjects(kind) if not gone & {model for model, _ in nets}]
        assert left.subjects(kind) == kept
    none = settings_of(models={"cnn_inv": None})
    assert none.measured == ["curves", "universe"]  # the other measurements have only that type
    assert none.compared == [] and "matchings" not in none.beyond


@pytest.mark.parametrize("scale", [name for name in SCALES if "beyond" in scale_of(ROOT, name)])
def test_a_measurement_set_to_null_is_off_and_everything_else_is_as_before(scale):
    before = Results(settings_of(scale=scale))
    for name in before.settings.beyond:
        after = Results(settings_of(scale=scale, beyond={name: None}))
        of = {key: job.kind if job.matching is None else "matchings" for key, job in before.jobs.items()}
        assert {*after.jobs} == {key for key, kind in of.items() if kind != name} < {*before.jobs}
        assert not {name, f"{name}_figure"} & {*selection.findings(after.settings)}
        assert not selection.types_in(selection.beyond_selection(after.settings, name))


def test_notes_name_each_kind_of_net_once_and_its_seeds_as_they_are(laptop):
    models = laptop.settings.beyond["symmetries"]["models"][-8:]  # on shapes, two symmetries, same names
    first, *others = selection.net_notes(laptop.settings, models)
    assert first.endswith(f"; vertical flip{IN_NOTES}")
    assert others[0] == "Scale laptop, CNN w/o aug; CNN; CNN + inv-loss; GCNN: quarter turn"
    assert "Training, GCNN: learning rate 0.0125, weight decay 0.032" in others
    of_two = [line for line in noted(laptop, "symmetries") if line.startswith("Training, ")]
    assert of_two[0].startswith("Training, CNN w/o aug on generated data; CNN on generated data; ")
    assert of_two[1].startswith("Training, GCNN on generated data: ") and len(of_two) == 2
    demo = selection.select(settings_of(scale="demo"), "table2")["notes"]
    assert "Training, GCNN: learning rate 0.01, weight decay 0.08" in demo


@pytest.mark.parametrize("name, images, repair", [
    ("curves", "10,000", "2,000"), ("by_layer_figure", "2,000", ""), ("matchings", "10,000", ""),
])  # fmt: skip
def test_notes_of_a_measurement_name_its_seeds_and_images(laptop, name, images, repair):
    first, *others = noted(laptop, name)
    assert first.endswith(IN_NOTES)
    matched, taken = "channels matched", "REPAIR's statistics taken"
    how = f"{matched} and {taken} on {images} training images"
    if repair:
        how = f"{matched} on {images} training images, {taken} on {repair} training images"
    assert f"Merging: {how}" in others


def test_notes_of_tables_that_show_invariance_errors_and_of_no_others_say_over_which_images(laptop):
    lines = {
        name: [line for line in noted(laptop, name) if line.startswith("Merging: ")]
        for name in selection.findings(laptop.settings)
        if isinstance(declared()[name], Table)
    }
    over = {
        name: text.partition("; invariance error over ")[2] for name, texts in lines.items() for text in texts
    }
    training = dict.fromkeys(("table2", "table3", "table5", "comparison", "claims"), "5,000 training images")
    test = dict.fromkeys(("exact_gcnn", "symmetries", "during_training"), "all test images")
    assert over == dict.fromkeys(("table4", "matchings", "curves", "by_layer"), "") | training | test


def test_notes_name_the_seeds_of_the_nets_shown(laptop, monkeypatch, tmp_path):
    results = Results(settings_of(scale="demo", seeds=0), str(tmp_path))

    def nets(name, results=results):
        return [note for note in noted(results, name) if note.startswith("Scale ")]

    assert nets("table2")[0].endswith("; seed 0") and "seeds" not in "".join(nets("table2"))
    assert nets("exact_gcnn")[0].endswith("; seed 0")
    done = results.key("train", ("gcnn", 2))
    monkeypatch.setattr(results, "is_there", lambda key: key == done)
    assert [note for note in nets("table2") if "seeds" in note] == ["Scale demo, GCNN: seeds 0, 2"]
    assert nets("table2", laptop)[0].endswith("; seeds 0-11")
    assert nets("matchings", laptop)[0].endswith(IN_NOTES)
    assert any(note.endswith(IN_NOTES[2:]) for note in nets("beyond_claims", laptop))


@pytest.mark.parametrize("name", ["beyond_claims", "beyond_provenance"])
def test_notes_on_several_measurements_dont_say_how_each_merges(laptop, name):
    notes = selection.select(laptop.settings, name)["notes"]
    assert notes and not [line for line in notes if line.startswith("Merging")]


def test_a_table_without_rows_waits_for_no_nets(laptop):
    results = Results(settings_of(scale="laptop", pairs=[], beyond={"matchings": None, "curves": None}))
    keys = selection.keys(results, "table4")
    assert keys == {"train": [], "pair_merge": []} and len(selection.keys(laptop, "table4")["train"]) == 48


def test_pairs_of_a_type_are_the_merged_pairs_among_the_seeds(laptop):
    pairs = [job.nets for job in jobs(laptop, "curves").values() if len(job.nets) == 2]
    neighbours = [(i, (i + 1) % 12) for i in range(12) if {i, (i + 1) % 12} <= SEEDS]
    assert pairs == [((m, i), (m, j)) for m in ("cnn", "cnn_inv") for i, j in neighbours] and len(pairs) == 6


def test_nets_of_no_paper_table_are_trained_and_measured_and_are_in_none(laptop):
    unlisted = {model.id for model in laptop.settings.models.values() if not model.is_in_paper}
    assert len(unlisted) == 18
    for kind in ("flip_merge", "pair_merge"):
        assert not {net[0] for job in jobs(laptop, kind).values() for net in job.nets} & unlisted
    for name in set(selection.findings(laptop.settings)) - BEYOND:
        files = selection.keys(laptop, name)
        keys = [key for several in files.values() for key in several]
        units = {unit for key in keys for unit, _ in laptop.jobs[key].nets}
        assert not units & unlisted, name


def test_a_net_trained_for_no_symmetry_is_measured_under_all_and_others_under_their_own(laptop):
    planned = {job.nets[0][0]: job.settings["symmetries"] for job in jobs(laptop, "symmetries").values()}
    every = ["horizontal_flip", "vertical_flip", "quarter_turn"]
    noaug = {model for model in planned if model.endswith("noaug")}
    assert len(noaug) == 4 and all(planned[model] == every for model in noaug)
    assert planned["turned_inv"] == planned["shapes_turned_gcnn"] == ["quarter_turn"]
    assert planned["cnn"] == every[:1]


def test_generated_images_of_each_symmetry_have_their_own_file(laptop):
    files = {job.prepared for job in jobs(laptop, "symmetries").values()}
    assert len(files) == 4
    generated = {path for path in files if "generated" in path}
    endings = {path.rpartition("-0")[2].removesuffix(".safetensors") for path in generated}
    assert endings == {"", "-vertical_flip", "-quarter_turn"}
    for path in generated:
        spec, _ = laptop.settings.preparation(path.removeprefix("data/").removesuffix(".safetensors"))
        ending = "-0" if spec["invariant_to"] == "horizontal_flip" else spec["invariant_to"]
        assert path.removesuffix(".safetensors").endswith(ending)


def test_matchings_are_compared_on_the_nets_of_their_section_and_involutions_only_on_flips(laptop):
    others = [job for job in laptop.jobs.values() if job.matching]
    assert {seed for job in others for _, seed in job.nets} == SEEDS
    assert all(len(job.nets) == 1 for job in others if job.matching == "involution")
    files, matchings = selection.keys(laptop, "matchings"), len(LAPTOP["beyond"]["matchings"]["matchings"])
    assert len(files["flip_merge"]) == 7 * 4 * matchings
    assert len(files["pair_merge"]) == 3 * 3 * (matchings - 1)


def test_a_types_own_matching_is_in_its_tables_and_compared_with_the_others():
    results = Results(settings_of(models={"cnn_inv": {"merging": {"matching": "weight"}}}))
    names = None, *results.settings.compared
    shown = {name: results.shown("flip_merge", ["cnn_inv"], name) for name in names}
    assert [key.rpartition("/")[2] for key in shown.pop(None)] == ["0", "1", "2"] and not shown.pop("weight")
    assert shown.keys() >= {"activation", "identity"} and all(len(keys) == 1 for keys in shown.values())


def test_the_starts_of_weight_matching_outdate_its_merges_and_no_other():
    def merges(**merging):
        planned = Results(settings_of(merging=merging)).jobs
        return {key: job.settings for key, job in planned.items() if job.kind == "flip_merge"}

    before, after = merges(), merges(starts=3)
    changed = {key for key in before if key not in after}
    assert changed == {key for key in before if before[key]["merging"]["matching"] == "weight"} and changed
    key = min(changed)
    assert before[key]["merging"]["starts"] == 8
    assert {after[other]["merging"]["starts"] for other in after if other not in before} == {3}
    # records from before there were several starts have one
    old = {**before[key], "merging": {"matching": "weight", "images": before[key]["merging"]["images"]}}
    assert [*differences(old, before[key])] == [("merging.starts", 1, 8)]


def test_several_nets_have_consecutive_seeds_and_sets_of_three_are_disjoint():
    results = Results(settings_of(scale="laptop_original"))
    assert noted(results, "universe")[0].endswith("; seeds 0-11")  # though sets begin at four of them
    planned = jobs(results, "universe")
    sets = [job.nets for job in planned.values()]
    assert len(sets) == 12 and {len(nets) for nets in sets} == {8}
    assert [seed for _, seed in sets[-1]] == [9, 10, 11, 0, 1, 2, 3, 4]
    assert all(len({model for model, _ in nets}) == 1 and len({*nets}) == 8 for nets in sets)
    first = [net for nets in sets for net in nets[:3]]
    assert len(first) == len({*first}) == 36
    assert all(len(job.settings["trained"]) == 8 and "seeds" not in job.settings for job in planned.values())
    some = settings_of(scale="laptop_original", beyond={"universe": {"counts": [3]}}, seeds="0-5")
    assert {nets[0][1] for nets in some.subjects("universe")} == {0, 3}


def test_the_lie_derivative_is_only_in_the_settings_of_records_that_have_it():
    sections = (LAPTOP["beyond"]["by_layer"] | {"lie_images": images} for images in (None, 500))
    without, with_it = (
        next(iter(jobs(Results(settings(by_layer=section)), "by_layer").values())) for section in sections
    )
    assert "lie_images" not in without.settings and with_it.settings["lie_images"] == 500


def test_during_training_measures_the_stored_epochs_and_the_last(laptop):
    (job, *_) = jobs(laptop, "during_training").values()
    training = LAPTOP["training"]
    assert job.settings["epochs"] == [*training["snapshots"], training["epochs"]]
    net = Path(laptop.checkpoint(job.nets[0]))
    assert snapshot_path(net, 2) == net.parent / f"during_training/{job.nets[0][1]}-2.safetensors"


def test_a_measurements_dependencies_outdate_it_and_none_of_the_papers_results():
    before = Results(settings())
    changed = {**LAPTOP["beyond"]}
    changed["curves"] = changed["curves"] | {"points": 11}
    changed["exact_gcnn"] = changed["exact_gcnn"] | {"from_scratch": []}
    after = Results(settings(**changed))
    other = [job for key, job in before.jobs.items() if key not in after.jobs]
    assert {job.kind for job in other} == {"curves", "exact_gcnn"} and len(after.jobs) == len(before.jobs)
    assert {job.nets[0][0] for job in other if job.kind == "exact_gcnn"} == {"cnn_inv"}
    (job, *_) = [job for job in other if job.kind == "curves"]
    settings_now, _ = after.made_with("curves", tuple(unit for unit, _ in job.nets))
    assert [name for name, *_ in differences(job.settings, settings_now)] == ["points"]


@pytest.mark.parametrize("kind, section, line", [
    ("curve", {},
     "laptop.yaml: beyond: unknown key 'curve', is it 'curves'.; allowed are matchings, by_layer"),
    ("curves", {"models": ["cn"]}, "beyond.curves.models: 'cn' given; allowed is one of cnn, "),
    ("curves", {"pairs": [["gcnn", "pgcnn"]]}, r"curves.pairs: \[gcnn, pgcnn\] is none of the pairs"),
    ("curves", {"point": 5}, "unknown key 'point', is it 'points'"),
    ("curves", {"points": 2}, "points: 2 given; allowed is at least 3"),
    ("curves", {"points": 4}, "points: 4 given; allowed is an odd number"),
    ("curves", {"models": ["cnn"], "seeds": "40"}, "curves.seeds: 40 is none of the seeds of cnn"),
    ("by_layer", {"pairs": [["cnn", "cnn"]]}, "unknown key 'pairs'; allowed are models, seeds, images, lie"),
    ("by_layer", {"seeds": "3-0"}, "runs backwards"),
    ("exact_gcnn", {"matching": "activation"}, "'activation' given; allowed is one of involution"),
    ("exact_gcnn", FROM_SCRATCH, "from_scratch: 'cnn_inv' given; allowed is one of cnn"),
    ("exact_gcnn", {"models": ["turned_cnn"]}, "models: turned_cnn's symmetry isn't of order 2"),
    ("exact_gcnn", {"fine_tuning": {"epochs": 2}}, "the key 'learning_rate' is missing"),
    ("universe", {"models": ["cnn"], "counts": [5, 3]}, "counts.*allowed are ascending numbers"),
    ("universe", {"models": ["cnn"], "counts": [13]}, "counts: 13 given; cnn has 12 nets, one per seed; lower it, or "),
    ("symmetries", {"models": ["simsiam_odd"]}, "simsiam_odd isn't trained by a recipe"),
])  # fmt: skip
def test_an_impossible_setting_is_one_line(kind, section, line):
    refused(lambda: settings(**{kind: section}), match=line)


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_a_measurement_is_named_only_in_its_module(name):
    rooms = ("config", "records", "measuring", "jobs", "training")
    files = [*(ROOT / "rules").glob("*.smk"), *(ROOT / "workflow_scripts").glob("*.py")]
    files += [file for room in rooms for file in (ROOT / "workflow_scripts/relusym" / room).glob("*.py")]
    assert not [file for file in files if f'"{name}"' in file.read_text(encoding="utf-8")]


MINE = '''
from relusym.beyond import declaration
from relusym.record_types import Fields, Share


class Options(declaration.Options):
    """Also for pairs."""

    pairs: declaration.Pairs = None
    share: Share = 0.5


class Body(Fields):
    mine: Share


MEASUREMENT = declaration.Measurement(Options, Body, lambda job: {"mine": job.settings["share"]})
'''
PLANNED = """
import sys
import yaml
from relusym.config.settings import Settings
from relusym.records.fields import problem
from relusym.records.results import Results

beyond = {"mine": {"models": ["cnn"], "pairs": [["cnn", "cnn"]], "share": 0.25, "seeds": "0-1"}}
results = Results(Settings.of({"scale": "demo", "seeds": None, "beyond": beyond}, [sys.argv[1]]))
for key, job in results.jobs.items():
    if job.kind == "mine":
        print(job.rule, job.settings["share"], "--".join(f"{model}-{seed}" for model, seed in job.nets))
record = {
    "kind": "mine", "status": "ok", "model": "cnn", "seed": 0, "settings": {}, "cost": {}, "mine": 0.25,
    "inputs": {"data": "0" * 64, "source": "mine", "checkpoints": ["0" * 64]}, "outputs": {},
}
print(problem(record), "torch" in sys.modules)
print(problem(record | {"mine": 2}))
"""


def test_a_measurement_is_one_module_that_needs_no_pytorch_to_be_planned(tmp_path):
    library = ROOT / "workflow_scripts/relusym"
    shutil.copytree(library, tmp_path / "relusym", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "relusym/beyond/mine.py").write_text(MINE, encoding="utf-8")
    *jobs, right, wrong = python(PLANNED, ROOT / "scales", PYTHONPATH=str(tmp_path)).splitlines()
    assert jobs == [f"measure 0.25 {nets}" for nets in ("cnn-0", "cnn-1", "cnn-0--cnn-1")]
    assert right == "None False" and wrong.startswith("can't be right (mine: 2 given")


def test_filters_are_shown_only_of_types_in_the_papers_tables_since_no_others_are_stored():
    apart = settings_of(scale="identifiability")
    assert "gcnn" in apart.models and not any(
        declared()[f"figure{n}"].exists(apart) for n in (1, 2, 5, 6, 7, 8)
    )
    some = settings_of(scale="laptop", models={"cnn_inv": {"table": None}})
    assert not declared()["figure5"].exists(some)
    assert declared()["figure1"].select(some)["models"] == ["cnn"]
    assert declared()["figure2"].select(some)["model"] in some.table("table2")
