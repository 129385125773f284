import ast
import math
import re
import shlex
import shutil
import traceback
from itertools import chain
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import ROOT
from small_nets import Images, smooth_images, vgg11
from snakemake.cli import parse_args, parse_config
from torch.utils.data import DataLoader, TensorDataset

from relusym import nets
from relusym.config.docs import page
from relusym.data.augmentation import normalise
from relusym.data.chiral_shapes import generate
from relusym.findings import declared
from relusym.merging import merge as merging
from relusym.reporting import net_files
from relusym.theory import STATEMENTS

IDENTIFIABILITY = ROOT / "docs/identifiability.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMENTED = [*PAGES, *(ROOT / path for path in ("config.yaml", "Snakefile", "Makefile", "docs/rules.dot"))]
COMMENTED += sorted(ROOT.glob("scales/*.yaml"))
COMMENTED += sorted([*ROOT.glob("profiles/*/config.yaml"), *ROOT.glob("rules/*.smk")])
TEXT = {page: page.read_text(encoding="utf-8") for page in COMMENTED}

LINK = re.compile(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")
PATH = re.compile(r"(?<![\w./<>{}*-])((?:[\w.-]+/)*[\w-]+\.(?:py|smk|dot|svg|lock|toml))(?![\w/<>{}*-])")


def commands(page):
    """The arguments of every complete `snakemake …` command of a page, in blocks and inline."""
    text = TEXT[page].replace("\\\n", " ")
    blocks = re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()] + re.findall(r"`([^`\n]+)`", text)
    typed = [line for line in lines if line.startswith("snakemake ") and "…" not in line and "<" not in line]
    return [shlex.split(line, comments=True)[1:] for line in typed]


