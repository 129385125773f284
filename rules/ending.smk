# What a run ends with on the screen: the tables and figures that were asked for.
import atexit
import shutil


def print_results():
    """The tables and figures that were asked for; and that no net was trained, where records were there already."""
    from relusym.findings import screen  # imports pandas, which a start does without

    asked = {rule.name: rule for rule in workflow.dag.targetrules}
    several = [asked[renamed(name)].input for name in ("compare", "beyond") if renamed(name) in asked]
    if text := screen.at_end(
        [
            name
            for name in ("all", *TABLES, *FIGURES)
            if renamed(name) in asked or any(note(name) in files for files in several)
        ],
        Path(FOLDER),
        SETTINGS.names,
        columns=shutil.get_terminal_size((120, 24)).columns,
    ):
        print(text)
        nets = {renamed(rule) for rule in (*SUBMITTED, "measure")}
        if not any(job.rule.name in nets for job in workflow.dag.jobs if workflow.dag.needrun(job)):
            print(
                f"No net was trained: {FOLDER}/records has them all. To train them yourself, move {FOLDER} away first."
            )


def print_results_if_there_was_nothing_to_do():
    # Snakemake calls no handler then
    if workflow.scheduler and not workflow.dryrun and not len(workflow.dag):
        print_results()


if workflow.is_main_process:
    atexit.register(print_results_if_there_was_nothing_to_do)


onsuccess:
    atexit.register(print_results)  # so that it comes last, below what Snakemake prints
