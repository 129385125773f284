"""Rule prepare_imagenet: decode, resize and crop the images that rows are measured on, and write them as one file."""

from pathlib import Path

from job import job
from relusym.data.imagenet import prepare

with job(snakemake):
    wildcards, folders = snakemake.wildcards, snakemake.params.imagenet
    prepare(
        Path(folders["train"]),
        Path(folders["val"]),
        Path(snakemake.output[0]),
        resize=int(wildcards.resize),
        size=int(wildcards.size),
        train_images=int(wildcards.images),
        seed=int(wildcards.seed),
        source=snakemake.params.label,
        workers=snakemake.threads,
    )
