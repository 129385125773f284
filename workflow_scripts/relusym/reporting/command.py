"""The command `relusym`. It exits with 0, with 1 after a user's error (one line), or with 2 after wrong usage."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from relusym import __version__
from relusym.errors import UserError, first_line, listed, theirs, users_line
from relusym.matching import MATCHINGS, OF_FLIPS
from relusym.memory import keep_freed_memory
from relusym.symmetry import SYMMETRIES
from relusym.whole_files import check_writable

NET = "file.py:callable or module:callable (without arguments), torchvision:name, timm:name or hf:name_or_folder"
WEIGHTS = """\
a safetensors file or a state dict (no code in it is run), FILE:PREFIX for one of several sets in it; 'random'; for
torchvision's nets also a name (default: the weights that the callable sets, or the package's pretrained ones)"""
IMAGES = """\
a folder of images; CIFAR10's official folder or archive, binary or Python; or an .npz or tensor file (entries images,
uint8 (N, H, W, channels), and labels)"""
LABELS = """\
'folder': the class folders, in alphabetical order; or a .npy or .txt file, one number per image, in the order of the
images' names as text. Without labels, accuracy is agreement with the net itself; CIFAR10's official files come with
labels"""
TRAIN_IMAGES = """\
images to match channels, measure statistics and fine-tune on, like --images (default: with --fine-tune, CIFAR10's
training images; without, --images)"""
OUT = "where to write; files of an earlier call are replaced (default: {})"
UNFINISHED = "unfinished.safetensors"  # from which an interrupted report resumes
REPORT = """\
Measure how a net encodes a symmetry: the accuracies of the net and of its flipped self, its invariance error and GCNN
barrier; how equivariant each layer is once channels are matched; where a merge with its flipped self fails; and which
strides break the symmetry. Writes an HTML page, CSVs, all numbers as JSON, and the permuted, halfway and repaired nets.
With several weight files: a report on each, a page with all side by side, and the barriers between them."""
CIFAR10S = "--mean 0.4914 0.4822 0.4465 --std 0.2470 0.2435 0.2616"  # of its training images
EXACT = """\
Make the exact GCNN of a net: channels are matched in pairs that a flip swaps, or with themselves, and the net is
averaged with its flipped self, with tied weights, so that a flipped image gets the same logits; --fine-tune trains it
further. Writes its weights for the net's class, and a version with fewer multiplications for torch.export.load; neither
needs relusym."""
MERGE = """\
Match the channels of nets of one architecture, and average their weights. Two nets need no images if matched by their
weights alone (--matching weight). More than two are matched by their activations so that the permutations around any
cycle of nets compose to the identity (C2M3) and, for comparison, each to the first alone; barriers are relative to the
nets' mean accuracy."""


