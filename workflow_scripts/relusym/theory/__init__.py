"""The paper's statements, one module each: a small exact or numerical demonstration that can fail.

Every module's `demonstrate(seed, draws)` returns a record body with the keys

- statement, claim: the statement's number in the paper, and its content;
- holds: whether the statement held in every test; it follows from `measured` and the tolerances in the module;
- draws: how many random cases were tested;
- tested, largest_violation: the test, and the largest violation of the statement in it (rounding, or a count);
- counterfactual: what happens if the statement's assumptions don't hold;
- measured: all numbers behind these.
"""

import platform
import time
from importlib import import_module
from typing import Any

import relusym
from relusym.memory import peak_mb

# For each statement, the default number of random draws in its test, and what is drawn.
STATEMENTS = {
    "example_2_1": (1_000, "points"),
    "lemma_2_2": (2_000, "pairs of matrices of each kind in each size"),
    "proposition_2_3": (200, "nets for each way in which the group acts"),
    "proposition_b_1": (2_000, "nets for each number of positive and negative units"),
    "example_c_1": (1_000, "random nets for each distribution, and trained ones"),
    "example_c_2": (256, "trained nets of each kind"),
    "proposition_d_1": (5_000, "nets of each kind"),
    "proposition_d_4": (2_000, "functions for either part"),
    "lemma_e_1": (2_000, "cases of each kind in each size"),
}


def demonstrate(name: str, **settings: int) -> dict[str, Any]:
    """The record body of one of `STATEMENTS`; `settings`: seed, draws. Imports only its module: one needs PyTorch."""
    return import_module(f"relusym.theory.{name}").demonstrate(**settings)


def record(name: str, settings: dict[str, int]) -> dict[str, Any]:
    """The record of one statement, with its settings, versions and cost."""
    import numpy as np  # imported here, since Snakemake's start needs only the names

    started = time.perf_counter()
    body = demonstrate(name, **settings)
    code = {"relusym": relusym.__version__, "numpy": np.__version__, "python": platform.python_version()}
    memory = round(peak_mb(), 1)
    cost = {"seconds": round(time.perf_counter() - started, 2), "peak_memory_mb": memory}
    return {"kind": "theory", **body, "settings": settings, "code": code, "cost": cost}
