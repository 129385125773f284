"""The config: read, checked, and resolved to one scale. Imports no PyTorch: Snakemake reads it at every start."""
