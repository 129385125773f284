"""Rule resnet_weights: fetch or read a row's net, and write it with torchvision's names."""

from pathlib import Path

from job import job
from relusym import checkpoint
from relusym.nets.weights import UnavailableError, gather

with job(snakemake):
    weights = snakemake.params.weights
    about = {"row": snakemake.wildcards.row, "settings": weights, "status": "ok"}
    try:
        state, kept = gather(
            weights, {"architecture": "resnet", **weights["network"]}, Path(snakemake.params.cache)
        )
    except UnavailableError as error:
        state, kept = {}, {"status": "absent", "reason": str(error)}
    checkpoint.save(snakemake.output.checkpoint, state, about | kept)
    print(f"{snakemake.wildcards.row}: {kept}")
