"""relusym: how close is a ReLU network to a group-equivariant one? Matching, merging, REPAIR and barriers.

Terms are those of Bökman & Kahl, "Investigating how ReLU-networks encode symmetries", NeurIPS 2023.
"""

from typing import Any

__version__ = "0.1.0"

# Public names and where they are defined; each is imported on first access, since importing PyTorch takes seconds.
_PUBLIC = {
    "Handlers": "relusym.channels.tracing:Handlers",
    "Images": "relusym.evaluation.images:Images",
    "Merge": "relusym.merging.merge:Merge",
    "Metric": "relusym.evaluation.metrics:Metric",
    "Report": "relusym.reporting.report:Report",
    "SYMMETRIES": "relusym.symmetry:SYMMETRIES",
    "TracedNet": "relusym.channels.traced:TracedNet",
    "UserError": "relusym.errors:UserError",
    "channel_groups": "relusym.channels.traced:channel_groups",
    "exact": "relusym.reporting.exact:exact",
    "flip": "relusym.pixels.transform:flip",
    "flip_merge": "relusym.merging.merge:flip_merge",
    "grid": "relusym.pixels.grid:grid",
    "handler": "relusym.channels.tracing:handler",
    "merge": "relusym.merging.merge:merge",
    "merge_many": "relusym.merging.many:merge_many",
    "normalisation": "relusym.evaluation.images:normalisation",
    "permute": "relusym.channels.groups:permute",
    "random_permutations": "relusym.channels.groups:random_permutations",
    "report": "relusym.reporting.report:report",
    "write_exact": "relusym.reporting.exact:write_exact",
    "write_report": "relusym.reporting.page:write_report",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'relusym' has no attribute {name!r}")
    import pkgutil

    return pkgutil.resolve_name(_PUBLIC[name])


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