TYPED = dict.fromkeys(tuple(arguments) for page in PAGES for arguments in commands(page))
COMMANDS = [shlex.join(arguments) for arguments in TYPED]
PLANNED = {  # commands that change more than the scale, and jobs that they plan; there is no ImageNet
    "laptop 'cifar10={": {"train cnn 0", "pair_merge gcnn 11 gcnn 0", "table2"},
    "demo 'data={dataset: cifar10}'": {"prepare_data cifar10-binary-29734480", "train cnn 0", "table2"},
    "imagenet": {"table3", "table5"},
    "models={byol": {"table5"},
    "cifar_resnet": {"train mine 2", "flip_merge mine 2", "table2", "train cnn 0"},
    "cifar100": {"train cnn 0", "train simsiam_odd.pretraining 0", "table5"},
    "training={batch_size": {"train cnn 0", "flip_merge pgcnn 11", "table2"},
    "quarter_turn": {"train mine 2", "flip_merge mine 2", "table2"},
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    links = LINK.findall(TEXT[page])
    assert links and not [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", ["running.md", "cluster.md"])
def test_every_fault_in_a_table_names_an_existing_test(page):
    text = TEXT[ROOT / "docs" / page]
    (table,) = re.findall(r"^\| fault .*\n\|[-|]*\n((?:\|.*\n)+)", text, re.MULTILINE)
    last = [row.rstrip(" |").rpartition("| ")[2] for row in table.splitlines()]
    for test in {name.strip("`") for name in last if name != "the same"}:
        file, _, name = test.rpartition("::")
        there = (ROOT / "tests" / (file or "test_cluster.py")).read_text(encoding="utf-8")
        assert f"\ndef {name}(" in there, test


@pytest.mark.parametrize("page", COMMENTED, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_is_named_exists(page):
    text = LINK.sub("]", re.sub(r"https?://\S+", "", TEXT[page]))
    roots = (ROOT, ROOT / "workflow_scripts", ROOT / "workflow_scripts/relusym", page.parent)
    missing = [
        path
        for path in PATH.findall(text)
        if not any((root / path).exists() for root in roots)
        and not ("/" not in path and [*ROOT.glob(f"*/{path}"), *ROOT.glob(f"workflow_scripts/**/{path}")])
    ]
    assert not missing


@pytest.mark.parametrize("command", COMMANDS)
def test_snakemake_takes_every_command(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    _, arguments = parse_args(shlex.split(command))
    assert arguments.snakefile is None  # no target was parsed as an option's value
    rules = "".join(text for page, text in TEXT.items() if page.suffix == ".smk") + TEXT[ROOT / "Snakefile"]
    targets = {*declared(), *STATEMENTS, *re.findall(r"^rule (\w+):", rules, re.MULTILINE)}
    assert all(target in targets or target.startswith("results/") for target in arguments.targets)


@pytest.mark.parametrize("part", PLANNED)
def test_a_command_plans_the_jobs_that_its_page_names(part, clone):
    (command,) = (c for c in COMMANDS if part in c and (part != "imagenet" or "byol" not in c))
    planned = clone().planned(*shlex.split(command.replace("--cores all ", "")))
    assert PLANNED[part] <= {*planned} and ("imagenet" not in command or PLANNED[part] == {*planned})


def test_snakemake_ends_at_an_unquoted_value_as_the_page_says():
    (ends,) = re.findall(r"`(Invalid [^`]+)`", TEXT[ROOT / "docs/running.md"])
    with pytest.raises(ValueError, match=ends):
        parse_config(["scale=laptop", "training={batch_size:", "200}"])
    assert parse_config(["training={batch_size: 200}"])["training"] == {"batch_size": "200"}


def test_the_page_of_the_config_is_that_of_its_sections():
    made = TEXT[ROOT / "docs/config.md"]
    assert made == page() and "`learning_rate`" in made  # make docs/config.md


def snippets(page):
    return re.findall(r"^```python\n(.*?)^```", TEXT[page], re.MULTILINE | re.DOTALL)


@pytest.fixture
def names():
    """The names that the pages' snippets use without defining them."""
    _, test = generate(60, 40, seed=0)
    network = {"architecture": "vgg11", "width": 1 / 32, "initialization": "he"}
    net, other = (nets.build(network, classes=10) for _ in range(2))
    loader = DataLoader(TensorDataset(normalise(test.images), test.labels), 16)
    scale = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    made = {"net": net, "other": other, "pixels": test.images, "labels": test.labels, "loader": loader}
    return made | scale


def test_the_snippet_of_readme_runs(names):
    (snippet,) = snippets(ROOT / "README.md")
    exec(snippet, names)
    assert set(names["merged"].barrier) == {"halfway", "repaired"}


@pytest.mark.slow(seconds=4)
def test_the_snippets_of_the_librarys_page_run_one_after_another(names, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    for snippet in snippets(ROOT / "docs/library.md"):
        exec(snippet, names)
    assert (tmp_path / "report" / "report.html").exists()
    assert "Images: pixels of shape" in capsys.readouterr().out.splitlines()[-1]


def test_the_page_on_identifiability_has_the_verdicts_and_the_barriers_of_the_committed_tables():
    text, results = " ".join(TEXT[IDENTIFIABILITY].split()), ROOT / "results/identifiability"
    verdicts = pd.read_csv(results / "tables/identifiability.csv")["verdict"].value_counts()
    assert {*verdicts.index} == {"held", "inconclusive"}
    counts = f"{verdicts['held']} held, none failed, and {verdicts['inconclusive']} are inconclusive"
    assert f"Of the {verdicts.sum()} claims {counts}" in text
    shown = rows(TEXT[IDENTIFIABILITY].split("## Found")[1].split("1. ")[0])
    barriers = pd.read_csv(results / "figures/identifiability_figure.csv")
    means = barriers.pivot_table("barrier", "variant", "model")
    types = {"ReLU": "relu", "leaky ReLU": "leaky", "GELU": "gelu", "tanh": "tanh"}
    larger = means.drop("activation").loc[["scaled_activation", "signed_activation"]].max()
    for name, *cells in shown[2:]:
        of_type = [types[name], f"{types[name]}_inv"]
        made = [value for model in of_type for value in (means.loc["activation", model], larger[model])]
        assert cells == ["" if math.isnan(value) else f"{value:.3f}" for value in made]
    assert len(shown) == 2 + len(types)


@pytest.mark.parametrize(("page", "table"), [("README.md", "claims"), ("docs/beyond.md", "beyond_claims")])
def test_a_page_counts_the_verdicts_of_the_committed_claims(page, table):
    verdicts = pd.read_csv(ROOT / f"results/laptop/tables/{table}.csv")["verdict"]
    of = [f"{(verdicts == verdict).sum()}" for verdict in ("held", "did not hold", "inconclusive")]
    counts = r"(\d+) claims(?: of the paper)?,? (?:\*\*)?(\d+) held, (\d+) didn't, and (\d+) are inconclusive"
    assert re.findall(counts, " ".join(TEXT[ROOT / page].split())) == [(f"{len(verdicts)}", *of)]


def test_the_snippet_on_identifiability_prints_the_filters_that_its_page_shows(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (snippet,) = snippets(IDENTIFIABILITY)
    exec(snippet, {})
    lines = (line.split(" ", 2) for line in capsys.readouterr().out.splitlines())
    nets_of = {(model, int(seed)): ast.literal_eval(near) for model, seed, near in lines}
    barriers = pd.read_csv("results/identifiability/figures/identifiability_figure.csv")
    barriers = barriers[barriers["variant"] == "activation"].set_index(["model", "seed"])["barrier"]
    types = {"gelu_inv": "GELU", "relu_inv": "ReLU", "leaky_inv": "leaky ReLU"}
    made = [
        [types[model], str(seed), str(i), f"{ratio:.2f}", f"{barriers[model, seed]:.3f}"]
        for (model, seed), near in nets_of.items() for i, ratio in near.items()
    ]  # fmt: skip
    shown = rows(TEXT[IDENTIFIABILITY].split("### Noticed afterwards")[1])
    assert len(nets_of) == 12 and shown[2:] == sorted(made, key=lambda row: row[3])


def test_the_net_of_the_worked_example_is_the_public_one():
    assert len((ROOT / "docs/resnet20.py").read_text(encoding="utf-8").splitlines()) <= 40
    net, _ = net_files.build(f"{ROOT / 'docs/resnet20.py'}:ResNet20", None, 0)
    assert sum(parameter.numel() for parameter in net.parameters()) == 269722
    names = {"conv1.weight", "layer2.0.bn2.running_var", "layer3.2.conv2.weight", "linear.bias"}
    assert names <= set(net.state_dict()) and net(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def rows(text):
    """The cells of a Markdown table, a list per line, the headings first."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [line.strip("|").split("|") for line in lines if not line.startswith("|:")]
    return [[cell.strip() for cell in row] for row in cells]


def shows(page, table, made):
    """Whether the table that follows its name on a page has the numbers of the generated table."""
    after = re.split(rf"^Table {table[-1]}\b", TEXT[ROOT / page], flags=re.MULTILINE)[1]
    shown, made = rows(re.search(r"(?:^\|.*\n)+", after, re.MULTILINE)[0]), rows(made)
    places = [made[0].index(heading) for heading in shown[0]]
    return len(made) > 3 and shown == [[row[place] for place in places] for row in made]


SHOWN = [path.stem for path in sorted((ROOT / "results/laptop/tables").glob("table[245].md"))]


@pytest.mark.parametrize("table", SHOWN)
def test_the_page_of_the_laptop_has_the_numbers_of_the_committed_table(table):
    committed = (ROOT / f"results/laptop/tables/{table}.md").read_text(encoding="utf-8")
    (page,) = (page for page in PAGES if f"(`snakemake {table} --config scale=laptop`" in TEXT[page])
    assert shows(page, table, committed)


def test_the_command_on_the_page_of_the_papers_scale_makes_its_tables_from_committed_records(clone):
    made = clone()
    shutil.copytree(ROOT / "results/paper", made.folder / "results/paper")
    (command,) = (each for each in commands(ROOT / "docs/paper.md") if "table2" in each)
    assert "No net was trained" in made.makes(*command)
    for table in ("table2", "table4"):
        written = (made.folder / f"results/paper/tables/{table}.md").read_text(encoding="utf-8")
        assert shows("docs/paper.md", table, written)


def drawn():
    """The boxes of docs/rules.dot, box → rules, and the pairs of rules that are joined by an arrow."""
    text = re.sub(r"//.*", "", TEXT[ROOT / "docs/rules.dot"])
    boxes = {box: re.split(r"\\n| ", label) for box, label in re.findall(r'(\w+) \[label="([^"]+)"\]', text)}
    arrows = set()
    for start, single, several in re.findall(r"^  (\w+) -> (?:(\w+)|\{([^}]*)\})", text, re.MULTILINE):
        for end in (single or several).split():
            arrows |= {(a, b) for a in boxes[start] for b in boxes[end]}
    return boxes, arrows


def test_the_drawing_has_the_rules_and_the_arrows_of_snakemakes_own(clone, imagenet):
    filters = "results/paper/figures/filters/conv1-cnn-0.png"
    typed = ["scale=paper", "seeds=0", imagenet, "beyond={during_training: {models: [cnn]}}"]
    made = clone()
    run = made.snakemake("all", "beyond", filters, "--config", *typed, "--rulegraph")
    labels = dict(re.findall(r'(\d+)\[label = "(\w+)"', run.stdout))
    arrows = {(labels[a], labels[b]) for a, b in re.findall(r"(\d+) -> (\d+)", run.stdout)}
    boxes, drawn_arrows = drawn()
    assert {*chain(*boxes.values())} == {*labels.values()} - {"all", "beyond"}, run.stdout
    assert drawn_arrows == {arrow for arrow in arrows if not {"all", "beyond"} & {*arrow}}
    listed = {*re.findall(r"^\w+$", made.snakemake("--list-rules", "--config", *typed).stdout, re.MULTILINE)}
    assert {*labels.values()} == listed - {"compare", "status", "bench", "latex", "for_latex"}


def test_the_picture_shows_the_drawing():
    picture = (ROOT / "docs/rules.svg").read_text(encoding="utf-8")
    texts = {word for text in re.findall(r"<text[^>]*>([^<]*)</text>", picture) for word in text.split()}
    assert texts == {*chain(*drawn()[0].values())}


PAGE = (ROOT / "docs/structure.md").read_text(encoding="utf-8")
LIBRARY = ROOT / "workflow_scripts"


def walk(title):
    """The files of a walk, in the order in which its lines link to them."""
    lines = re.search(rf"^{re.escape(title)}.*:\n((?:\d+\. .*\n)+)", PAGE, re.MULTILINE)[1]
    return [(ROOT / "docs" / link).resolve() for link in re.findall(r"\]\(([^)]+)\)", lines)]


TABLE_4, REPORT = walk("A cell of Table 4"), walk("`relusym report`")


def reached(path):
    """The files that a file imports; for rules, their scripts; for a table, the rules that make its records."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".smk":
        return {(path.parent / script).resolve() for script in re.findall(r'"(\.\./[^"]+\.py)"', text)}
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    files = {LIBRARY / f"{name.replace('.', '/')}.py" for name in names}
    if "findings/tables" in str(path):
        kinds = re.findall(r"\"(\w+)\"", re.search(r"reads=\(([^)]*)\)", text)[1])
        rules = {rule: rule.read_text(encoding="utf-8") for rule in ROOT.glob("rules/*.smk")}
        heads = re.compile(rf"^(?:use rule \w+ as|rule) ({'|'.join(kinds)})\b", re.MULTILINE)
        files |= {rule for rule, lines in rules.items() if heads.search(lines)}
    return files


@pytest.mark.parametrize(("files", "most"), [(TABLE_4, 6), (REPORT, 12)], ids=["Table 4", "report"])
def test_each_file_of_a_walk_is_reached_from_one_before_it(files, most):
    assert 4 < len(files) <= most  # Table 4's rule and its script are one step
    for place, path in enumerate(files[1:], 1):
        assert any(path in reached(earlier) for earlier in files[:place]), path


def test_a_keys_walk_has_every_file_that_uses_the_key():
    rooms = "config", "records", "training", "measuring", "data", "nets"
    files = {path for room in rooms for path in (LIBRARY / "relusym" / room).rglob("*.py")}
    text = PAGE.partition("A key of the config")[2].partition("Whether a record")[0]
    links = re.findall(r"^\d\. \[[^]]+\]\(([^)]+)\)", text, re.MULTILINE)
    named = {(ROOT / "docs" / link).resolve() for link in links}
    assert named == {path for path in files if "invariance_weight" in path.read_text(encoding="utf-8")}
    assert len(named) == 3


def test_the_walk_to_a_cells_arithmetic_passes_every_file_that_the_merge_does(monkeypatch):
    passed = []

    def traced(mean, halfway):
        passed.append([Path(frame.filename) for frame in traceback.extract_stack()])
        return barrier(mean, halfway)

    barrier = merging.barrier
    monkeypatch.setattr(merging, "barrier", traced)
    net, other = vgg11(0), vgg11(1)
    images = Images(smooth_images(40), batch_size=20)
    merging.merge(net, other, images, images, torch.arange(40) % 10)
    (first, *_) = passed
    on_the_way = {path for path in first if LIBRARY / "relusym" in path.parents}
    assert on_the_way - {LIBRARY / "relusym/precision.py"} <= {*TABLE_4}
