"""relusym: how close is a ReLU network to a group-equivariant one? Matching, merging, REPAIR and barriers.

The words are those of Bökman & Kahl, "Investigating how ReLU-networks encode symmetries", NeurIPS 2023.
"""

__version__ = "0.1.0"
