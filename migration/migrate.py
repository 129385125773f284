"""Once: each committed record gets the path with its fingerprint, its folder the settings, its cost the benchmark's.

Run in the root: `python migration/migrate.py > migration/output.txt`. Nothing else of a record changes, as it says.
"""

import csv
import json
import shutil
import sys
from collections import Counter, defaultdict
from pathlib import Path

import yaml

from relusym.config.settings import Settings
from relusym.records.fields import nets_of
from relusym.records.files import find_record, write_record
from relusym.records.fingerprint import fingerprint, non_default
from relusym.records.results import Results


def key_of(path: Path, record: dict) -> str:
    """The key of a record's job in the layout to come."""
    nets, kind = nets_of(record), record["kind"]
    if nets:
        types, seeds = zip(*nets, strict=True)
    else:
        settings = record["settings"]
        types, seeds = [path.stem], [settings.get("seed", settings.get("training", {}).get("seed"))]
    return f"{kind}/{'--'.join(types)}-{fingerprint(record['settings'])}/{'--'.join(map(str, seeds))}"


def benchmark(path: Path) -> dict:
    """Wall seconds of a job and its largest resident set in MB, as Snakemake measured them."""
    file = Path(str(path).replace("/records/", "/benchmarks/")).with_suffix(".tsv")
    if not file.exists():
        return {}
    (row,) = csv.DictReader(file.read_text(encoding="utf-8").splitlines(), delimiter="\t")
    values = {"job_seconds": row["s"], "job_memory_mb": row["max_rss"]}
    return {key: float(value) for key, value in values.items() if value not in ("NA", "-", "")}


def main() -> None:
    config = yaml.safe_load(Path("config.yaml").read_text(encoding="utf-8"))
    for scale in ("laptop", "paper"):
        folder = Path("results") / scale
        results = Results(Settings.of(config | {"scale": scale}))
        before, counts, settings = {}, Counter(), defaultdict(list)
        for path in sorted((folder / "records").rglob("*.json")):
            record = json.loads(path.read_text(encoding="utf-8"))
            key = key_of(path, record)
            wanted = results.jobs[key]  # every committed record is one of today's config
            assert non_default(wanted.settings) == non_default(record["settings"])
            settings[key.rpartition("/")[0]].append(json.dumps(record["settings"], sort_keys=True))
            record["cost"] |= benchmark(path)
            before[key] = record
            counts[record["kind"]] += 1
            if record["kind"] == "flip_merge":
                filters = Path(str(path).replace("/records/flip_merge/", "/filters/")).with_suffix(
                    ".safetensors"
                )
                to = folder / "filters" / f"{key.partition('/')[2]}.safetensors"
                to.parent.mkdir(parents=True, exist_ok=True)
                filters.rename(to)
            path.unlink()
        for key, record in before.items():
            write_record(folder / "records" / f"{key}.json", record)
        for room in (folder / "records", folder / "filters", folder / "made_from", folder / "benchmarks"):
            if room.name in ("made_from", "benchmarks"):
                shutil.rmtree(room, ignore_errors=True)
            for each in sorted(room.rglob("*"), reverse=True):
                if each.is_dir() and not any(each.iterdir()):
                    each.rmdir()
        others = [key for key, several in settings.items() if len({*several}) > 1]
        print(f"{scale}: {dict(counts)}, {len(settings)} folders; with several spellings: {others or 'none'}")
        there = Results(Settings.of(config | {"scale": scale}))
        for key, record in before.items():
            now = find_record(there.record(key))
            assert there.is_there(key), key
            differing = [name for name in {*now, *record} - {"settings"} if now.get(name) != record.get(name)]
            assert not differing and non_default(now["settings"]) == non_default(record["settings"]), key
        print(f"{scale}: all {len(before)} are there, by their new paths, and say what they said")


if __name__ == "__main__":
    sys.exit(main())
