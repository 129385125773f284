"""Rule prepare_data: generate, download or read the images of a data set, and write them as one file."""

import sys
from pathlib import Path

from job import job
from relusym import cifar10, data

terminal = sys.stderr
with job(snakemake):
    spec, key = snakemake.params.spec, snakemake.params.key
    to = Path(snakemake.output[0])
    notes = data.prepare(spec, to, workers=snakemake.threads, key=key)
    digest, label = data.digest(to), snakemake.params.label
    if cifar10.name_of(label, digest) == f"{cifar10.NAME}?":
        notes.append(cifar10.doubt(digest))
    for note in notes:
        print(note)
        print(f"notice: {note}", file=terminal)
    print(f"{to}: {digest}")
