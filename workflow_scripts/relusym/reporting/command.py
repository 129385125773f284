"""The command `relusym`. It ends with 0, with 1 after a user's error in one line, or with 2 after a misuse."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from relusym import __version__
from relusym.errors import UserError
from relusym.symmetry import SYMMETRIES

NET = "a net: file.py:callable, module:callable (without arguments) or torchvision:name"
REPORT = """\
How does a net encode a symmetry? Its accuracy and its flipped self's, its invariance error, its GCNN barrier; layer
by layer how equivariant it is once channels are matched; where a merge with its flipped self fails; which strides stand
in the way. Writes one HTML page, CSVs, all numbers as JSON, and the permuted, halfway and repaired nets."""
CIFAR10S = (
    "--mean 0.4914 0.4822 0.4465 --std 0.2470 0.2435 0.2616"  # of its training images, channel by channel
)
MERGE = "Match the channels of two nets of one architecture, and average their weights."


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    whole = argparse.ArgumentParser(
        "relusym", description="How close is a ReLU network to a group-equivariant one?", allow_abbrev=False
    )
    whole.add_argument("--version", action="version", version=f"relusym {__version__}")
    commands = whole.add_subparsers(dest="command", required=True, metavar="report | merge")

    one = commands.add_parser("report", help="how, and where, a net encodes a symmetry", description=REPORT)
    one.add_argument("net", help=NET)
    one.add_argument(
        "--weights",
        metavar="FILE",
        help="safetensors or a state dict (never runs code); 'random'; of torchvision's nets also a name. Not given: "
        "as the callable makes the net, or torchvision's default weights",
    )
    _add_common(one)
    one.add_argument(
        "--out", default="report", metavar="FOLDER", help="where it is written (default: report)"
    )
    one.add_argument(
        "--partial-images",
        type=_count(0),
        default=100,
        metavar="N",
        help="images that each partial merge is corrected and measured on; 0 leaves them out (default: 100)",
    )

    two = commands.add_parser("merge", help="merge two nets of one architecture", description=MERGE)
    two.add_argument("net", help=NET)
    two.add_argument("weights", nargs=2, metavar="FILE", help="weights of the first and of the second net")
    _add_common(two)
    two.add_argument(
        "--out", required=True, metavar="FILE", help="where the merged net is written (.safetensors)"
    )
    two.add_argument(
        "--which",
        choices=("halfway", "reset", "repaired"),
        help="which merged net is written (default: with REPAIR, if the net's own layers can hold it, else with "
        "its batch norms reset)",
    )
    return whole


def _add_common(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--images",
        required=True,
        metavar="PATH",
        help="a folder; CIFAR10's official folder or archive, binary or Python; an .npz or a tensor file (entries "
        "images, labels)",
    )
    command.add_argument(
        "--split", choices=("test", "train"), help="of CIFAR10's official files (default: test)"
    )
    command.add_argument(
        "--labels",
        metavar="folder | FILE",
        help="'folder': class folders in alphabetical order; or a .npy or .txt, one number an image. Without labels, "
        "accuracy is agreement with the net itself. CIFAR10's official files have their own",
    )
    command.add_argument("--mean", type=float, nargs="+", help="of each channel, of images scaled to 0…1")
    command.add_argument("--std", type=float, nargs="+", help="of each channel, of images scaled to 0…1")
    command.add_argument(
        "--size",
        type=_count(1),
        nargs="+",
        metavar="N",
        help="resize the shorter side [and crop the middle]: 256 224",
    )
    command.add_argument(
        "--limit", type=_count(1), metavar="N", help="at most so many images, a seeded choice"
    )
    command.add_argument(
        "--match-images",
        type=_count(1),
        default=2000,
        metavar="N",
        help="at most so many of them to match channels and take statistics on (default: 2000)",
    )
    command.add_argument("--symmetry", choices=SYMMETRIES, default="horizontal_flip")
    command.add_argument(
        "--metric", metavar="FILE.PY:FN", help="fn(logits, labels) → one number an image, larger is better"
    )
    command.add_argument("--seed", type=_count(0), default=0)
    command.add_argument("--batch-size", type=_count(1), default=50, metavar="N", help="(default: 50)")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, … (default: auto)")
    command.add_argument(
        "--json", action="store_true", help="print one JSON object with every number, and no screen"
    )


def _count(least: int) -> Callable[[str], int]:
    def count(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} given; allowed is at least {least}")
        return value

    count.__name__ = "whole number"  # what argparse calls it
    return count


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    given = parser().parse_args(arguments)
    if given.command == "merge":
        del given.symmetry
    if given.size and len(given.size) > 2:
        parser().error(
            "--size: one number, or two: of the resized shorter side, and of the square cut out of it"
        )
    try:
        {"report": _report, "merge": _merge}[given.command](given)
    except UserError as error:
        print(f"relusym: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _inputs(given: argparse.Namespace, preset: Any) -> tuple[Any, Any, Any, dict[str, Any], tuple[str, ...]]:
    """Images to measure on, to match on, labels, metrics, and what is to be told of the images."""
    from relusym.cifar10 import recognised
    from relusym.evaluation.images import Images, normalisation
    from relusym.merging.merge import METRICS
    from relusym.reporting import image_files, net_files

    mean, std = given.mean or (preset and preset[0]), given.std or (preset and preset[1])
    if mean is None or std is None:
        of_cifar10 = f"; many nets for CIFAR10 have {CIFAR10S}" if recognised(Path(given.images)) else ""
        raise UserError(
            "it isn't known how the net's images are normalised: give --mean and --std, of images scaled to 0…1 "
            f"(0 and 1 if it reads them as they are{of_cifar10})"
        )
    pictures = image_files.read(given.images, given.labels, given.size, given.limit, given.seed, given.split)
    channels = pictures.pixels.shape[-1]
    mean, std = (list(values) * (channels if len(values) == 1 else 1) for values in (mean, std))
    if len(mean) != channels or len(std) != channels:
        raise UserError(
            f"--mean has {len(mean)} and --std {len(std)} values, but images have {channels} channels"
        )
    test = Images(pictures.pixels, given.batch_size, normalisation(mean, std))
    match = (
        replace(test, pixels=test.pixels[: given.match_images]) if given.match_images < len(test) else test
    )
    metrics = METRICS | (dict([net_files.load_metric(given.metric)]) if given.metric else {})
    return test, match, pictures.labels, metrics, pictures.notes


def _device(name: str) -> Any:
    import torch

    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"--device: {name!r} can't be used ({reason}); allowed is auto, cpu or cuda"
        ) from error
    return device


def _report(given: argparse.Namespace) -> None:
    from relusym.reporting import net_files, screen
    from relusym.reporting.page import write_report
    from relusym.reporting.report import report

    with screen.progress(quiet=given.json) as told:
        told("net and images", 0)
        net, preset = net_files.build(given.net, given.weights, given.seed)
        test, match, labels, metrics, notes = _inputs(given, preset)
        found = report(
            net.to(_device(given.device)),
            test,
            labels,
            match_images=match,
            symmetry=SYMMETRIES[given.symmetry],
            metrics=metrics,
            partial_images=given.partial_images,
            seed=given.seed,
            name=net_files.name_of(given.net, net),
            told=told,
        )
        found.notes[:0] = notes
        told("writing", 0)
        page = write_report(found, given.out)
    if given.json:
        print(json.dumps(found.numbers(), allow_nan=False))
    else:
        screen.show_report(found, page)


def _merge(given: argparse.Namespace) -> None:
    from relusym import checkpoint
    from relusym.merging.merge import merge
    from relusym.reporting import net_files, screen

    if Path(given.out).suffix != ".safetensors":
        raise UserError(f"--out: {given.out} given; allowed is a file that ends in .safetensors")
    with screen.progress(quiet=given.json) as told:
        told("nets and images", 0)
        device = _device(given.device)
        first, preset = net_files.build(given.net, given.weights[0], given.seed)
        second, _ = net_files.build(given.net, given.weights[1], given.seed)
        test, match, labels, metrics, notes = _inputs(given, preset)
        told("matching and merging", 0)
        merged = merge(
            *(first.to(device), second.to(device), match, test, labels), seed=given.seed, metrics=metrics
        )
    fits = [n for n in ("repaired", "reset", "halfway") if n in merged.nets and _fits(merged.nets[n], first)]
    which = given.which or fits[0]
    if which not in merged.nets:
        raise UserError(f"--which: {which} given, but a net without batch norm has halfway or repaired")
    about = {"relusym": __version__, "net": which, "of": given.weights}
    checkpoint.save(given.out, merged.nets[which].state_dict(), about)
    numbers = {
        "relusym": __version__,
        "written": which,
        "scores": merged.scores,
        "barrier": merged.barrier,
        "absolute_barriers": merged.barriers,
        "similarity": merged.similarity,
        "permutations": merged.permutations,
        "checks": merged.checks,
        "notes": [*notes, *([merged.note] if merged.note else [])],
    }
    if given.json:
        print(json.dumps(numbers, allow_nan=False))
    else:
        screen.show_merge(merged, which, given.out, labelled=labels is not None, notes=numbers["notes"])


def _fits(net: Any, own: Any) -> bool:
    return net.state_dict().keys() == own.state_dict().keys()
