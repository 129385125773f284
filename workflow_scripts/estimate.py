"""Rule estimate: print what the scale will cost in GPU-hours, from the committed benchmarks of another scale."""

import sys

from job import job
from relusym.errors import UserError
from relusym.experiments.settings import Settings
from relusym.jobs.grid_estimate import as_text, estimate

terminal = sys.stdout
with job(snakemake):
    params = snakemake.params
    wanted, measured = (
        Settings.of({**params.config, "scale": scale}) for scale in (params.scale, params.measured)
    )
    frame = estimate(measured, wanted, params.benchmarks, params.tflops)
    if frame.empty:
        raise UserError(
            f"{params.benchmarks} has no benchmarks of trainings: run the scale {params.measured} first"
        )
    text = as_text(
        frame,
        f"Scale {params.scale}, estimated from the benchmarks of scale {params.measured}",
        [
            f"core_hours: on one of its cores; gpu_hours: on a GPU that does {params.tflops:g}·10¹² operations a second"
        ],
    )
    print(text)
    print(text, file=terminal, flush=True)