def parser() -> argparse.ArgumentParser:
    """The parser of the command's arguments."""
    whole = argparse.ArgumentParser(
        "relusym", description="How close is a ReLU network to a group-equivariant one?", allow_abbrev=False
    )
    whole.add_argument("--version", action="version", version=f"relusym {__version__}")
    whole.set_defaults(metric=None, train_images=None, train_labels=None)  # which not every command has
    commands = whole.add_subparsers(dest="command", required=True, metavar="report | merge | exact")

    report = commands.add_parser(
        "report", help="measure how, and where, a net encodes a symmetry", description=REPORT
    )
    report.add_argument("net", help=NET)
    report.add_argument("--weights", metavar="FILE", nargs="+", default=[None], help=WEIGHTS)
    _add_common(report, MATCHINGS, images=True)
    report.add_argument("--out", default="report", metavar="FOLDER", help=OUT.format("report"))
    several = (
        "images on which each partial merge is corrected and measured; 0: no partial merges (default: 100)"
    )
    _add_number(report, "--partial-images", 0, several, 100)
    moves = "measure each layer's equivariance to small translations and rotations, on N images (default: 0)"
    _add_number(report, "--lie-derivative", 0, moves, 0)

    two = commands.add_parser("merge", help="merge nets of one architecture", description=MERGE)
    two.add_argument("net", help=NET)
    two.add_argument("weights", nargs="+", metavar="FILE", help="weights of each net, at least two")
    _add_common(two, [name for name in MATCHINGS if name not in OF_FLIPS], images=False)
    two.add_argument(
        "--out", required=True, metavar="FILE", help="where to write the merged net (.safetensors)"
    )
    two.add_argument(
        "--permuted",
        metavar="FILE",
        help="where to write the second net with its channels in the first one's order",
    )
    two.add_argument(
        "--which",
        choices=("halfway", "reset", "repaired"),
        help="which merged net to write (default: repaired, if its corrections fit the net's layers, else reset or "
        "halfway)",
    )

    three = commands.add_parser("exact", help="make the exact GCNN of a net", description=EXACT)
    three.add_argument("net", help=NET)
    three.add_argument("--weights", metavar="FILE", nargs=1, default=[None], help="as for report, one file")
    _add_common(three, (), images=True)
    _add_number(three, "--fine-tune", 0, "epochs of fine-tuning (default: 0)", 0)
    three.add_argument("--train-images", metavar="PATH", help=TRAIN_IMAGES)
    three.add_argument("--train-labels", metavar="folder | FILE", help="their labels, like --labels")
    rate = "initial learning rate of the fine-tuning, falling linearly to zero (default: 0.01)"
    three.add_argument("--learning-rate", type=float, default=0.01, metavar="RATE", help=rate)
    padding = (
        "pixels of zeros around a training image before its random crop (default: 0; usual for CIFAR10: 4)"
    )
    _add_number(three, "--crop-padding", 0, padding, 0)
    compiled = (
        "fold the layers for which that pays off under torch.compile: slower uncompiled, mostly faster compiled if "
        "channels are swapped rather than fixed; --timing then times compiled nets"
    )
    three.add_argument("--compiled", action="store_true", help=compiled)
    timing = "time the net and its exact GCNN on batches of 1, 10 and 100 images"
    three.add_argument("--timing", action="store_true", help=timing)
    three.add_argument("--out", default="exact", metavar="FOLDER", help=OUT.format("exact"))
    return whole


def _add_number(
    command: argparse.ArgumentParser, name: str, least: int, what: str, default: int | None = None
) -> None:
    command.add_argument(name, type=_count(least), default=default, metavar="N", help=what)


def _add_common(command: argparse.ArgumentParser, matchings: Sequence[str], *, images: bool) -> None:
    command.add_argument("--images", required=images, metavar="PATH", help=IMAGES)
    split = "which of CIFAR10's official images (default: test)"
    command.add_argument("--split", choices=("test", "train"), help=split)
    command.add_argument("--labels", metavar="folder | FILE", help=LABELS)
    known = "per channel, of images scaled to 0…1 (default: torchvision's, timm's or Hugging Face's)"
    command.add_argument("--mean", type=float, nargs="+", help=known)
    command.add_argument("--std", type=float, nargs="+", help=known)
    size = "resize the shorter side [and crop the centre], e.g. 256 224 (default: as for --mean)"
    command.add_argument("--size", type=_count(1), nargs="+", metavar="N", help=size)
    _add_number(command, "--limit", 1, "use at most N images, a seeded choice")
    match = "use at most N of these to match channels and measure statistics (default: 2000)"
    _add_number(command, "--match-images", 1, match, 2000)
    flip = "horizontal_flip"
    command.add_argument("--symmetry", choices=SYMMETRIES, default=flip, help=f"(default: {flip})")
    if matchings:
        how = "how channels are matched (default: activation)"
        command.add_argument("--matching", choices=matchings, default="activation", help=how)
        line = (
            "measure N nets, both ends included, on the line from the first net to the second (report: to its "
            "flipped self), with and without REPAIR"
        )
        _add_number(command, "--curve", 2, line, 0)
        metric = "fn(logits, labels) → one number per image; larger is better"
        command.add_argument("--metric", metavar="FILE.PY:FN", help=metric)
    command.add_argument("--seed", type=_count(0), default=0, help="(default: 0)")
    _add_number(command, "--batch-size", 1, "(default: 50)", 50)
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, … (default: auto)")
    json_alone = "print every number as one JSON object, in place of the screen of results"
    command.add_argument("--json", action="store_true", help=json_alone)


