"""NumPy, pandas and scipy.stats, imported when they are used: every start of Snakemake reads all declarations."""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__all__ = ["Drawing", "np", "pd", "stats"]


class Lazy(ModuleType):
    """A module that is imported when something of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(import_module(self.__name__), name)
        setattr(self, name, value)
        return value


if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure as Drawing
    from scipy import stats
else:
    np, pd, stats = map(Lazy, ("numpy", "pandas", "scipy.stats"))
    Drawing = Any
