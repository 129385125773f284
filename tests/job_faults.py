"""Put into a copy of the workflow by test_cluster.py: jobs record where they ran, and fail on purpose.

`faults.json` lists the faults of each net's first run, second run, and so on: the step at which the run waits until a
file `<net>.go` appears, or takes more memory than it asked for.
"""

import atexit
import json
import os
import time
from pathlib import Path

import __main__
from relusym.errors import Interruption

HERE = Path("faults")
HERE.mkdir(exist_ok=True)
JOB = __main__.snakemake
OF = [value for key, value in JOB.wildcards.items() if key != "fingerprint"]
NAME = " ".join([JOB.rule, *OF])
NET = "-".join(OF)
EVENTS = HERE / "events.jsonl"
interrupted, steps = Interruption.__call__, 0


def note(event):
    about = {
        "event": event, "job": NAME, "steps": steps, "time": time.time(),
        "slurm_job": os.environ.get("SLURM_JOB_ID"), "node": os.environ.get("SLURMD_NODENAME"),
        "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }  # fmt: skip
    with EVENTS.open("a") as file:
        file.write(json.dumps(about) + "\n")


def fault():
    """The fault of this run of this job."""
    before = [json.loads(line) for line in EVENTS.read_text().splitlines()] if EVENTS.exists() else []
    runs = sum(event["event"] == "start" and event["job"] == NAME for event in before)
    planned = json.loads(Path("faults.json").read_text()).get(NET, []) if JOB.rule == "train" else []
    return planned[runs] if runs < len(planned) else {"what": None, "at": 0}


FAULT = fault()


def with_faults(self):
    global steps
    steps += 1
    if steps == FAULT["at"]:
        note(FAULT["what"])
        if FAULT["what"] == "memory":
            held = bytearray(2_500_000_000)
            held[::4096] = b"x" * len(held[::4096])
        while not (HERE / f"{NET}.go").exists() and not interrupted(self):
            time.sleep(0.05)
    return interrupted(self)


Interruption.__call__ = with_faults
note("start")
atexit.register(lambda: note("end"))
