"""Rule prepare_data: generate, download or read the images, and write them as one file."""

from dataclasses import replace

from job import job
from relusym.data import chiral_shapes, image_set

with job(snakemake):
    data, cifar10 = snakemake.params.data, snakemake.params.cifar10
    if data["dataset"] == "generated":
        train, test = chiral_shapes.generate(data["train_images"], data["test_images"], data["seed"])
    elif cifar10["source"] == "folder":
        train, test = image_set.from_folder(cifar10["root"], cifar10["train"], cifar10["test"])
    else:
        train, test = image_set.from_torchvision_cifar10(cifar10["root"])
    if data["dataset"] == "cifar10":
        train, test = replace(train, source=cifar10["label"]), replace(test, source=cifar10["label"])
    image_set.save(snakemake.output[0], train, test)
    print(f"{train.source}: {len(train.labels)} training and {len(test.labels)} test images")
