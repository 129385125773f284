"""Rule prepare_imagenet: decode, resize and crop the images that rows are measured on, and write them as one file."""

from pathlib import Path

from job import job
from relusym import data

with job(snakemake):
    wildcards, folders = snakemake.wildcards, snakemake.params.imagenet
    spec = {
        "kind": "imagenet",
        "root": ".",
        "train": str(folders["train"]),
        "val": str(folders["val"]),
        "resize": int(wildcards.resize),
        "size": int(wildcards.size),
        "train_images": int(wildcards.images),
        "seed": int(wildcards.seed),
    }
    data.prepare(spec, Path(snakemake.output[0]), snakemake.threads, "imagenet")
