"""What every script behind a rule does around its work: log, threads, memory, and errors in one line."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from relusym.errors import UserError
from relusym.memory import keep_freed_memory


@contextmanager
def job(snakemake) -> Iterator[None]:
    """Send output to the rule's log, keep to its threads, and end on a user's error with its one line."""
    if torch := sys.modules.get("torch"):  # tables do without, and start in half the time
        torch.set_num_threads(snakemake.threads)
        torch.set_flush_denormal(True)
        keep_freed_memory()
    terminal = sys.stderr
    with Path(snakemake.log[0]).open("w", encoding="utf-8", buffering=1) as log:
        sys.stdout = sys.stderr = log
        try:
            yield
        except UserError as error:
            print(f"error: {error}", file=log)
            print(f"error in rule {snakemake.rule}: {error}", file=terminal)
            sys.exit(1)
        finally:
            sys.stdout, sys.stderr = sys.__stdout__, terminal
