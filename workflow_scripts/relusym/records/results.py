"""The records of a scale: the path of each, which exist, and what the missing ones are made from.

The path of a record is `records/<kind>/<types>-<fingerprint>/<seeds>.json`, with the fingerprint of the settings that
it depends on, including those of its nets (`fingerprint`). A record exists if the file does and isn't outdated. A merge
is outdated if it was made from another checkpoint than the net's record names; a net, if it is from another file of
weights, or its weights weren't available. An outdated file keeps its name; the new record is `<seeds>.1.json`.
"""

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import count
from pathlib import Path
from typing import Any

from relusym.beyond import MEASUREMENTS
from relusym.config.settings import Net, Settings
from relusym.data import digest as digest_of
from relusym.errors import UserError
from relusym.records.fields import images_of, nets_of
from relusym.records.files import RESTORE, SETTINGS, load_record_or_none, snapshot_path
from relusym.records.fingerprint import fingerprint
from relusym.theory import STATEMENTS
from relusym.whole_files import distinct_names, sha256

Record = dict[str, Any]

SUBMITTED = "train", "flip_merge", "pair_merge"  # the paper's jobs that are submitted to a cluster
# the seeds, and the number of every record but the first
RECORD = re.compile(r"(\d+(?:--\d+)*)(?:\.([1-9][0-9]{0,8}))?\.json")


def numbered(key: str, number: int) -> str:
    return f"{key}.{number}" if number else key


