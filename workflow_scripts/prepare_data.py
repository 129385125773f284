"""Rule prepare_data: generate, download or read the images, and write them as one file."""

from pathlib import Path

from job import job
from relusym import data

with job(snakemake):
    spec, cifar10 = snakemake.params.data, snakemake.params.cifar10
    if spec["dataset"] == "generated":
        spec = {"kind": "generated", **{key: spec[key] for key in ("train_images", "test_images", "seed")}}
    elif cifar10["source"] == "folder":
        spec = {"kind": "folder", **{key: cifar10[key] for key in ("root", "train", "test")}}
    else:
        spec = {"kind": "torchvision_cifar10", "root": cifar10["root"]}
    data.prepare(spec, Path(snakemake.output[0]), key="cifar10")
    print(f"{snakemake.output[0]}: {data.digest(snakemake.output[0])}")
