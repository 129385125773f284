# Targets that nothing makes are one line before anything is planned.
from difflib import get_close_matches

from snakemake.cli import get_argument_parser

TARGETS = [rule.name for rule in workflow.rules if not rule.has_wildcards()]

# Snakemake asks for its targets only later, and would then say which rule is missing and nothing else
if (
    workflow.is_main_process
    and workflow.modifier.is_main_snakefile()
    and Path(sys.argv[0]).stem in ("snakemake", "__main__")
):
    words = get_argument_parser().parse_args(sys.argv[1:])
    rules_too = {rule.name for rule in workflow.rules}
    for given, allowed in ((words.targets, TARGETS), (words.forcerun, rules_too)):
        for target in given or ():
            if target not in allowed and not is_made(target):
                near = [f"; is it {name}?" for name in get_close_matches(target, allowed, n=1)]
                sys.exit(
                    f"error: nothing makes {target!r} at scale {SETTINGS.scale}{''.join(near) or '.'} Targets "
                    f"are {', '.join(TARGETS)}"
                )