def _count(least: int) -> Callable[[str], int]:
    def count(text: str) -> int:
        value, most = int(text), 2**63 - 1
        if not least <= value <= most:
            allowed = f"at least {least}" if value < least else f"at most {most}"
            raise argparse.ArgumentTypeError(f"{value} given; allowed is {allowed}")
        return value

    count.__name__ = "whole number"  # the name in argparse's messages
    return count


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # characters that an ASCII terminal can't show
    options = parser().parse_args(arguments)
    keep_freed_memory()
    if options.command == "merge" and len(options.weights) < 2:
        parser().error("the weights of at least two nets are needed")
    if options.size and (len(options.size) > 2 or options.size[-1] > options.size[0]):
        parser().error(
            "--size: one number, or two: the shorter side after resizing, and the side of the square crop, which isn't "
            "larger"
        )
    values = (value if isinstance(value, list) else [value] for value in vars(options).values())
    texts = [part for several in values for part in several if isinstance(part, str)]
    if any("\0" in text or not text for text in texts):
        return _refused("an argument is empty, or contains a NUL character, which no file name can")
    try:
        with _results_alone(options.json, arguments is None) as stream:
            numbers, show = {"report": _report, "merge": _merge, "exact": _exact}[options.command](options)
            if options.json:
                from relusym.reporting.words import finite

                show = partial(print, json.dumps(finite(numbers), allow_nan=False), file=stream)
            return _show(show, stream)
    except UserError as error:
        return _refused(str(error))
    except KeyboardInterrupt:
        return 130
    except (Exception, SystemExit) as error:
        kind = type(error).__name__
        if kind in ("MemoryError", "OutOfMemoryError") or "DefaultCPUAllocator" in str(error):
            return _refused(
                "there isn't enough memory: give a smaller --batch-size, or fewer images with --limit"
            )
        if users_line(error) is None:
            if isinstance(error, PermissionError):
                return _refused(f"{error.filename} can't be read ({error.strerror}): make it readable")
            raise
        return _refused(f"the net or the metric fails: {theirs(error)}")


def _show(results: Callable[[], None], stream: TextIO | None) -> int:
    """Show the results; returns the command's exit code."""
    try:
        results()
        if stream:
            stream.flush()
    except OSError as error:
        with suppress(OSError):  # else what is left in the buffer would be written at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if isinstance(error, BrokenPipeError):  # the reader has stopped reading, as `head` does
            return 1
        return _refused(f"the results can't be printed ({error.strerror})")
    return 0


def _refused(why: str) -> int:
    _log([why])
    return 1


def _log(lines: Sequence[str]) -> None:
    for line in lines:
        print(f"relusym: {' '.join(line.split())}", file=sys.stderr)


@contextmanager
def _results_alone(json_alone: bool, ends: bool) -> Iterator[TextIO | None]:
    """Yield the stream for results. With `json_alone`, whatever else is printed goes to the error stream.

    If the process `ends` after the context, it goes there until the end: threads go on, and libraries flush buffers.
    """
    stream = sys.stdout
    if not json_alone or stream is None:
        yield stream
        return
    stream.flush()
    kept = os.dup(1)  # standard output, which libraries and child processes write to
    if stream is sys.__stdout__:
        stream = os.fdopen(os.dup(1), "w", encoding=stream.encoding)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield stream
    finally:
        if not ends:
            os.dup2(kept, 1)
        os.close(kept)


@dataclass(frozen=True)
class _Inputs:
    """A command's inputs: the nets, on their device, and the images.

    `test` and `match` are the images to measure on and to match on; `labels` and `classes` belong to `test`; `outputs`:
    the number of logits; `about` describes how the images were read, for JSON.
    """

    nets: list[Any]
    test: Any
    match: Any
    labels: Any
    classes: tuple[str, ...]
    outputs: int
    metrics: dict[str, Any]
    notes: list[str]
    about: dict[str, Any]


def _nets(options: argparse.Namespace) -> tuple[list[Any], Any]:
    """All nets, on their device, and the first one's preset; UserError if nets with random weights are the same."""
    from relusym.evaluation.logits import check_weights
    from relusym.reporting import net_files

    device = _device(options.device)
    made = [
        net_files.build(options.net, weights, options.seed + i) for i, weights in enumerate(options.weights)
    ]
    for (net, _), weights in zip(made, options.weights, strict=True):
        check_weights("net" if len(made) == 1 else f"net of {weights}", net)
    nets = [net.to(device) for net, _ in made]
    net_files.check_distinct(options.net, nets, options.weights)
    return nets, made[0][1]


