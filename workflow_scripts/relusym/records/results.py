"""The records of a scale: where each lies, which of them are current, and what a run still has to make."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from relusym.config.measurements import MEASUREMENTS
from relusym.config.settings import Net, Settings
from relusym.data import digest as digest_of
from relusym.errors import UserError
from relusym.records.currency import stale
from relusym.records.fields import images_of, nets_of
from relusym.records.files import find_record, snapshot_path
from relusym.theory import STATEMENTS
from relusym.whole_files import sha256

Record = dict[str, Any]
Pair = tuple[Net, Net]

SUBMITTED = "train", "flip_merge", "pair_merge"  # the paper's jobs that a cluster gets


def variant(matching: str | None) -> str:
    """The folder of what was merged by another matching than the config's."""
    return f"{matching}/" if matching else ""


def _name_of(record: Record) -> str:
    """The folder and the name of the file in which a record belongs, by what it says."""
    kind = record["kind"]
    if kind == "theory":
        return f"theory/{re.sub('[ .]', '_', record['statement'].lower())}"
    return f"{kind}/{'--'.join(f'{model}-{seed}' for model, seed in nets_of(record)) or kind}"


@dataclass(frozen=True)
class Job:
    """One record to be made.

    Attributes:
        kind: of the record.
        settings: that it has to be made with.
        nets: whose checkpoints it is made from; of a training, the net itself.
        matching: of a merge; None for the config's.
        prepared: the file of prepared images that it reads, if any.
    """

    kind: str
    settings: Record
    nets: tuple[Net, ...] = ()
    matching: str | None = None
    prepared: str | None = None

    @property
    def rule(self) -> str:
        """The rule that makes it."""
        return "measure" if self.kind in MEASUREMENTS else self.kind

    @property
    def targets(self) -> tuple[str, ...]:
        """What has to be asked for to have it made: of the paper's own merges nothing."""
        return (
            ("matchings", self.matching)
            if self.matching
            else (self.kind,)
            if self.kind in MEASUREMENTS
            else ()
        )


