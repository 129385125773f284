# The files of tables and figures, and whether they have to be made again: each has a note (relusym/findings/fingerprint.py)
# whose name holds the fingerprint of everything that it shows. If there is no note of that name, it is made again.
import json
import os
import secrets
from functools import partial

FINDINGS = {name: declared()[name] for name in selection.findings(SETTINGS)}
# A report shows tables as HTML, which isn't committed: it is made from existing Markdown, or together with new Markdown.
REPORT_AFTER_RUN = "--report-after-run" in sys.argv
REPORT = any(re.match("--report(=|$)", word) for word in sys.argv) if MAIN else "RELUSYM_REPORT" in os.environ


def in_report(path, **how):
    """An output that the report shows if it exists: a run may make only some of them."""
    is_there = Path(RESULTS.prefix + path).exists() or REPORT_AFTER_RUN
    mark = partial(report, **how) if is_there else lambda file: file
    return mark(update(path))


def stem(name):
    room = "tables" if isinstance(FINDINGS[name], Table) else "figures"
    return f"{FOLDER}/{room}/{name}"


def files(name):
    """A table's or figure's files; the report shows the HTML or the PNG, by the caption `report/<name>.rst`."""
    finding = FINDINGS[name]
    is_table = isinstance(finding, Table)
    endings = [".csv", ".md"] if is_table else finding.csvs
    outputs = [update(stem(name) + ending) for ending in endings]
    if MAIN and not (ROOT / f"report/{name}.rst").exists():
        sys.exit(f"error: {name} has no caption in the report: write it as report/{name}.rst")
    if is_table and not REPORT:
        return outputs
    shown = in_report(
        stem(name) + (".html" if is_table else ".png"),
        caption=f"../report/{name}.rst",
        category=finding.section,
        labels={"table" if is_table else "figure": finding.label.removesuffix("-figure")},
    )
    # a table's first file is its CSV, with a report or without
    return [*outputs, shown] if is_table else [shown, *outputs]


# By the name of a table or figure: the part of the config and the jobs, by kind, whose records (or filters) it shows.
keys_of = cache(partial(selection.keys, RESULTS))
selected = cache(lambda name: selection.select(selection.of_nets_shown(RESULTS, keys_of(name)), name))


@cache
def missing(name):
    """The missing records that a table or figure waits for; the existing ones are read as they are.

    A net that a merge waits for isn't listed beside that merge, which saves a quarter of the edges of a plan of thousands of
    jobs.
    """
    keys = dict.fromkeys(key for keys in keys_of(name).values() for key in keys)
    to_do = [key for key in keys if is_to_do(key)]
    waited_for = {file for key in to_do for file in waits_for(key)}
    return [file for file in map(file_to_wait_for, to_do) if file not in waited_for]


def files_read(name):
    """The files that a table or figure is made from, by kind."""
    return {
        kind: [
            RESULTS.prefix + (RESULTS.filters(key) if kind == "filters" else RESULTS.record(key))
            for key in keys
        ]
        for kind, keys in keys_of(name).items()
    }


NONCE = secrets.token_hex(4)


def note_now(name):
    """The path of the note of a table or figure made from the present records.

    While a record is missing, the fingerprint isn't known, and could be that of an older state: then the name is a new one.
    """
    if not missing(name):
        try:
            note = f"{FOLDER}/notes/{name}-{fingerprint.fingerprint(name, selected(name), files_read(name))}.sha256"
            # unless a file that the note lists has been edited by hand
            if not Path(RESULTS.prefix + note).exists() or fingerprint.is_whole(RESULTS.prefix + note):
                return note
        except UserError:  # a record that can't be read, which the table's job reports
            pass
    return f"{LOGS}/notes/{name}-{NONCE}.sha256"


# A process that is started later for one job of this run sees more records, but has to use the names of this process.
if MAIN:
    os.environ.update(RELUSYM_NOTES=json.dumps({name: note_now(name) for name in FINDINGS}))
NOTES = json.loads(os.environ.get("RELUSYM_NOTES", "{}"))


def note(name):
    return NOTES.get(name, f"{LOGS}/notes/{name}-{NONCE}.sha256")


if MAIN and REPORT:
    os.environ.update(RELUSYM_REPORT="1")
    for name in FINDINGS:
        markdown = Path(f"{RESULTS.prefix}{stem(name)}.md")
        if isinstance(FINDINGS[name], Table) and markdown.is_file():
            try:
                write_text(markdown.with_suffix(".html"), page(markdown.read_text(encoding="utf-8")))
            except UserError as error:
                sys.exit(f"error: {error}")