def _inputs(options: argparse.Namespace, nets: list[Any], preset: Any) -> _Inputs:
    """Read the images and try the first net on them."""
    from relusym.cifar10 import recognised
    from relusym.evaluation.images import Images, normalisation
    from relusym.evaluation.logits import check_net
    from relusym.merging.merge import METRICS
    from relusym.reporting import image_files, net_files

    metrics = METRICS | (dict([net_files.load_metric(options.metric, options.net)]) if options.metric else {})
    mean, std = options.mean or (preset and preset.mean), options.std or (preset and preset.std)
    if mean is None or std is None:
        hint = f"; many nets for CIFAR10 have {CIFAR10S}" if recognised(Path(options.images)) else ""
        raise UserError(
            "it isn't known how the net's images are normalised: give --mean and --std, of images scaled to 0…1 "
            f"(0 and 1 if it reads them as they are{hint})"
        )
    size = None
    if options.size:
        size = image_files.Sizing(options.size[0], options.size[-1])
    elif preset and Path(options.images).is_dir() and not recognised(Path(options.images)):
        size = preset.size
    pictures = image_files.read(
        *(options.images, options.labels, size, options.limit, options.seed, options.split),
        grey=net_files.reads_grey(nets[0]),
    )
    channels = pictures.pixels.shape[-1]
    for option, values in {"--mean": mean, "--std": std}.items():
        if len(values) not in (1, channels):
            raise UserError(
                f"{option}: {len(values)} values given; allowed is one per channel of the images ({channels}), or one"
            )
    mean, std = (list(values) * (channels if len(values) == 1 else 1) for values in (mean, std))
    test = Images(pictures.pixels, options.batch_size, normalisation(mean, std))
    match = test
    if options.match_images < len(test):
        match = replace(test, pixels=test.pixels[: options.match_images])
    notes, outputs = list(pictures.notes), check_net("net", nets[0], test).shape[1]
    if pictures.classes and pictures.labels is not None and len(pictures.classes) < outputs:
        notes.append(
            f"labels: the net has {outputs} classes, and there are {len(pictures.classes)} class folders, which are "
            "taken to be its first classes; if they are others, give --labels FILE"
        )
    _log(notes)
    if pictures.classes and options.labels == image_files.FOLDER and not options.json:
        shown = [f"{i} {name}" for i, name in enumerate(pictures.classes)]
        _log([f"classes: {listed(shown, image_files.SHOWN)}"])
    about = {"mean": mean, "std": std, "size": size and asdict(size), "classes": list(pictures.classes)}
    return _Inputs(nets, test, match, pictures.labels, pictures.classes, outputs, metrics, notes, about)


def _check_outputs(options: argparse.Namespace, written: Sequence[Path]) -> None:
    """Raise UserError if an output can't be written, or would overwrite an input."""
    for path in written:
        check_writable(path)
    folders = (options.images, options.labels), (options.train_images, options.train_labels)
    texts = [options.net, options.metric, *folders[0], *folders[1], *options.weights]
    parts = {part for text in texts if text for part in (text, *text.rpartition(":")[::2])}
    read, hub = [Path(part) for part in parts if os.access(part, os.F_OK)], Path(options.net[3:])
    read += hub.iterdir() if options.net.startswith("hf:") and hub.is_dir() else ()
    for path in written:
        if same := [source for source in read if path.exists() and path.samefile(source)]:
            raise UserError(
                f"{path} would be overwritten, and is also read ({same[0]}): choose another place"
            )
        if path.is_dir():
            raise UserError(f"{path} can't be written, since it is a folder: choose another place")
        whole = Path(os.path.realpath(path))
        for images, labels in folders:
            if labels == "folder" and images and Path(os.path.realpath(images)) in whole.parents:
                raise UserError(f"{path} would lie among the class folders in {images}: choose another place")


def _device(name: str) -> Any:
    import torch

    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise UserError(
            f"--device: {name!r} can't be used ({first_line(error)}); allowed is auto, cpu or cuda"
        ) from error
    return device


