"""Rule weights: download or read published weights of a net, and write them with torchvision's names."""

from pathlib import Path

from job import job
from relusym import checkpoint
from relusym.nets.weights import UnavailableError, gather

with job(snakemake):
    settings = snakemake.params.settings
    try:
        state, kept = gather(settings["weights"], settings["network"], Path(snakemake.params.cache))
        kept["status"] = "ok"
    except UnavailableError as error:
        state, kept = {}, {"status": "absent", "reason": str(error)}
    checkpoint.save(snakemake.output[0], state, kept)
    print(f"{snakemake.wildcards.model}: {kept}")
