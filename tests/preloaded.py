"""Imported by the process that forks for the tests: the modules that Snakemake, its jobs and the library import."""

import pkgutil
import sys
from importlib import import_module

MODULES = (
    "torch", "torchvision", "scipy.optimize", "scipy.stats", "pandas", "matplotlib.figure",
    "matplotlib.backends.backend_agg", "matplotlib.backends.backend_pdf",
    "jsonschema",  # needed by Snakemake
    "snakemake.cli", "snakemake.script", "smart_open",  # and nbformat: imported late by Snakemake
    "nbformat",
)  # fmt: skip
LIBRARY = (module.name for module in pkgutil.walk_packages(import_module("relusym").__path__, "relusym."))
for name in (*MODULES, *LIBRARY):
    import_module(name)
sys.modules["snakemake.cli"].get_argument_parser()  # discovers Snakemake's plugins
