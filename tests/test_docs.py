"""README and docs name files, commands and numbers that are there."""

import re
import shlex
from itertools import chain

import pytest
from conftest import ROOT
from snakemake.cli import parse_args

from relusym import nets
from relusym.data.chiral_shapes import generate
from relusym.findings import FIGURES, TABLES
from relusym.theory import STATEMENTS

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMENTED = [*PAGES, *(ROOT / path for path in ("config.yaml", "Snakefile", "Makefile", "docs/rules.dot"))]
COMMENTED += sorted([*ROOT.glob("profiles/*/config.yaml"), *ROOT.glob("rules/*.smk")])
TEXT = {page: page.read_text(encoding="utf-8") for page in COMMENTED}

LINK = re.compile(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")
PATH = re.compile(r"(?<![\w./<>{}*-])((?:[\w.-]+/)*[\w-]+\.(?:py|smk|dot|svg|lock|toml))(?![\w/<>{}*-])")


def commands(page):
    """Every whole `snakemake …` command of a page, in blocks and in lines, as its arguments."""
    text = TEXT[page].replace("\\\n", " ")
    blocks = re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()] + re.findall(r"`([^`\n]+)`", text)
    typed = [line for line in lines if line.startswith("snakemake ") and "…" not in line and "<" not in line]
    return [shlex.split(line, comments=True)[1:] for line in typed]


COMMANDS = [
    shlex.join(arguments) for arguments in dict.fromkeys(tuple(c) for page in PAGES for c in commands(page))
]
PLANNED = {  # those that change more of the config than its scale, and jobs that they plan; ImageNet isn't there
    "cifar10={": {"train cnn 0", "pair_merge gcnn 3 gcnn 0", "table2"},
    "imagenet": {"table3", "table5"},
    "mine: {family": {"table5"},
    "cifar_resnet": {"train mine 2", "flip_merge mine 2", "table2", "train cnn 0"},
    "cifar100": {"train cnn 0", "train simsiam_odd.pretraining 0", "table5"},
    "quarter_turn": {"train mine 2", "flip_merge mine 2", "table2"},
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    links = LINK.findall(TEXT[page])
    broken = [link for link in links if not (page.parent / link).exists()]
    assert links and not broken


@pytest.mark.parametrize("page", COMMENTED, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_is_named_exists(page):
    """From the root, the library's folder, or the page's own; a name without a folder may stand anywhere."""
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
    assert arguments.snakefile is None  # and no target was taken for an option's value
    rules = "".join(text for page, text in TEXT.items() if page.suffix == ".smk") + TEXT[ROOT / "Snakefile"]
    targets = {*TABLES, *FIGURES, *STATEMENTS, *re.findall(r"^rule (\w+):", rules, re.MULTILINE)}
    assert all(target in targets or target.startswith("results/") for target in arguments.targets)


@pytest.mark.parametrize("part", PLANNED)
def test_a_command_plans_what_its_page_says(part, clone):
    (command,) = (c for c in COMMANDS if part in c and (part != "imagenet" or "mine" not in c))
    planned = clone().planned(*shlex.split(command.replace("--cores all ", "")))
    assert PLANNED[part] <= {*planned} and ("imagenet" not in command or PLANNED[part] == {*planned})


def test_the_snippet_of_readme_runs():
    (snippet,) = re.findall(r"^```python\n(.*?)^```", TEXT[ROOT / "README.md"], re.MULTILINE | re.DOTALL)
    train, test = generate(60, 40, seed=0)
    net = nets.build({"architecture": "vgg11", "width": 1 / 32, "initialization": "he"}, classes=10)
    names = {"net": net, "images": train.images, "test_images": test.images, "test_labels": test.labels}
    exec(snippet, names)
    assert set(names["merged"].barrier) == {"halfway", "repaired"}


def rows(text):
    """The cells of a Markdown table, a list a line, the headings first."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith("|:")
    ]


@pytest.mark.parametrize("table", ["table2", "table4", "table5"])
def test_readme_has_the_numbers_of_the_committed_table(table):
    committed = rows((ROOT / f"results/laptop/tables/{table}.md").read_text(encoding="utf-8"))
    after = TEXT[ROOT / "README.md"].split(f"(`snakemake {'table3 ' * (table == 'table5')}{table}", 1)[1]
    shown = rows(re.search(r"(?:^\|.*\n)+", after, re.MULTILINE)[0])
    assert len(shown) == len(committed) > 4
    places = [committed[0].index(heading) for heading in shown[0]]
    assert shown == [[row[place] for place in places] for row in committed]


# ---- the drawing of the rules


def drawn():
    """Of docs/rules.dot: box → rules, and the pairs of rules that an arrow joins."""
    text = re.sub(r"//.*", "", TEXT[ROOT / "docs/rules.dot"])
    boxes = {box: re.split(r"\\n| ", label) for box, label in re.findall(r'(\w+) \[label="([^"]+)"\]', text)}
    arrows = set()
    for start, one, several in re.findall(r"^  (\w+) -> (?:(\w+)|\{([^}]*)\})", text, re.MULTILINE):
        for end in (one or several).split():
            arrows |= {(a, b) for a in boxes[start] for b in boxes[end]}
    return boxes, arrows


def test_the_drawing_has_the_rules_and_the_arrows_of_snakemakes_own(clone, tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
    filters = "results/paper/figures/filters/conv1-cnn-0.png"
    given = ["scale=paper", "seeds=0", f"imagenet={{root: {tmp_path}}}"]
    made = clone()
    given.append("scales={paper: {beyond: {during_training: {models: [cnn]}}}}")
    run = made.snakemake("all", "beyond", filters, "--config", *given, "--rulegraph")
    labels = dict(re.findall(r'(\d+)\[label = "(\w+)"', run.stdout))
    arrows = {(labels[a], labels[b]) for a, b in re.findall(r"(\d+) -> (\d+)", run.stdout)}
    boxes, drawn_arrows = drawn()
    assert {*chain(*boxes.values())} == {*labels.values()} - {"all", "beyond"}, run.stdout
    assert drawn_arrows == {arrow for arrow in arrows if not {"all", "beyond"} & {*arrow}}
    listed = {*re.findall(r"^\w+$", made.snakemake("--list-rules", "--config", *given).stdout, re.MULTILINE)}
    assert {*labels.values()} == listed - {"compare", "status", "bench"}


def test_the_picture_is_of_the_drawing():
    picture = (ROOT / "docs/rules.svg").read_text(encoding="utf-8")
    texts = {word for text in re.findall(r"<text[^>]*>([^<]*)</text>", picture) for word in text.split()}
    assert texts == {*chain(*drawn()[0].values())}
