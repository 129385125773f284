"""Running several nets of one architecture side by side, one layer at a time, on one batch."""

from collections.abc import Callable

from torch import Tensor, fx

from relusym.errors import UserError

# Called with a node's name and the outputs of all nets there.
Visit = Callable[[str, list[Tensor]], None]


class Lockstep:
    """Nets of the same graph that advance node by node together, so that no net's activations are ever all held.

    Args:
        nets: traced nets (`channel_groups.trace`) of one architecture.

    Raises:
        UserError: the graphs or the shapes of their tensors differ.
    """

    def __init__(self, nets: list[fx.GraphModule]):
        self.interpreters = [fx.Interpreter(net) for net in nets]
        self.nodes = [list(net.graph.nodes) for net in nets]
        if any(_architecture(net) != _architecture(nets[0]) for net in nets[1:]):
            raise UserError("the nets are of different architecture: only nets of one can be merged")

    def run(self, inputs: list[Tensor], visit: Visit) -> list[Tensor]:
        """The nets' outputs on `inputs`, one each; `visit` sees every node's outputs before any later node runs.

        A visited tensor may be changed by later layers (in-place ReLU), so a visitor takes what it needs at once.
        """
        for interpreter, x in zip(self.interpreters, inputs, strict=True):
            interpreter.env, interpreter.args_iter = {}, iter([x])
        outputs: list[Tensor] = []
        for nodes in zip(*self.nodes, strict=True):
            outputs = []
            for interpreter, node in zip(self.interpreters, nodes, strict=True):
                outputs.append(interpreter.run_node(node))
                interpreter.env[node] = outputs[-1]
                for unused in interpreter.user_to_last_uses.get(node, ()):
                    del interpreter.env[unused]
                if not node.users:
                    del interpreter.env[node]
            visit(nodes[0].name, outputs)
        return outputs


def _architecture(net: fx.GraphModule) -> tuple:
    """What two nets share if each can be permuted to match the other: operations, and shapes of all tensors."""
    nodes = [(node.name, node.op, str(node.target)) for node in net.graph.nodes]
    return nodes, {name: tensor.shape for name, tensor in net.state_dict().items()}
