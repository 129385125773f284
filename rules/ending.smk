# Prints, at the end of a run, the requested tables and figures that are up to date.
import atexit
import shutil

SEVERAL = {
    "all": [name for name in FINDINGS if not FINDINGS[name].is_beyond],
    "beyond": [name for name in FINDINGS if FINDINGS[name].is_beyond],
    "compare": [name for name in FINDINGS if name in ("comparison", "claims")],
}


def print_results():
    """Print the requested tables and figures, and whether they were made without training any net."""
    from relusym.findings import layout  # imports pandas, which isn't needed to start

    targets = targets_and_forced()[0] or {renamed("all")}
    requested = [name for name in ("all", *FINDINGS) if renamed(name) in targets]
    for name in ("compare", "beyond"):
        if renamed(name) in targets:
            requested += [finding for finding in SEVERAL[name] if finding not in requested]
    up_to_date = [
        name
        for name in requested
        if all(Path(RESULTS.prefix + note(each)).exists() for each in SEVERAL.get(name, {name}))
    ]
    folder = RESULTS.prefix + FOLDER
    columns = shutil.get_terminal_size((120, 24)).columns
    if text := layout.at_end(up_to_date, Path(folder), SETTINGS.names, columns=columns):
        encoding = sys.stdout.encoding or "ascii"  # the terminal's encoding may lack ±
        print(text.encode(encoding, "replace").decode(encoding))
        trained = {renamed(rule) for rule in (*SUBMITTED, "measure")} & {*RUN}
        if (
            not trained
            and Path(f"{folder}/records/train").exists()
            and not Path(f"{folder}/checkpoints").exists()
        ):
            print(
                f"No net was trained: {folder}/records has all records. To train the nets yourself, move {folder} away "
                "first."
            )


def print_results_if_there_was_nothing_to_do():
    # in this case, Snakemake calls no handler
    if runs_jobs() and not RUN:
        print_results()


if MAIN:
    atexit.register(print_results_if_there_was_nothing_to_do)


onsuccess:
    if RUN:
        atexit.register(print_results)  # at exit, to come last, below what Snakemake prints
