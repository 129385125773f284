# What a run ends with on the screen: the tables and figures that were asked for, as far as they show what is there.
import atexit
import shutil

SEVERAL = {
    "all": [name for name in FINDINGS if not FINDINGS[name].is_beyond],
    "beyond": [name for name in FINDINGS if FINDINGS[name].is_beyond],
    "compare": [name for name in FINDINGS if name in ("comparison", "claims")],
}


def print_results():
    """The tables and figures that were asked for; and that no net was trained, where records were there already."""
    from relusym.findings import layout  # imports pandas, which a start does without

    targets = words_of_command_line()[0] or {renamed("all")}
    asked = [name for name in ("all", *FINDINGS) if renamed(name) in targets]
    for name in ("compare", "beyond"):
        if renamed(name) in targets:
            asked += [shown for shown in SEVERAL[name] if shown not in asked]
    made_of_now = [
        name
        for name in asked
        if all(Path(RESULTS.prefix + note(each)).exists() for each in SEVERAL.get(name, {name}))
    ]
    folder = RESULTS.prefix + FOLDER
    columns = shutil.get_terminal_size((120, 24)).columns
    if text := layout.at_end(made_of_now, Path(folder), SETTINGS.names, columns=columns):
        encoding = sys.stdout.encoding or "ascii"  # which may lack ±
        print(text.encode(encoding, "replace").decode(encoding))
        trained = {renamed(rule) for rule in (*SUBMITTED, "measure")} & {*RUN}
        if (
            not trained
            and Path(f"{folder}/records/train").exists()
            and not Path(f"{folder}/checkpoints").exists()
        ):
            print(
                f"No net was trained: {folder}/records has them all. To train them yourself, move {folder} away first."
            )


def print_results_if_there_was_nothing_to_do():
    # Snakemake calls no handler then
    if runs_jobs() and not RUN:
        print_results()


if MAIN:
    atexit.register(print_results_if_there_was_nothing_to_do)


onsuccess:
    if RUN:
        atexit.register(print_results)  # so that it comes last, below what Snakemake prints