@dataclass(frozen=True)
class Job:
    """One record to be made.

    Attributes:
        kind, settings: the record's kind, and the settings that it has to be made with.
        nets: those whose checkpoints it is made from; for a training, the net itself.
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
    def is_beyond(self) -> bool:
        """Whether it is made only for a target beyond the paper."""
        return self.matching is not None or self.kind in MEASUREMENTS


class Results:
    """The existing results of a scale, and those that its config asks for. A job's key is `<kind>/<folder>/<seeds>`.

    UserError if a folder of records can't be listed (named).

    Args:
        settings: those of this run, which may be on only some of the scale's seeds.
        root, data: the folders of all scales' results, and of prepared images.
        retry: whether to try again for nets whose weights weren't available.

    Attributes:
        prefix: put before every path that is read; the paths that methods return don't have it.
        broken: by record that can't be read or is invalid, a line on what is wrong with it and what to do. A broken
            record counts as existing: no job is planned for it, and only jobs that read it stop.
    """

    def __init__(self, settings: Settings, root: str = "results", data: str = "data", retry: bool = True):
        self.settings, self.data, self.folder = settings, data, f"{root}/{settings.scale}"
        self.retry, self.prefix = retry, ""
        self.broken: dict[str, str] = {}
        self._fingerprints: dict[str, str] = {}
        # each is asked the same many times in a plan of thousands of jobs
        for method in ("made_with", "is_there", "name", "images_in_use", "_listed", "_load"):
            setattr(self, method, cache(getattr(self, method)))

    # ---- paths

    def record(self, key: str) -> str:
        return f"{self.folder}/records/{self.name(key)}.json"

    def filters(self, key: str) -> str:
        """The arrays beside the record of a flip merge."""
        return self._arrays("filters", self.name(key))

    def checkpoint(self, net: Net) -> str:
        return self._arrays("checkpoints", self.name(self.key("train", net)))

    def _arrays(self, room: str, name: str) -> str:
        return f"{self.folder}/{room}/{name.partition('/')[2]}.safetensors"

    def _trained(self, net: Net, snapshots: Iterable[int]) -> str:
        """The name of a net's training; of a new one if `snapshots` are missing beside the existing checkpoint."""
        name = self.name(key := self.key("train", net))
        path = self._arrays("checkpoints", name)
        kept = (str(snapshot_path(Path(path), epoch)) for epoch in snapshots)
        whole = not self.exists(path) or all(map(self.exists, kept))
        return name if whole else numbered(key, self._free(key))

    def prepared(self, model: str | None = None) -> str:
        return f"{self.data}/{self.settings.prepared(model)}.safetensors"

    @property
    def folders(self) -> list[str]:
        """Every folder that a run writes to."""
        kinds = dict.fromkeys(job.kind for job in self.jobs.values())
        rooms = [f"{room}/{kind}" for room in ("records", "logs") for kind in kinds]
        rooms += ["checkpoints", "filters", "states", "weights", "tables", "figures", "notes"]
        return [self.data, *(f"{self.folder}/{room}" for room in rooms)]

    def key(self, kind: str, *nets: Net, matching: str | None = None) -> str:
        """The key of the job on these nets."""
        types = tuple(type_ for type_, _ in nets)
        return f"{kind}/{self.made_with(kind, types, matching)[1]}/{'--'.join(str(seed) for _, seed in nets)}"

    def key_of(self, path: str) -> str | None:
        """The key of the job whose record, filters or checkpoint has this path; None if no job of the scale does."""
        room, _, name = path.removeprefix(f"{self.folder}/").partition("/")
        kind = {"filters": "flip_merge/", "checkpoints": "train/"}.get(room, "")
        key = re.sub(r"(\.\d+)?\.(json|safetensors)$", "", kind + name)
        return key if key in self.jobs else None

    def made_with(self, kind: str, types: tuple[str, ...], matching: str | None = None) -> tuple[Record, str]:
        """A job's settings, from its kind and types of nets, and the folder name with their fingerprint."""
        if kind in ("theory", "train"):
            settings = getattr(self.settings, kind)(types[0])
        elif kind == "flipped_training":
            settings = self.settings.flipped_training()
        elif kind in MEASUREMENTS:
            settings = self.settings.measurement(kind, *types)
        else:
            settings = getattr(self.settings, kind)(*types, matching)
        return settings, f"{'--'.join(types)}-{fingerprint(settings)}"

    # ---- jobs

    @cached_property
    def jobs(self) -> dict[str, Job]:
        """Every job of the whole scale, by its key."""
        return self._jobs(replace(self.settings, run=self.settings.run.model_copy(update={"seeds": None})))

    @cached_property
    def chosen(self) -> set[str]:
        """The keys of this run's jobs, without those of models that aren't available."""
        absent = self.settings.absent
        jobs = (self.jobs if self.settings.run.seeds is None else self._jobs(self.settings)).items()
        return {key for key, job in jobs if not {net[0].partition(".")[0] for net in job.nets} & {*absent}}

    def _jobs(self, settings: Settings) -> dict[str, Job]:
        prepared, jobs = cache(self.prepared), {}

        def add(kind: str, *nets: Net, matching: str | None = None) -> None:
            how, _ = self.made_with(kind, tuple(type_ for type_, _ in nets), matching)
            images = prepared(settings.model_of(nets[0][0]).id)
            jobs[self.key(kind, *nets, matching=matching)] = Job(kind, how, nets, matching, images)

        for net in settings.trainings:
            add("train", net)
        for matching in (None, *settings.compared):
            for net in settings.nets:
                if settings.is_matched((net,), matching):
                    add("flip_merge", net, matching=matching)
            for nets in settings.pairs:
                if settings.is_matched(nets, matching):
                    add("pair_merge", *nets, matching=matching)
        for kind in settings.measured:
            for nets in settings.subjects(kind):
                add(kind, *nets)
        for statement in STATEMENTS:
            jobs[self.statement(statement)] = Job("theory", settings.theory(statement))
        how = settings.flipped_training()
        jobs[self.flipped_training] = Job("flipped_training", how, prepared=self.prepared())
        return jobs

    def statement(self, name: str) -> str:
        """The key of a statement's job."""
        return self.key("theory", (name, self.settings.sections.theory.seed))

    @property
    def flipped_training(self) -> str:
        """The key of the job of Figure 3."""
        seed = self.settings.sections.flipped_training.seed
        return self.key("flipped_training", ("flipped_training", seed))

    def inputs(self, key: str) -> dict[str, Any]:
        """The files that a job reads: images, nets that it merges or starts from, and their records."""
        job = self.jobs[key]
        inputs: dict[str, Any] = {"data": job.prepared} if job.prepared else {}
        nets, snapshots = job.nets, ()
        if job.kind == "train":
            (training_id, seed), start = nets[0], self.settings.start_of(nets[0][0])
            nets = ((start, seed),) if start else ()
            if self.settings.stage_of(training_id) is None:
                inputs["weights"] = f"{self.folder}/weights/{key.split('/')[1]}.safetensors"
        elif job.kind in MEASUREMENTS:
            snapshots = MEASUREMENTS[job.kind].snapshots(job.settings)
        if nets:
            names = [self._trained(net, snapshots) for net in nets]
            inputs["nets"] = [self._arrays("checkpoints", name) for name in names]
            inputs["trained"] = [f"{self.folder}/records/{name}.json" for name in names]
        return inputs

    def outputs(self, key: str) -> list[str]:
        """The files that a job makes: its record, and the filters beside that of a flip merge."""
        return [self.record(key), *([self.filters(key)] if key.startswith("flip_merge/") else [])]

    # ---- existing records

    def is_there(self, key: str) -> bool:
        """Whether a job needn't run: its record exists (or is `broken`), and the filters beside it."""
        record = self.load(key)
        if f"{self.name(key)}.json" in self.broken:
            return True
        return record is not None and (not key.startswith("flip_merge/") or self.exists(self.filters(key)))

    def load(self, key: str) -> Record | None:
        """A job's record; None if there is none, or it is `broken`."""
        return self._load(key, f"{self.name(key)}.json")

    def name(self, key: str) -> str:
        """The key, with a number if outdated records have its name: that of the last current record, or a free one."""
        current = (n for n in reversed(self._numbers(key)) if not self._is_outdated(key, n))
        number = next(current, None)
        return numbered(key, self._free(key) if number is None else number)

    def _numbers(self, key: str) -> list[int]:
        """The numbers of a job's existing records, in order."""
        folder, _, seeds = key.rpartition("/")
        try:
            return sorted(self._listed(folder).get(seeds, []))
        except OSError as error:
            raise UserError(
                f"record {self.folder}/records/{key}.json can't be read ({error.strerror}): make its folder "
                "readable, or delete what is in its place"
            ) from error

    def _listed(self, folder: str) -> dict[str, list[int]]:
        """The numbers of the records in a folder, by their seeds."""
        numbers: dict[str, list[int]] = {}
        with suppress(FileNotFoundError):
            for file in Path(f"{self.prefix}{self.folder}/records/{folder}").iterdir():
                if named := RECORD.fullmatch(file.name):
                    numbers.setdefault(named[1], []).append(int(named[2] or 0))
        return numbers

    def _free(self, key: str) -> int:
        return next(number for number in count() if number not in self._numbers(key))

    def exists(self, path: str) -> bool:
        return os.path.exists(self.prefix + path)  # noqa: PTH110, twice as fast, for tens of thousands

    def _load(self, key: str, file: str) -> Record | None:
        """A record, checked to be of the nets and settings in its path."""
        path = f"{self.folder}/records/{file}"
        try:
            if record := load_record_or_none(self.prefix + path):
                self._check_name(key, path, record)
            return record
        except UserError as error:
            self.broken[file] = str(error)
            return None

    def _check_name(self, key: str, path: str, record: Record) -> None:
        folder, _, seeds = key.rpartition("/")
        kind = self.jobs[key].kind
        if folder not in self._fingerprints:  # its records share their settings
            self._fingerprints[folder] = fingerprint(record["settings"])
        nets = nets_of(record)
        types = [model for model, _ in nets] or [kind]
        if kind == "theory":
            types = [re.sub("[ .]", "_", record.get("statement", "").lower())]
        its_seeds = "--".join(str(seed) for _, seed in nets) or seeds
        its = f"{record['kind']}/{'--'.join(types)}-{self._fingerprints[folder]}/{its_seeds}"
        if its != key and its.replace(self._fingerprints[folder], folder.rpartition("-")[2]) == key:
            raise UserError(
                f"{self.folder}/records/{folder}/{SETTINGS} isn't what its folder is named after: {RESTORE}"
            )
        if its != key:
            raise UserError(
                f"record {path} is of {its}, not of {key}: give each record its name back, or delete it, and it is "
                "made again"
            )

    def _is_outdated(self, key: str, number: int) -> bool:
        """Whether a record was made from other files than the existing ones."""
        name = numbered(key, number)
        job, record = self.jobs[key], self._load(key, f"{name}.json")
        if record is None or "inputs" not in record:
            return False
        if record.get("status") == "absent" and self.retry:
            return True
        try:
            if job.kind == "train":
                model = self.settings.model_of(job.nets[0][0])
                there = zip(distinct_names(model.files), model.files, strict=True)
                files = {name: sha256(file) for name, file in there if Path(file).is_file()}
                read = record["inputs"].get("files", {})
                return any(read.get(name) != hash_ for name, hash_ in (files | model.pinned).items())
            for net, checkpoint in zip(job.nets, record["inputs"].get("checkpoints", []), strict=False):
                trained = self.load(self.key("train", net)) or {}
                if trained.get("outputs", {}).get("checkpoint") not in (None, checkpoint):
                    return True
            if job.kind == "flip_merge":
                filters = Path(self.prefix + self._arrays("filters", name))
                return filters.is_file() and sha256(filters) != record["outputs"]["filters"]
        except UserError as error:  # a file can't be read
            self.broken[f"{name}.json"] = str(error)
        return False

    def shown(self, kind: str, models: Iterable[str] | None = None, matching: str | None = None) -> list[str]:
        """The jobs of a kind that tables show: those of this run, and those that other runs have done.

        Only those all of whose nets are of `models` (None: of the paper's types), merged by `matching` (None: the
        config's).
        """
        allowed = None if models is None else {*models}
        return [
            key
            for key, job in self.jobs.items()
            if job.kind == kind
            and job.matching == matching
            and all(
                self.settings.model_of(type_).is_in_paper if allowed is None else type_ in allowed
                for type_, _ in job.nets
            )
            and (key in self.chosen or self.is_there(key))
        ]

    # ---- images

    def images_in_use(self, prepared: str) -> tuple[str, str] | None:
        """The content digest of the images that records of jobs on `prepared` were made from, and one such record."""
        used = (
            (digest, self.record(key))
            for key, job in self.jobs.items()
            if job.prepared == prepared
            and self.is_there(key)
            and (record := self.load(key))
            and (digest := record["inputs"].get("data"))
        )
        return next(used, None)

    def other_images(self, prepared: str) -> str | None:
        """A line on records made from other images than those in `prepared`, or, without that file, of its label."""
        used = self.images_in_use(prepared)
        if used is None:
            return None
        digest, path = used
        job, record = self.jobs[self.key_of(path)], self.load(self.key_of(path))
        model = job.nets[0][0].partition(".")[0] if job.nets else None
        label = self.settings.label(model)
        known = (
            digest_of(self.prefix + prepared) if self.exists(prepared) else self.settings.known_digest(model)
        )
        if digest == known if known else record["inputs"].get("source") == label:
            return None
        return (
            f"records such as {path} were made from other images ({images_of(record)}) than this config names "
            f"({label})"
        )
