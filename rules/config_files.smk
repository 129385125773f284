# Checks before the config is read: the installed library, and the config's files.
import sys
from pathlib import Path

try:
    import relusym
    from relusym.errors import UserError
except ModuleNotFoundError as error:
    if error.name != "relusym":
        raise
    sys.exit("error: relusym isn't installed in this Python: pip install --editable . in this folder")


def is_imported(folder):
    """Whether the imported library is the one in `folder`, or identical to it."""
    from filecmp import cmpfiles

    imported = Path(relusym.__file__).parent
    if folder.samefile(imported):
        return True
    names = [
        {str(path.relative_to(root)) for path in root.rglob("*.*") if path.suffix not in (".pyc", ".part")}
        for root in (folder, imported)
    ]
    return names[0] == names[1] and cmpfiles(folder, imported, names[0], shallow=False)[0] == [*names[0]]


# Two checkouts may share an environment, in which one of them is installed.
ROOT = Path(str(workflow.current_basedir)).parent
OURS = ROOT / "workflow_scripts"
if MAIN and (OURS / "relusym").is_dir() and not is_imported(OURS / "relusym"):
    sys.exit(
        f"error: this Python has relusym from {Path(relusym.__file__).parent}, and this Snakefile needs the one beside it: "
        f"pip install --editable {ROOT}, or set PYTHONPATH={OURS}"
    )

from relusym.config.reading import check_command_line, check_file

if MAIN and TAKES_CONFIG_FILE:
    try:
        check_command_line(CONFIG_KEYS, sys.argv)
        for path in ["config.yaml", *CONFIG_FILES]:
            check_file(path)
    except UserError as error:  # not raised: Snakemake would add lines of its own
        sys.exit(f"config error: {error}")

# Braces in the folder's name aren't wildcards.
ENVIRONMENT = "../envs/relusym.yaml"
if "{" in str(ROOT):
    ENVIRONMENT = f"{ROOT}/envs/relusym.yaml".replace("{", "{{").replace("}", "}}")
