"""Measurements beyond the paper (docs/beyond.md): each is a module here that declares everything about it.

The module's name is also that of its section in a scale's `beyond`, of its folder of records, and of their `kind`.
Snakemake imports all modules at every start, so PyTorch and what needs it are imported in the functions that measure.
"""

from importlib import import_module
from pkgutil import iter_modules

from relusym.beyond.declaration import Measurement

_MODULES = {module.name: import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)}
MEASUREMENTS: dict[str, Measurement] = {
    name: module.MEASUREMENT for name, module in _MODULES.items() if hasattr(module, "MEASUREMENT")
}