def _report(options: argparse.Namespace) -> tuple[dict[str, Any], Callable[[], None]]:
    from relusym.merging.merge import merge
    from relusym.reporting import net_files, screen
    from relusym.reporting.page import FILES, Comparison, write_comparison, write_report
    from relusym.reporting.report import report

    several = len(options.weights) > 1
    stems = [Path(weights or "").stem for weights in options.weights]
    # a folder for each, numbered if two have the same name; if that isn't enough, all are numbered
    names = [f"{n}-{i}" if stems.count(n) > 1 or not n else n for i, n in enumerate(stems)]
    if len({*names, *FILES}) < len(names) + len(FILES):
        names = [f"{n}-{i}" for i, n in enumerate(stems)]
    out = Path(options.out)
    folders = [out / name for name in names] if several else [out]
    written = [folder / name for folder in (out, *folders) for name in (*FILES, UNFINISHED)]
    _check_outputs(options, written)
    with screen.progress(quiet=options.json) as progress:
        progress("net and images", 0)
        on = _inputs(options, *_nets(options))
        nets, reports = on.nets, []
        for i, (net, name, folder) in enumerate(zip(nets, names, folders, strict=True)):
            measured = report(
                net,
                on.test,
                on.labels,
                match_images=on.match,
                symmetry=SYMMETRIES[options.symmetry],
                matching=options.matching,
                metrics=on.metrics,
                partial_images=options.partial_images,
                curve_points=options.curve,
                lie_images=options.lie_derivative,
                seed=options.seed,
                name=name if several else net_files.name_of(options.net, net),
                classes=on.classes,
                progress=lambda stage, done, before=f"{i + 1}: " * several: progress(before + stage, done),
                unfinished=folder / UNFINISHED,
            )
            measured.notes[:0], measured.inputs = on.notes, on.about
            progress("writing", 0)
            page = write_report(measured, folder)
            measured.merged.nets.clear()
            measured.merged.aligned = None
            reports.append(measured)
        if several:
            progress("pairwise merges", 0)
            matching = "activation" if options.matching in OF_FLIPS else options.matching
            pairs = {
                (i, j): merge(
                    *(nets[i], nets[j], on.match, on.test, on.labels),
                    matching=matching,
                    seed=options.seed,
                    metrics=on.metrics,
                ).barrier
                for i in range(len(nets))
                for j in range(i)
            }
            comparison = Comparison(reports, pairs)
            page = write_comparison(comparison, out)
    for folder in folders:
        (folder / UNFINISHED).unlink(missing_ok=True)
    if several:
        return comparison.numbers(), lambda: screen.show_comparison(comparison, page)
    return measured.numbers(), lambda: screen.show_report(measured, page)


def _exact(options: argparse.Namespace) -> tuple[dict[str, Any], Callable[[], None]]:
    from relusym.reporting import net_files, screen
    from relusym.reporting.exact import FILES, as_flip, exact, write_exact

    out, symmetry = Path(options.out), as_flip(options.symmetry)
    _check_outputs(options, [out / name for name in FILES])
    train_images = _train_images(options)
    with screen.progress(quiet=options.json) as progress:
        progress("net and images", 0)
        on = _inputs(options, *_nets(options))
        (net,) = on.nets
        match, training = _training(options, on, train_images)
        result = exact(
            *(net, on.test, on.labels),
            match_images=match,
            symmetry=symmetry,
            training=training,
            compiled=options.compiled,
            timing=options.timing,
            name=net_files.name_of(options.net, net),
            progress=progress,
        )
        result.inputs, result.notes[:0] = on.about, on.notes
        progress("writing", 0)
        written = write_exact(result, out, options.net)
    return result.numbers(), lambda: screen.show_exact(result, written)


def _train_images(options: argparse.Namespace) -> str | None:
    """The path of the images to match and train on; None: those that are measured on."""
    from relusym.cifar10 import recognised

    path = options.train_images
    if path is not None and not Path(path).exists():
        raise UserError(f"--train-images: there is no {path}")
    if path is None and options.train_labels is not None:
        raise UserError("--train-labels: these are labels of --train-images, which aren't given")
    if path is not None or not options.fine_tune:
        return path
    if not recognised(Path(options.images)):
        raise UserError(
            "--train-images: --fine-tune needs images to train on, other than those that are measured on; only "
            "CIFAR10's official files have both"
        )
    if options.split == "train":
        raise UserError(
            "--split train: the net is trained on these; leave it out to measure on the test images"
        )
    return options.images


