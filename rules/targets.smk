# A target that no rule makes ends the run with one line before anything is planned.
from difflib import get_close_matches

TARGETS = [rule.name for rule in all_rules() if not rule.has_wildcards()]


def is_made(file):
    """Whether a file exists, or a rule makes it from the scale's nets with the present settings."""
    if Path(file).exists() or RESULTS.key_of(file):
        return True
    matches = (output.match(file) for each in all_rules() for output in each.output)
    w = next((match.groupdict() for match in matches if match), None)
    if w is None or "fingerprint" in w and "/weights/" not in file:
        return False
    return "seed" not in w or RESULTS.key("flip_merge", (w["model"], int(w["seed"]))) in RESULTS.jobs


if MAIN and IS_MAIN_SNAKEFILE and TARGETS:
    targets, forced = targets_and_forced()
    every = [rule.name for rule in all_rules()]
    for names, allowed in ((targets, TARGETS), (forced, every)):
        for name in sorted(names):
            if name not in allowed and not is_made(name):
                near = [f"; is it {other}?" for other in get_close_matches(name, allowed, n=1)]
                sys.exit(
                    f"error: nothing makes {name!r} at scale {SETTINGS.scale}{''.join(near) or '.'} Targets "
                    f"are {', '.join(TARGETS)}"
                )
    for name in targets:
        file = Path(name)
        if (
            file.stem in FINDINGS
            and file.parent.name in ("tables", "figures")
            and file.exists()  # for Snakemake, the file is then up to date
            and not Path(note(file.stem)).exists()
            and renamed(file.stem) not in targets
        ):
            how = "" if file.suffix not in (".tex", ".pdf") else " together with this file"
            sys.exit(f"error: {name} is out of date; ask for the target {file.stem}{how} to make it again")