class Results:
    """What is there of a scale, against what its config asks for.

    Args:
        settings: of this run, which may be about a piece of the scale's seeds.
        root: the folder of all scales.
        data: the folder of prepared images.

    Raises:
        UserError: a record is damaged (named).
    """

    def __init__(self, settings: Settings, root: str = "results", data: str = "data"):
        self.settings, self.data, self.folder = settings, data, f"{root}/{settings.scale}"
        self._read: dict[str, Record | None] = {}
        self._reasons: dict[str, str | None] = {}

    # ---- where things lie

    def checkpoint(self, net: Net) -> str:
        return f"{self.folder}/checkpoints/{net[0]}-{net[1]}.safetensors"

    def filters(self, net: Net, matching: str | None = None) -> str:
        return f"{self.folder}/filters/{variant(matching)}{net[0]}-{net[1]}.safetensors"

    def record(self, kind: str, *nets: Net, matching: str | None = None) -> str:
        """The record of a training, of a flip merge (one net) or of a pair merge (two)."""
        name = "--".join(f"{model}-{seed}" for model, seed in nets)
        return f"{self.folder}/records/{kind}/{variant(matching)}{name}.json"

    def other_record(self, kind: str, name: str) -> str:
        """The record of a job that is about no net: a statement of the theory, the training of Figure 3."""
        return f"{self.folder}/records/{kind}/{name}.json"

    def prepared(self, model: str | None = None) -> str:
        return f"{self.data}/{self.settings.prepared(model)}.safetensors"

    @property
    def folders(self) -> list[str]:
        """Every folder that a run writes to."""
        kinds = dict.fromkeys(job.kind for job in self.jobs.values())
        rooms = [f"{room}/{kind}" for room in ("records", "logs", "benchmarks") for kind in kinds]
        rooms += ["checkpoints", "filters", "states", "weights", "tables", "figures", "made_from"]
        return [self.data, *(f"{self.folder}/{room}" for room in rooms)]

    # ---- what a run is about

    @cached_property
    def jobs(self) -> dict[str, Job]:
        """Every record of the whole scale."""
        return self._jobs(replace(self.settings, run=self.settings.run.model_copy(update={"seeds": None})))

    @cached_property
    def chosen(self) -> set[str]:
        """The records that this run is about; those of models that aren't at hand are left out."""
        absent = self.settings.absent
        jobs = self._jobs(self.settings).items()
        return {
            record for record, job in jobs if not {net[0].partition(".")[0] for net in job.nets} & {*absent}
        }

    def _jobs(self, settings: Settings) -> dict[str, Job]:
        train, flip, pair = cache(settings.train), cache(settings.flip_merge), cache(settings.pair_merge)
        prepared = cache(self.prepared)
        found = {}
        for net in settings.trainings:
            model = settings.model_of(net[0]).id
            found[self.record("train", net)] = Job("train", train(net[0]), (net,), prepared=prepared(model))
        for matching in (None, *settings.matchings):
            for net in settings.nets:
                if settings.is_matched((net,), matching):
                    record, how = self.record("flip_merge", net, matching=matching), flip(net[0], matching)
                    found[record] = Job("flip_merge", how, (net,), matching, prepared(net[0]))
            for nets in settings.pairs:
                if settings.is_matched(nets, matching):
                    record = self.record("pair_merge", *nets, matching=matching)
                    how = pair(nets[0][0], nets[1][0], matching)
                    found[record] = Job("pair_merge", how, nets, matching, prepared(nets[0][0]))
        for kind in settings.measured:
            measurement = cache(settings.measurement)
            for nets in settings.subjects(kind):
                how = measurement(kind, *(model for model, _ in nets))
                found[self.record(kind, *nets)] = Job(kind, how, nets, prepared=prepared(nets[0][0]))
        for statement in STATEMENTS:
            found[self.other_record("theory", statement)] = Job("theory", settings.theory(statement))
        figure3 = Job("flipped_training", settings.flipped_training(), prepared=self.prepared())
        return found | {self.other_record("flipped_training", "flipped_training"): figure3}

    def inputs(self, path: str) -> dict[str, Any]:
        """The files that the job of a record reads: images, nets that it merges or starts from, and their records."""
        job = self.jobs[path]
        inputs: dict[str, Any] = {"data": job.prepared} if job.prepared else {}
        nets = job.nets
        if job.kind == "train":
            (unit, seed), start = nets[0], self.settings.start_of(nets[0][0])
            nets = ((start, seed),) if start else ()
            if self.settings.stage_of(unit) is None:
                inputs["weights"] = f"{self.folder}/weights/{unit}.safetensors"
        if nets:
            inputs["nets"] = [self.checkpoint(net) for net in nets]
            inputs["trained"] = [self.record("train", net) for net in nets]
        return inputs

    # ---- what is there

    def read(self, path: str) -> Record | None:
        """A record, which is of what its file's name says; None if there is none."""
        if path not in self._read:
            record = self._read[path] = find_record(path)
            if record and (of := _name_of(record)) != (name := f"{self.jobs[path].kind}/{Path(path).stem}"):
                raise UserError(
                    f"record {path} is of {of}, not of {name}: give each record its name back, or delete it, and it is "
                    "made again"
                )
        return self._read[path]

    def reason(self, path: str) -> str | None:
        """Why a record isn't current; None if it is."""
        if path not in self._reasons:
            job, record = self.jobs[path], self.read(path)
            checkpoints, filters, weights = [], None, {}
            if job.kind in ("flip_merge", "pair_merge", *MEASUREMENTS):
                trained = (self.read(self.record("train", net)) or {} for net in job.nets)
                checkpoints = [train.get("outputs", {}).get("checkpoint") for train in trained]
            if record and job.kind == "flip_merge":
                beside = Path(self.filters(job.nets[0], job.matching))
                filters = sha256(beside) if beside.is_file() else None
            if record and job.kind == "train" and self.settings.stage_of(job.nets[0][0]) is None:
                files = map(Path, self.settings.model_of(job.nets[0][0]).files)
                weights = {file.name: sha256(file) for file in files if file.is_file()}
            self._reasons[path] = stale(
                record, job.settings, checkpoints=checkpoints, filters=filters, weights=weights
            )
        return self._reasons[path]

    def retrained(self, merges: Iterable[str]) -> set[str]:
        """Train records that a run writes anew, current or not, since its merges need checkpoints that aren't there."""
        jobs = [self.jobs[path] for path in merges]
        nets = {net for job in jobs for net in job.nets}
        units = {(unit, seed) for model, seed in nets for unit in self.settings.models[model].units}
        missing = {net for net in units if not Path(self.checkpoint(net)).exists()}
        for job in jobs:
            if job.kind == "during_training" and not all(map(Path.exists, self.snapshots(job))):
                missing |= {*job.nets}
        return {self.record("train", net) for net in missing}

    def snapshots(self, job: Job) -> list[Path]:
        """The nets that a measurement during training reads besides the trained one."""
        checkpoint = Path(self.checkpoint(job.nets[0]))
        return [snapshot_path(checkpoint, epoch) for epoch in job.settings["epochs"][:-1]]

    def shown(self, kind: str, models: Iterable[str] | None = None, matching: str | None = None) -> list[str]:
        """The records of a kind that tables show: those of this run, and the current ones that other pieces left.

        Args:
            models: only records all of whose nets are of these; None: of the paper's types.
            matching: only merges by it; None for the config's.
        """
        allowed = None if models is None else {*models}
        return [
            path
            for path, job in self.jobs.items()
            if job.kind == kind
            and job.matching == matching
            and all(
                self.settings.model_of(unit).is_papers if allowed is None else unit in allowed
                for unit, _ in job.nets
            )
            and (path in self.chosen or self.reason(path) is None)
        ]

    # ---- which images

    def images_in_use(self, prepared: str) -> tuple[str, str] | None:
        """The content digest of the images that current records were made from, and one of these; None without any.

        Args:
            prepared: the file of prepared images that the records' jobs read.
        """
        for path, job in self.jobs.items():
            if (
                job.prepared == prepared
                and self.reason(path) is None
                and (digest := self.read(path)["inputs"].get("data"))
            ):
                return digest, path
        return None

    def other_images(self, prepared: str) -> str | None:
        """One line on current records that were made from other images than `prepared` holds; None if there are none.

        As long as the images aren't prepared, they are told apart by their labels, but for torchvision's.
        """
        used = self.images_in_use(prepared)
        if used is None:
            return None
        digest, path = used
        job, record = self.jobs[path], self.read(path)
        model = job.nets[0][0].partition(".")[0] if job.nets else None
        label = self.settings.label(model)
        known = digest_of(prepared) if Path(prepared).exists() else self.settings.known_digest(model)
        if digest == known if known else record["inputs"]["source"] == label:
            return None
        return (
            f"records of {self.folder} such as {path} were made from other images ({images_of(record)}) than this "
            f"config names ({label}): name those images in the config, root and label, or move {self.folder} "
            "away to begin anew"
        )