def _training(options: argparse.Namespace, on: _Inputs, path: str | None) -> tuple[Any, Any]:
    """The images to match on and, with --fine-tune, the batches and the recipe of the fine-tuning; else None."""
    from relusym.cifar10 import recognised
    from relusym.data.batches import ImagesOnDevice
    from relusym.reporting import image_files
    from relusym.training.recipe import Recipe

    if path is None:
        return on.match, None
    split = "train" if recognised(Path(path)) else None
    size = on.about["size"]
    size = image_files.Sizing(**size) if size and Path(path).is_dir() and not split else None
    grey = on.test.pixels.shape[-1] == 1
    pictures = image_files.read(path, options.train_labels, size, None, options.seed, split, grey)
    on.notes.extend(pictures.notes)
    _log(pictures.notes)
    if tuple(pictures.pixels.shape[1:]) != tuple(on.test.pixels.shape[1:]):
        shapes = ["×".join(map(str, pixels.shape[1:])) for pixels in (pictures.pixels, on.test.pixels)]
        raise UserError(f"--train-images: images are {shapes[0]}, and those of --images {shapes[1]}")
    match = replace(on.test, pixels=pictures.pixels[: options.match_images])
    if not options.fine_tune:
        return match, None
    if pictures.labels is None:
        raise UserError(
            "--train-labels: --fine-tune needs the training images' labels: give `folder` or a file"
        )
    if (highest := int(pictures.labels.max())) >= on.outputs:
        raise UserError(f"--train-labels: labels up to {highest}, but the net has {on.outputs} classes")
    names = ("batch_size", "learning_rate", "crop_padding")
    values = {"epochs": options.fine_tune} | {key: getattr(options, key) for key in names}
    recipe = Recipe.read(
        values, lambda key: "--fine-tune" if key == "epochs" else f"--{key.replace('_', '-')}"
    )
    device = next(on.nets[0].parameters()).device
    batches = ImagesOnDevice(
        *(pictures.pixels.to(device), pictures.labels.to(device), on.outputs),
        batch_size=recipe.batch_size,
        seed=options.seed,
        name="fine-tuning",
        crop_padding=recipe.crop_padding,
        symmetry=SYMMETRIES[options.symmetry],
        normalise=on.test.normalise,
    )
    return match, (batches, recipe)


def _merge(options: argparse.Namespace) -> tuple[dict[str, Any], Callable[[], None]]:
    from relusym import checkpoint
    from relusym.channels.handlers import BATCH_NORMS
    from relusym.channels.traced import TracedNet
    from relusym.merging.many import merge_many
    from relusym.merging.merge import curve, merge
    from relusym.merging.repair import held_by_layers
    from relusym.reporting import screen
    from relusym.reporting.page import card
    from relusym.reporting.report import baselines

    written = [Path(path) for path in (options.out, options.permuted) if path is not None]
    for path in written:
        if path.suffix != ".safetensors":
            raise UserError(f"{path} given as an output; allowed is a file that ends in .safetensors")
    if len({*map(os.path.realpath, written)}) < len(written):
        raise UserError(f"--permuted: {options.permuted} is also --out")
    _check_outputs(options, written)
    several = len(options.weights) > 2
    if several and (
        options.images is None or options.matching != "activation" or options.curve or options.permuted
    ):
        raise UserError(
            "more than two nets are matched by their activations: give --images, and leave out --matching, --curve and "
            "--permuted"
        )
    if options.images is None:
        return _merge_by_weights(options)
    with screen.progress(quiet=options.json) as progress:
        progress("nets and images", 0)
        nets, preset = _nets(options)
        if options.which == "reset" and not any(
            isinstance(layer, BATCH_NORMS) for layer in nets[0].modules()
        ):
            raise UserError(
                "--which: reset given, but for a net without batch norm, allowed is halfway or repaired"
            )
        on = _inputs(options, nets, preset)
        first, *others = nets
        if options.which == "repaired":
            first = TracedNet(first, on.test.shape)
            if not held_by_layers(first):
                raise UserError(_not_held("repaired", ["reset"] * first.has_batch_norm + ["halfway"]))
        progress("matching and merging", 0)
        how = {"metrics": on.metrics}
        if several:
            merged = merge_many([first, *others], on.match, on.test, on.labels, **how)
        else:
            how |= {"matching": options.matching, "seed": options.seed}
            merged = merge(first, *others, on.match, on.test, on.labels, **how)
        progress("baselines", 0)
        beside = baselines(nets, SYMMETRIES[options.symmetry], on.test, merged.labels, on.metrics)
        line = {}
        if options.curve:
            progress("interpolation", 0)
            line = curve(merged.aligned, on.match, on.test, merged.labels, options.curve)
    states = {name: net.state_dict() for name, net in merged.nets.items()}
    tensors = merged.traced.net.state_dict().keys()
    fits = [n for n in ("repaired", "reset", "halfway") if n in states and states[n].keys() == tensors]
    which = options.which or fits[0]
    if which not in fits:
        raise UserError(_not_held(which, fits))
    how = _merged_from(options) | {"images": len(on.test), "labelled": on.labels is not None}
    checkpoint.save(options.out, states[which], card(merged, options.net, which) | how)
    if options.permuted:
        about = card(merged, options.net, "permuted") | how
        checkpoint.save(options.permuted, states["permuted"], about)
    notes = [*on.notes, *merged.all_notes]
    numbers = {
        "relusym": __version__,
        "written": which,
        **merged.numbers(labelled=on.labels is not None),
        "barrier": merged.barrier,
        "baselines": beside,
        "classes": on.classes,
        "curve": line,
        "similarity": merged.similarity,
        "inputs": on.about,
        **how,
        "notes": notes,
    }
    return numbers, lambda: screen.show_merge(
        *(merged, which, options.out),
        labelled=on.labels is not None,
        baselines=beside,
        curve=line,
        notes=notes,
    )


