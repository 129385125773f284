"""Public files that tests use if they are available: the official CIFAR10, and ResNets trained on it.

Each is searched for in the path of an environment variable, or in the checkout's folder `data`. The nets are
resnet20-12fca82f.th and resnet32-d509ac18.th of github.com/akamaster/pytorch_resnet_cifar10, alone or in a .tar.
"""

import os
import tarfile
from pathlib import Path

import pytest
from conftest import ROOT

from relusym import cifar10

IMAGES, NETS = "RELUSYM_CIFAR10", "RELUSYM_PUBLIC_RESNETS"


def _place(variable):
    return Path(os.environ.get(variable) or ROOT / "data")


def official_cifar10():
    """The version and path of the official files; skips the test without them."""
    place = _place(IMAGES)
    official = cifar10.recognised(place) if place.exists() else None
    return official or pytest.skip(f"no official CIFAR10 in {place}: set {IMAGES} to its folder or archive")


def public_resnet(name, to):
    """A public net's file; skips the test without it.

    Args:
        to: a folder to extract a .tar to.
    """
    place = _place(NETS)
    files = [*place.rglob(name), *place.rglob("*.tar")] if place.is_dir() else [place]
    for file in files:
        if file.name == name:
            return file
        if file.suffix == ".tar" and file.is_file():
            with tarfile.open(file) as archive:
                if name in archive.getnames():
                    archive.extract(name, to, filter="data")
                    return to / name
    pytest.skip(f"no {name} in {place}: set {NETS} to its folder, or to a .tar that holds it")
