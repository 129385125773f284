"""The CPU time of weight matching, from one start and from several: python tests/weight_matching_cost.py"""

import time

import torch

from relusym import nets
from relusym.channels.traced import channel_groups
from relusym.matching import STARTS
from relusym.matching.match import Pair, match
from relusym.pixels.transform import transformed
from relusym.symmetry import HORIZONTAL_FLIP


def main(width: float = 0.5) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net, other = (nets.build({"architecture": "vgg11", "width": width}, 10) for _ in range(2))
    groups = channel_groups(net)
    flipped = transformed(net, HORIZONTAL_FLIP, (3, 32, 32))
    for whom, second in {"its flipped self": flipped, "another": other}.items():
        for matching, starts in (("weight_identity", 1), ("weight", STARTS)):
            states = net.state_dict(), second.state_dict()
            tables = {group.name: torch.zeros(group.size, group.size) for group in groups}
            pair = Pair(states, groups, tables, torch.Generator())
            before = time.process_time()
            search = match(matching, pair).search
            print(
                f"a VGG11 of width {width} and {whom}, random weights, {starts} start(s): "
                f"{time.process_time() - before:.1f} s of a core, objective {max(search.objectives.values()):.3f}, "
                f"reached by {search.reached}"
            )


if __name__ == "__main__":
    main()