def _not_held(which: str, fits: Sequence[str]) -> str:
    return (
        f"--which: {which} given, whose corrections don't fit the net's own layers; allowed is {' or '.join(fits)} "
        "(relusym.merge returns it in Python)"
    )


def _merged_from(options: argparse.Namespace) -> dict[str, Any]:
    """The weights that are merged, and how, with the cards of those that were themselves written by a merge."""
    from relusym.reporting.net_files import card_of

    cards = {weights: about for weights in options.weights if (about := card_of(weights))}
    _log(
        [
            f"{weights} is the {about['which']} net of a merge of {' and '.join(map(str, about['of']))}"
            for weights, about in cards.items()
            if "of" in about
        ]
    )
    return {"of": options.weights, "cards": cards, "matching": options.matching, "seed": options.seed}


def _merge_by_weights(options: argparse.Namespace) -> tuple[dict[str, Any], Callable[[], None]]:
    """Merge by weight matching, without images: only into the halfway net."""
    from relusym import checkpoint
    from relusym.merging.merge import averaged_notes, fixed_notes, merge_weights
    from relusym.reporting import net_files, screen

    if options.matching != "weight":
        raise UserError(
            "--images: needed to match channels by their activations; without them, give --matching weight"
        )
    if options.which not in (None, "halfway") or options.curve or options.labels or options.metric:
        raise UserError(
            "--images: needed to measure nets and to correct their statistics; without them, leave out "
            "--which, --curve, --labels and --metric"
        )
    nets, preset = _nets(options)
    side = options.size[-1] if options.size else preset.size.crop if preset and preset.size else None
    if side is None:
        raise UserError("--size: without images, give the side of the net's images in pixels, such as 32")
    channels = 1 if net_files.reads_grey(nets[0]) else 3
    aligned = merge_weights(*nets, (channels, side, side), options.seed)
    about = {"relusym": __version__, "net": options.net, **_merged_from(options), "images": 0}
    checkpoint.save(options.out, aligned.interpolate(0.5).net.state_dict(), about | {"which": "halfway"})
    if options.permuted:
        checkpoint.save(options.permuted, aligned.second.state_dict(), about | {"which": "permuted"})
    order = {name: permutation.tolist() for name, permutation in aligned.permutations.items()}
    numbers = about | {
        "written": "halfway",
        "search": aligned.search.body(),
        "permutations": order,
        "checks": aligned.checks,
        "notes": (notes := fixed_notes(aligned.traced) + averaged_notes(aligned.first, aligned.second)),
    }
    return numbers, lambda: screen.show_written("halfway, as it is", options.out, notes)
