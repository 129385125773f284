# The files of tables and figures, and whether they have to be made again: each has a note of what it was made from
# (relusym/findings/made.py).
TITLES = {"costs": "Costs and provenance", "provenance": "Costs and provenance", "theory": "Theory"}
TITLES |= dict.fromkeys(("comparison", "claims"), "Comparison with the paper")
TITLES |= dict.fromkeys(BEYOND, "Beyond the paper")
CSVS = {"barriers": [".csv"], "figure4": [".csv"], "zero_filters": [".csv", "_by_net.csv"]}
CSVS |= {name: [".csv"] for name in BEYOND if name.endswith("_figure")}
SHOWN = [*selection.tables(SETTINGS), *selection.figures(SETTINGS)]


def files(name):
    """A table's or figure's files; the first is what the report shows, by the caption `report/<name>.rst`."""
    shown = re.sub(
        r"\B(?=\d)", " ", name.removesuffix("_figure").capitalize().replace("_", "-")
    )  # table2: Table 2
    if name in TABLES:
        stem, first, others = f"{FOLDER}/tables/{name}", ".html", [".csv", ".md", ".tex"]
        category, label = TITLES.get(name, "Tables"), {"table": shown}
    else:
        stem, first, others = f"{FOLDER}/figures/{name}", ".png", [".pdf", *CSVS.get(name, [])]
        category, label = TITLES.get(name, "Figures"), {"figure": shown}
    caption = f"../report/{name}.rst"
    page = report(update(f"{stem}{first}"), caption=caption, category=category, labels=label)
    return [page, *(update(f"{stem}{ending}") for ending in others)]


def note(name):
    return f"{FOLDER}/made_from/{name}.sha256"


@cache
def about(name):
    """What of the config a table or figure shows: asked for by the jobs that are planned alone."""
    return selection.about(SETTINGS, name)


def made_of(name):
    """What a table or figure is made of; it is made again if that is another than its note says, or will be by this run."""
    inputs = selection.inputs(RESULTS, name)
    everything = [file for several in inputs.values() for file in several]
    changing = set()
    if workflow.is_main_process:
        records = {file: file for file in everything if file in RESULTS.jobs}
        records |= {
            RESULTS.filters(RESULTS.jobs[record].nets[0]): record for record in RESULTS.shown("flip_merge")
        }
        changing = {file for file in everything if file in records and is_made_now(records[file])}
        if not made.is_current(note(name), made.fingerprint(name, about(name), everything)):
            force(note(name))
    # what doesn't change is `ancient`, so that clocks don't matter; what does makes the table again
    return {
        kind: [file if file in changing else ancient(file) for file in several]
        for kind, several in inputs.items()
    }
