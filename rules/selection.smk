# The files of tables and figures, and whether they have to be made again: each has a note (relusym/findings/fingerprint.py)
# with the fingerprint of all that it shows in its name. If that note isn't there, it is made.
import json
import os
import secrets
from functools import partial

TITLES = {"costs": "Costs and provenance", "provenance": "Costs and provenance", "theory": "Theory"}
TITLES |= dict.fromkeys(("comparison", "claims"), "Comparison with the paper")
TITLES |= dict.fromkeys(BEYOND, "Beyond the paper")
CSVS = {"barriers": [".csv"], "figure4": [".csv"], "zero_filters": [".csv", "_by_net.csv"]}
CSVS |= {name: [".csv"] for name in BEYOND if name.endswith("_figure")}
SHOWN = [*selection.tables(SETTINGS), *selection.figures(SETTINGS)]
REPORT_AFTER_RUN = "--report-after-run" in sys.argv


def in_report(path, **how):
    """An output that the report shows, if it is there: a run may be about a part of them."""
    is_there = Path(RESULTS.prefix + path).exists() or REPORT_AFTER_RUN
    mark = partial(report, **how) if is_there else lambda file: file
    return mark(update(path))


def files(name):
    """A table's or figure's files; the first is what the report shows, by the caption `report/<name>.rst`."""
    title = re.sub(
        r"\B(?=\d)", " ", name.removesuffix("_figure").capitalize().replace("_", "-")
    )  # table2: Table 2
    if name in TABLES:
        stem, first, others = f"{FOLDER}/tables/{name}", ".html", [".csv", ".md", ".tex"]
        category, label = TITLES.get(name, "Tables"), {"table": title}
    else:
        stem, first, others = f"{FOLDER}/figures/{name}", ".png", [".pdf", *CSVS.get(name, [])]
        category, label = TITLES.get(name, "Figures"), {"figure": title}
    page = in_report(f"{stem}{first}", caption=f"../report/{name}.rst", category=category, labels=label)
    return [page, *(update(f"{stem}{ending}") for ending in others)]


@cache
def about(name):
    """What of the config a table or figure shows: asked for by the jobs that are planned alone."""
    return selection.about(SETTINGS, name)


@cache
def keys_of(name):
    """By kind, the jobs whose records (or filters) a table or figure shows."""
    return selection.inputs(RESULTS, name)


@cache
def asked_of(name):
    """What a table or figure waits for: of the records that it shows, those that aren't there. It reads the others as they are."""
    keys = dict.fromkeys(key for keys in keys_of(name).values() for key in keys)
    return [file_to_wait_for(key) for key in keys if is_to_do(key)]


def shown_by(name):
    """By kind, the files that a table or figure is made of."""
    return {
        kind: [
            RESULTS.prefix + (RESULTS.filters(key) if kind == "filters" else RESULTS.record(key))
            for key in keys
        ]
        for kind, keys in keys_of(name).items()
    }


NONCE = secrets.token_hex(4)


def named_now(name):
    """The note of what a table or figure would be made of.

    While a record is missing, no one knows that, and an older state may look the same: then, it is a name that is new.
    """
    note = None
    if not asked_of(name):
        try:
            note = f"{FOLDER}/notes/{name}-{made.fingerprint(name, about(name), shown_by(name))}.sha256"
        except UserError:  # of a record that can't be read, which the table's job says
            return f"{LOGS}/notes/{name}-{NONCE}.sha256"
        if Path(RESULTS.prefix + note).exists() and not made.is_whole(RESULTS.prefix + note):
            note = None  # a file that it names has been changed by hand
    return note or f"{LOGS}/notes/{name}-{NONCE}.sha256"


# A process that was started for one job of this run, when other records are there, has the names of this one.
if MAIN:
    os.environ.update(RELUSYM_NOTES=json.dumps({name: named_now(name) for name in SHOWN}))
NOTES = json.loads(os.environ.get("RELUSYM_NOTES", "{}"))


def note(name):
    return NOTES.get(name, f"{LOGS}/notes/{name}-{NONCE}.sha256")
