import itertools
import json
import shutil
from copy import deepcopy

import pytest
import torch
import torchvision
from conftest import python, refused
from safetensors.torch import save_file
from small_nets import Images, net_of, pooled, smooth_images, vgg11
from structures import Attended, Excited, Normed, with_statistics
from torch import nn

from relusym import nets
from relusym.channels.traced import TracedNet, channel_groups
from relusym.data.augmentation import normalise
from relusym.merging.exact_gcnn import exact_gcnn, matched_self, orbits, project
from relusym.merging.folded import Folded, folded, fused, largest, multiplications
from relusym.merging.identities import largest_difference as difference
from relusym.nets.tied import TiedNet
from relusym.nets.vgg import VGG11
from relusym.reporting.command import main
from relusym.reporting.exact import exact, exported
from relusym.symmetry import HORIZONTAL_FLIP, QUARTER_TURN, VERTICAL_FLIP


def mirrored(size: int, fixed: int) -> torch.Tensor:
    """A random involution with `fixed` fixed points."""
    swapped = torch.randperm(size)[fixed:].reshape(-1, 2)
    permutation = torch.arange(size)
    permutation[swapped[:, 0]], permutation[swapped[:, 1]] = swapped[:, 1], swapped[:, 0]
    return permutation


@net_of(lambda: {
    "a": nn.Conv2d(3, 8, 5, stride=2, padding=(1, 2)), "b": nn.Conv2d(8, 6, (1, 2), stride=(2, 1)),
    "c": nn.Conv2d(14, 10, 3, dilation=2, padding=2), "deep": nn.Conv2d(10, 10, 3, padding=1, groups=10),
    "linear": nn.Linear(10 * 3 * 3, 12), "head": nn.Linear(12, 4),
})  # fmt: skip
def Odds(self, x):
    """Kernels of even and odd sizes, strides, dilation, concatenated groups, a linear layer that reads pixels."""
    y = torch.relu(self.a(x))
    z = torch.relu(self.b(nn.functional.pad(y, (0, 1))))
    y = torch.relu(self.c(torch.cat([y, nn.functional.interpolate(z, y.shape[2:])], 1)))
    y = nn.functional.adaptive_avg_pool2d(torch.relu(self.deep(y)), 3)
    return self.head(torch.relu(self.linear(y.flatten(1))))


MADE = {
    "vgg11": (lambda: nets.build({"architecture": "vgg11", "width": 1 / 8, "initialization": "he"}, 10), 32),
    "vgg11_bn": (lambda: nets.build({"architecture": "vgg11_bn", "width": 1 / 8}, 10), 32),
    "resnet20": (lambda: nets.build({"architecture": "cifar_resnet", "blocks": 3, "width": 0.5}, 10), 33),
    "odds": (Odds, 21),
}


def involutions(net):
    groups = channel_groups(net)
    return groups, {g.name: torch.arange(g.size).reshape(-1, 2).flip(1).flatten() for g in groups}


def with_batch_norms(net):
    """The net, with batch norm statistics of other data."""
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-1, 1)
            layer.running_var.uniform_(0.5, 2)
    return net.eval()


@pytest.fixture(params=["vgg11", "vgg11_bn", "resnet20"])
def constrained(request):
    """A net, images, its groups, and involutions with a third of the channels fixed."""
    torch.manual_seed(0)
    make, size = MADE[request.param]
    net = with_batch_norms(make())
    groups = channel_groups(net, (3, size, size))
    permutations = {group.name: mirrored(group.size, group.size // 3 // 2 * 2) for group in groups}
    return net, normalise(smooth_images(20, size)), groups, permutations


def test_an_exact_gcnn_is_invariant_and_each_of_its_kernels_satisfies_the_constraint(constrained):
    net, x, groups, permutations = constrained
    tied = exact_gcnn(net, HORIZONTAL_FLIP, groups, permutations).eval()
    logits = tied(x)
    before = (net(x) - net(x.flip(-1))).abs().max()
    assert (logits - tied(x.flip(-1))).abs().max() < min(1e-5 * logits.abs().max(), before / 100)
    plain = tied.to_plain()
    moved = matched_self(plain, HORIZONTAL_FLIP, groups, permutations)
    torch.testing.assert_close(moved.state_dict(), plain.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(plain.eval()(x), logits)


def test_an_exact_gcnn_is_the_nearest_to_its_net_and_an_exact_gcnn_stays_unchanged(constrained):
    net, _, groups, permutations = constrained
    projected = project(net, HORIZONTAL_FLIP, groups, permutations)
    again = project(projected, HORIZONTAL_FLIP, groups, permutations)
    torch.testing.assert_close(again.state_dict(), projected.state_dict(), rtol=0, atol=0)
    for name, tensor in projected.state_dict().items():
        if tensor.is_floating_point():  # the difference is orthogonal to the constraint's solutions
            off = net.state_dict()[name] - tensor
            assert abs(float((off * tensor).sum())) < 1e-3 * max(float(tensor.norm() * off.norm()), 1e-6)


def test_an_exact_gcnn_is_saved_and_loaded_and_stays_one_whatever_a_training_does(constrained, tmp_path):
    net, x, groups, permutations = constrained
    tied = exact_gcnn(net, HORIZONTAL_FLIP, groups, permutations)
    optimizer = torch.optim.SGD(tied.parameters(), 0.01, momentum=0.9)
    for _ in range(3):
        tied.train()(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.save(tied.state_dict(), tmp_path / "net")
    loaded = exact_gcnn(net, HORIZONTAL_FLIP, groups, permutations)
    loaded.load_state_dict(torch.load(tmp_path / "net", weights_only=True))
    loaded.eval(), tied.eval()
    logits = loaded(x)
    assert torch.equal(logits, tied(x))
    assert (logits - loaded(x.flip(-1))).abs().max() < 1e-5 * logits.abs().max()
    assert not torch.equal(logits, exact_gcnn(net, HORIZONTAL_FLIP, groups, permutations).eval()(x))


@pytest.mark.parametrize("structure", [Attended, Excited, Normed], ids=lambda structure: structure.__name__)
def test_the_exact_gcnn_of_a_net_with_heads_is_invariant_and_exported(structure):
    torch.manual_seed(0)
    result = exact(with_statistics(structure()).float(), Images(smooth_images(40), 20))
    assert result.invariance_error["net"] > 1e-3 and result.invariance_error["exact"] < 1e-6
    x = torch.randn(3, 3, 32, 32)
    program = exported(result.folded, result.image_shape).module()
    torch.testing.assert_close(program(x), result.plain(x), rtol=1e-4, atol=1e-4)


def test_free_parameters_are_counted_by_fixed_and_swapped_channels():
    """A 3×3 kernel between swapped pairs has half its entries free; between fixed channels six of nine."""
    net = VGG11(1 / 8, 0, initialization="he")
    groups, swapped = involutions(net)
    fixed = {group.name: torch.arange(group.size) for group in groups}
    counts = [8, 16, 32, 32, 64, 64, 64, 64]
    inner = sum(a * b for a, b in itertools.pairwise(counts))
    biases = sum(counts)
    of_fixed = exact_gcnn(net, HORIZONTAL_FLIP, groups, fixed)
    assert of_fixed.free_parameters == 6 * (3 * 8 + inner) + biases + 64 * 10 + 10
    of_swapped = exact_gcnn(net, HORIZONTAL_FLIP, groups, swapped)
    assert of_swapped.free_parameters == (9 * (3 * 8 + inner) + biases + 64 * 10) // 2 + 10
    regular = VGG11(1 / 8, 8, initialization="he")
    assert of_swapped.free_parameters == sum(parameter.numel() for parameter in regular.parameters())


def test_a_gcnn_of_group_convs_is_already_exact():
    net = vgg11(group_convs=8)
    groups, neighbours = involutions(net)
    # as it has them
    halves = {group.name: torch.arange(group.size).roll(group.size // 2) for group in groups}
    for permutations, unchanged in ((halves, True), (neighbours, False)):
        projected = project(net, HORIZONTAL_FLIP, groups, permutations).state_dict()
        same = [torch.equal(tensor, net.state_dict()[name]) for name, tensor in projected.items()]
        assert all(same) == unchanged


def test_an_orbit_of_a_quarter_turn_has_four_entries_and_other_orders_are_refused():
    net = VGG11(1 / 8, 0, initialization="he")
    groups = channel_groups(net)
    cycled = {g.name: torch.arange(g.size).reshape(-1, 4).roll(1, dims=1).flatten() for g in groups}
    numbered = orbits(net, QUARTER_TURN, groups, cycled)
    convs = [numbers.unique(return_counts=True)[1] for name, numbers in numbered.items() if "conv" in name]
    assert all((counts == 4).all() for counts in convs)
    with pytest.raises(ValueError, match="aren't of order 2"):
        project(net, HORIZONTAL_FLIP, groups, cycled)
    assert isinstance(exact_gcnn(net, QUARTER_TURN, groups, cycled), TiedNet)


def test_a_step_of_a_tied_net_is_the_ordinary_nets_step_projected():
    """With momentum and weight decay."""
    net = vgg11()
    groups, permutations = involutions(net)
    plain = project(net, HORIZONTAL_FLIP, groups, permutations)
    tied = exact_gcnn(net, HORIZONTAL_FLIP, groups, permutations)
    x, labels = normalise(smooth_images(20)), torch.arange(20) % 10
    how = {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.01}
    optimizers = [torch.optim.SGD(each.parameters(), **how) for each in (plain, tied)]
    for _ in range(3):
        for each, optimizer in zip((plain, tied), optimizers, strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(each.train()(x), labels).backward()
            optimizer.step()
        plain.load_state_dict(project(plain, HORIZONTAL_FLIP, groups, permutations).state_dict())
    torch.testing.assert_close(tied.to_plain().state_dict(), plain.state_dict(), rtol=1e-3, atol=1e-5)


def test_free_parameters_that_are_drawn_have_an_ordinary_nets_variance_and_projected_ones_half():
    torch.manual_seed(0)
    net = VGG11(0.5, initialization="he")
    groups, permutations = involutions(net)
    drawn = TiedNet(net, orbits(net, HORIZONTAL_FLIP, groups, permutations)).to_plain()
    projected = project(net, HORIZONTAL_FLIP, groups, permutations)
    for layer in ("conv3", "conv8"):
        weights = (getattr(each.features, layer).weight.detach() for each in (net, drawn, projected))
        variance, free, halved = (float(weight.var()) for weight in weights)
        assert free == pytest.approx(variance, rel=0.02) and halved == pytest.approx(variance / 2, rel=0.02)


def planted(net, shape, symmetry, fixed_share=0.0):
    """A net with random batch norms, made a GCNN by involutions that fix a share of the channels (one if odd)."""
    torch.manual_seed(0)
    traced = TracedNet(with_batch_norms(net), shape)
    fixed = {group.name: int(group.size * fixed_share) // 2 * 2 + group.size % 2 for group in traced.groups}
    permutations = {group.name: mirrored(group.size, fixed[group.name]) for group in traced.groups}
    tied = exact_gcnn(traced, symmetry, traced.groups, permutations)
    return traced.copied(tied.to_plain().eval()), permutations, tied.free_parameters


@pytest.mark.slow(seconds=2)
@pytest.mark.parametrize("symmetry", [HORIZONTAL_FLIP, VERTICAL_FLIP], ids=lambda symmetry: symmetry.name)
@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("compiled", [False, True], ids=["interpreted", "to_compile"])
@torch.no_grad()
def test_a_folded_net_is_the_net_in_half_of_the_multiplications(compiled, name, symmetry):
    make, size = MADE[name]
    net, permutations, _ = planted(make(), (3, size, size), symmetry)
    fast = folded(net, symmetry, net.groups, permutations, worthwhile=0, compiled=compiled)
    x = normalise(smooth_images(20, size))
    logits = fast(x)
    assert difference(net.net(x), logits) < 1e-5 and difference(fused(net)(x), logits) < 1e-5
    counts = [multiplications(net, of) for of in (net.net, fast)]
    linear = [layer for layer in net.net.modules() if type(layer) in (nn.Conv2d, nn.Linear)]
    dense = sum(getattr(layer, "groups", 1) == 1 for layer in linear)
    assert sum(isinstance(layer, Folded) for layer in fast.modules()) == dense
    if name != "odds":  # its strides aren't symmetric, and it has a depthwise conv
        assert 2 * counts[1] == counts[0]
        assert difference(logits, fast(symmetry.act(x))) < 1e-5 < difference(x, symmetry.act(x))


@pytest.mark.slow(seconds=3)
@pytest.mark.parametrize("fixed_share", [0, 0.4])
@torch.no_grad()
def test_a_resnet_to_compile_passes_parts_of_its_channels_through_pools_and_sums(fixed_share):
    made = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=10)
    net, permutations, _ = planted(made, (3, 65, 65), HORIZONTAL_FLIP, fixed_share)
    fast = folded(net, HORIZONTAL_FLIP, net.groups, permutations, worthwhile=0, compiled=True)
    x = normalise(smooth_images(8, 65))
    logits = fast(x)
    assert difference(net.net(x), logits) < 1e-5 and difference(logits, fast(x.flip(-1))) < 1e-5
    assert float(logits.std(0).max()) > 1e-3 * float(logits.abs().max())  # images have different logits
    reading = [node for node in fast.graph.nodes if node.op == "call_module" and "conv" in node.target]
    assert [len(node.args[0]) for node in reading[1:]] == (len(reading) - 1) * [3 if fixed_share else 2]
    assert [node.target for node in fast.graph.nodes].count(torch.cat) == 1  # before the head


@net_of(lambda: {
    "a": nn.Conv2d(3, 8, 3, padding=1), "b": nn.Conv2d(8, 8, 3, padding=1), "relu": nn.ReLU(inplace=True),
    "head": nn.Linear(8, 4),
})  # fmt: skip
def InPlace(self, x):
    """Maps that an activation or a sum has changed in place are read again."""
    y = self.a(x)
    self.relu(y)
    z = self.b(y)
    z += y
    return self.head(nn.functional.adaptive_avg_pool2d(torch.relu_(y) + z, 1).flatten(1))


@torch.no_grad()
def test_in_place_changes_are_kept_in_a_net_to_compile():
    net, permutations, _ = planted(InPlace(), (3, 9, 9), HORIZONTAL_FLIP, 0.25)
    fast = folded(net, HORIZONTAL_FLIP, net.groups, permutations, worthwhile=0, compiled=True)
    x = normalise(smooth_images(8, 9))
    assert difference(net.net(x), fast(x)) < 1e-5
    assert any(isinstance(layer, Folded) for layer in fast.modules())


@pytest.mark.parametrize("pool", [(2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 3, 0), (5, 2, 2)])
def test_the_maximum_of_shifted_maps_is_a_max_pool(pool):
    x = torch.randn(2, 3, 11, 8) - 2
    assert torch.equal(largest(x, *pool), nn.functional.max_pool2d(x, *pool))


@torch.no_grad()
def test_fixed_channels_are_only_even_and_save_a_third():
    make, size = MADE["vgg11"]
    net, permutations, free = planted(make(), (3, size, size), HORIZONTAL_FLIP, 0.4)
    fast = folded(net, HORIZONTAL_FLIP, net.groups, permutations, worthwhile=0)
    x = normalise(smooth_images(20))
    assert difference(net.net(x), fast(x)) < 1e-5
    layers = [layer for layer in fast.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    weights = sum(layer.weight.numel() for layer in layers)
    biases = sum(len(layer.bias) for layer in fast.modules() if getattr(layer, "bias", None) is not None)
    assert weights + biases == free  # all multiplications are by free weights
    fixed = {group.name: torch.arange(group.size) for group in net.groups}
    invariant = net.copied(exact_gcnn(net, HORIZONTAL_FLIP, net.groups, fixed).to_plain().eval())
    fast = folded(invariant, HORIZONTAL_FLIP, net.groups, fixed, worthwhile=0)
    assert difference(invariant.net(x), fast(x)) < 1e-5
    convs = {name: layer for name, layer in invariant.net.named_modules() if isinstance(layer, nn.Conv2d)}
    for name, conv in convs.items():
        assert 3 * fast.get_submodule(name).even.weight.numel() == 2 * conv.weight.numel()
        assert fast.get_submodule(name).odd is None
    assert isinstance(fast.get_submodule("classifier"), nn.Linear)  # fixed channels save nothing


@pytest.mark.parametrize("fixed", [0, 2, 8])
@torch.no_grad()
def test_channels_last_memory_format_is_kept(fixed):
    torch.manual_seed(0)
    x = torch.randn(2, 8, 5, 5).contiguous(memory_format=torch.channels_last)
    swapped, alone = torch.arange(8).split([8 - fixed, fixed])
    partner = torch.cat([swapped.roll(len(swapped) // 2), alone])
    fold, laid_out = Folded(nn.Conv2d(8, 8, 3, padding=1), partner, partner, -1), []
    for conv in (fold.even, fold.odd):
        if conv is not None:
            conv.register_forward_pre_hook(lambda layer, inputs: laid_out.append(inputs[0]))
    laid_out.append(fold(x))
    assert len(laid_out) == 3 - (fold.odd is None)
    assert all(y.is_contiguous(memory_format=torch.channels_last) for y in laid_out)


def test_layers_that_would_save_little_are_not_folded():
    make, size = MADE["vgg11"]
    net, permutations, _ = planted(make(), (3, size, size), HORIZONTAL_FLIP)
    counts = []
    for least in (0, 100, 1e9):
        fast = folded(net, HORIZONTAL_FLIP, net.groups, permutations, worthwhile=least)
        counts.append(sum(isinstance(layer, Folded) for layer in fast.modules()))
    assert counts == [9, 3, 0]  # 4.5·64·64 multiplications for 128 channels are 144


def test_layers_of_a_net_to_compile_are_not_folded_if_padding_to_sixteens_costs_more():
    made = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=10)
    net, permutations, _ = planted(made, (3, 65, 65), HORIZONTAL_FLIP, 1 / 6)  # of 64: 54 swapped, 10 fixed
    fast = folded(net, HORIZONTAL_FLIP, net.groups, permutations, compiled=True)
    layers = {name: layer for name, layer in fast.named_modules() if isinstance(layer, nn.Conv2d | Folded)}
    convs = (name for name, layer in layers.items() if type(layer) is nn.Conv2d)
    kept = {name for name in convs if not name.endswith((".even", ".odd"))}
    assert kept == {"conv1", "layer1.0.conv1", "layer1.0.conv2"}  # 37 and 27 channels are padded to 48 and 32
    x = normalise(smooth_images(4, 65))
    with torch.no_grad():
        assert difference(net.net(x), fast(x)) < 1e-5 and difference(fast(x), fast(x.flip(-1))) < 1e-5


@net_of(lambda: {
    "first": nn.Conv2d(3, 128, 3, padding=1), "second": nn.Conv2d(128, 128, 3, padding=1),
    "head": nn.Linear(128, 4),
})  # fmt: skip
def Narrow(self, x):
    """A convolution from 128 to 128 channels, which is worth folding only in a compiled net."""
    y = torch.relu(self.second(torch.relu(self.first(x))))
    return self.head(nn.functional.adaptive_avg_pool2d(y, 1).flatten(1))


@pytest.fixture(scope="module")
def narrow():
    torch.manual_seed(0)
    x = normalise(smooth_images(8, 8))
    return Narrow().eval(), x


def test_narrow_layers_of_a_net_to_compile_are_folded_and_a_failing_compiler_is_a_note(narrow, monkeypatch):
    net, x = narrow

    class Failing(nn.Sequential):
        def forward(self, x):
            raise torch._dynamo.exc.BackendCompilerFailed("inductor", ValueError("no C++ compiler"), None)

    monkeypatch.setattr(torch, "compile", Failing)
    interpreted, compiled = exact(net, [x]), exact(net, [x], compiled=True, timing=True)
    assert isinstance(interpreted.folded.second, nn.Conv2d) and isinstance(compiled.folded.second, Folded)
    assert (interpreted.compiled, compiled.compiled, compiled.seconds) == (False, True, {})
    assert compiled.multiplications["exact"] < interpreted.multiplications["exact"]
    assert any("no C++ compiler" in note and "aren't timed" in note for note in compiled.notes)


def test_a_net_in_training_mode_is_taken_in_evaluation_mode_and_stays_as_it_is():
    torch.manual_seed(0)
    net = pooled(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout())
    x = normalise(smooth_images(16, 8))
    net(x)  # the batch norm's statistics
    before, wanted = deepcopy(net.state_dict()), exact(deepcopy(net).eval(), [x])
    result = exact(net, [x])
    assert net.training and all(torch.equal(net.state_dict()[name], x) for name, x in before.items())
    assert result.numbers() == wanted.numbers() and result.invariance_error["exact"] < 1e-5


def test_that_a_flip_is_unchecked_is_named():
    torch.manual_seed(0)
    net = pooled(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 8, 3)).eval()
    result = exact(net, [normalise(smooth_images(8, 8))])
    assert any("not checked whether horizontal_flip" in note for note in result.notes)


def test_a_size_at_which_strides_prevent_exact_invariance_is_named():
    torch.manual_seed(0)
    net = pooled(nn.Conv2d(3, 8, 3, stride=2, padding=1)).eval()
    for size, notes in ((8, 2), (9, 0)):
        result = exact(net, [normalise(smooth_images(8, size))])
        *about_size, unfolded = result.notes
        assert (result.invariance_error["exact"] < 1e-5) == (notes == 0) and len(about_size) == notes
        assert not notes or "isn't invariant at this size" in about_size[1]
        assert "no layer is folded" in unfolded and "none would save 320 multiplications" in unfolded


def test_why_no_layer_is_folded_is_a_note(narrow):
    net, x = narrow
    assert "no layer is folded" in exact(net, [x]).notes[-1]
    torch.manual_seed(0)
    net = pooled(nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular")).eval()
    net[-1].__class__ = type("Mine", (nn.Linear,), {})
    result = exact(net, [x])
    assert "none is an ungrouped, zero-padded" in result.notes[-1]


@torch.no_grad()
def test_layers_without_a_bias_get_none_so_that_the_exact_net_is_of_the_nets_class():
    torch.manual_seed(0)
    net = pooled(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Conv2d(8, 6, 3), channels=6).eval()
    x = normalise(smooth_images(16, 12))
    result = exact(net, [x])
    first, second = (torch.tensor(result.permutations[name]) for name in "02")
    assert first.tolist() != list(range(8))  # otherwise a bias would do no harm
    state = result.plain.state_dict()
    assert type(result.plain) is type(net) and state.keys() == net.state_dict().keys()
    assert result.invariance_error["exact"] < 1e-5
    # the halfway net, by hand; REPAIR corrects only the second convolution
    old = net.state_dict()
    torch.testing.assert_close(state["0.weight"], (old["0.weight"] + old["0.weight"].flip(-1)[first]) / 2)
    halfway = nn.Conv2d(8, 6, 3)
    halfway.weight.copy_((old["2.weight"] + old["2.weight"].flip(-1)[second][:, first]) / 2)
    halfway.bias.copy_((old["2.bias"] + old["2.bias"][second]) / 2)
    means, deviations = [], []
    for view in (x, x.flip(-1)):
        output = net[:3](view).double().transpose(0, 1).flatten(1)
        output = output if view is x else output[second]
        means.append(output.mean(1)), deviations.append(output.std(1, correction=0))
    read = nn.functional.conv2d(x, state["0.weight"]).relu()
    written = halfway(read).double().transpose(0, 1).flatten(1)
    target = sum(deviations) / 2
    scale = target / (written.var(1, correction=0) + 1e-5 * target**2).sqrt()
    bias = halfway.bias * scale + sum(means) / 2 - scale * written.mean(1)
    torch.testing.assert_close(state["2.bias"], ((bias + bias[second]) / 2).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow(seconds=30)
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@torch.no_grad()
def test_an_exported_net_compiles_to_the_same_logits_for_any_number_of_images(narrow):
    net, x = narrow
    result = exact(net, [x], compiled=True)
    compiled = torch.compile(exported(result.folded, result.image_shape).module())
    for count in (8, 3):
        logits, expected = compiled(x[:count]), result.plain(x[:count])
        assert difference(expected, logits) < 1e-5 and difference(logits, compiled(x[:count].flip(-1))) < 1e-5
    assert float(expected.std(0).max()) > 1e-3 * float(expected.abs().max())  # images have different logits


def test_a_net_that_is_no_gcnn_and_a_quarter_turn_are_refused():
    make, size = MADE["vgg11"]
    net, permutations, _ = planted(make(), (3, size, size), HORIZONTAL_FLIP)
    with torch.no_grad():
        net.net.features.conv3.weight[:, :, 0, 0] += 0.1  # dead channels wouldn't show it
    line = "the folded net differs from the net"
    refused(lambda: folded(net, HORIZONTAL_FLIP, net.groups, permutations, worthwhile=0), match=line)
    refused(lambda: folded(net, QUARTER_TURN, net.groups, permutations), match="of order 4")


NET = """
from torch import nn

def build():
    return nn.Sequential(
        nn.Conv2d(3, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Conv2d(256, 256, 3, padding=1),
        nn.BatchNorm2d(256), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 2),
    )

def bare():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))

class Auxiliary(nn.Sequential):
    def forward(self, x):
        logits = super().forward(x)
        return (logits, x) if self.training else {"logits": logits}

def auxiliary():
    return Auxiliary(*bare())
"""
LOADED = """
import sys
sys.modules["relusym"] = None  # importing it fails
import torch
import torchvision
from safetensors.torch import load_file
x, folder = torch.load(sys.argv[1]), sys.argv[2]
sys.path.insert(0, sys.argv[3])
from the_net import build
plain = build().eval()
plain.load_state_dict(load_file(folder + "/exact.safetensors"))
net = torch.export.load(folder + "/exact.pt2").module()
with torch.no_grad():
    for count in (1, 3, len(x)):
        here, expected = net(x[:count]), plain(x[:count])
        size = expected.abs().max()
        assert (here - expected).abs().max() < 1e-5 * size
        assert (here - net(x[:count].flip(-1))).abs().max() < 1e-5 * size
print("the same")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A net, and training and test images of two classes, which differ in their upper half."""
    made = tmp_path_factory.mktemp("exact")
    (made / "the_net.py").write_text(NET)
    for name, count, seed in (("train", 60, 1), ("test", 30, 2)):
        pixels, labels = smooth_images(count, 16, seed), torch.arange(count) % 2
        pixels[labels == 1, :8] //= 4
        save_file({"images": pixels, "labels": labels}, made / f"{name}.safetensors")
    return made


def run(capsys, folder, *arguments, net="build"):
    """Exit code, output, and the lines of the error stream."""
    scaled = ("--mean", "0.5", "--std", "0.25", "--batch-size", "10", "--images", folder / "test.safetensors")
    code = main(["exact", *map(str, (f"{folder}/the_net.py:{net}", *scaled, *arguments))])
    printed = capsys.readouterr()
    return code, printed.out, printed.err.splitlines()


@pytest.mark.slow(seconds=15)
def test_an_exact_gcnn_is_tuned_written_and_loaded_without_relusym(capsys, folder, tmp_path):
    out = tmp_path / "out"
    tuning = "--train-images", folder / "train.safetensors", "--fine-tune", 3
    code, printed, errors = run(capsys, folder, *tuning, "--out", out, "--json", "--timing")
    assert (code, errors) == (0, [])
    numbers = json.loads(printed)
    assert numbers == json.loads((out / "exact.json").read_text())
    assert {path.name for path in out.iterdir()} == {"exact.safetensors", "exact.pt2", "exact.json"}
    accuracy, error = numbers["accuracy"], numbers["invariance_error"]
    assert list(accuracy) == ["net", "test_time", "exact", "exact_fine_tuned"]
    assert accuracy["exact_fine_tuned"] >= 0.9 and accuracy["exact_fine_tuned"] > accuracy["exact"]
    assert max(error["exact"], error["exact_fine_tuned"]) < 1e-5 < 1e-3 < error["net"]
    assert numbers["parameters"]["exact"] < 0.68 * numbers["parameters"]["net"]
    assert numbers["multiplications"]["exact"] < 0.75 * numbers["multiplications"]["net"]
    assert set(numbers["seconds"]) == {"1", "10", "100"}
    for seconds in numbers["seconds"].values():
        assert set(seconds) == {"net", "net_fused", "exact"} and min(seconds.values()) > 0
    torch.save(normalise(smooth_images(5, 16, 3)), tmp_path / "x.pt")
    assert python(LOADED, tmp_path / "x.pt", out, folder, folder=tmp_path).startswith("the same\n")


def test_a_net_that_returns_more_than_logits_is_tuned(capsys, folder, tmp_path):
    tuning = "--train-images", folder / "train.safetensors", "--fine-tune", 3
    code, printed, errors = run(capsys, folder, *tuning, "--out", tmp_path, "--json", net="auxiliary")
    assert (code, errors) == (0, []) and json.loads(printed)["fine_tuning"]["history"][2]["accuracy"] > 0.4


TRAIN = "--train-images {}/train.safetensors"


@pytest.mark.parametrize("arguments, line", [
    ("--fine-tune 1", "--train-images: --fine-tune needs images to train on"),
    ("--symmetry quarter_turn", "an exact GCNN needs a flip"),
    ("--fine-tune 1 --train-images nowhere", "images: there is no nowhere"),
    (f"--fine-tune 9 --learning-rate 900 {TRAIN}", "diverges at a learning rate"),
    (f"--fine-tune 1 --learning-rate -1 {TRAIN}", "--learning-rate: -1"),
    ("--train-labels {}/labels.txt", "--train-labels: these are labels of --train-images, which aren't given"),
    (f"--fine-tune {10**8} {TRAIN}", f"--fine-tune: {10**8} given"),
])  # fmt: skip
def test_an_error_is_one_line_and_nothing_is_written(capsys, folder, tmp_path, arguments, line):
    typed = arguments.format(folder).split()
    code, printed, errors = run(capsys, folder, *typed, "--out", tmp_path / "out", net="bare")
    assert (code, printed, len(errors)) == (1, "", 1) and line in errors[0]
    assert not (tmp_path / "out").exists()


class Buffered(nn.Module):
    """Coordinates, a mask and a blur as buffers, one of which isn't saved."""

    def __init__(self):
        super().__init__()
        self.conv, self.read, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(10, 8, 3), nn.Linear(8, 4)
        ends = torch.linspace(-1, 1, 15)
        self.register_buffer("coordinates", torch.stack(torch.meshgrid(ends, ends, indexing="ij")))
        self.register_buffer("inside", ends.abs() < 0.9)
        self.register_buffer("blur", torch.tensor([1.0, 2, 1]).expand(8, 1, 1, 3).clone())
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), persistent=False)

    def forward(self, x):
        x = torch.relu(self.conv(x - self.mean)) * self.inside
        x = nn.functional.conv2d(x, self.blur, padding=(0, 1), groups=8)
        x = torch.cat([x, self.coordinates.expand(len(x), 2, 15, 15)], 1)
        return self.head(torch.relu(self.read(x)).mean((2, 3)))


def test_buffers_of_any_shape_become_invariant_and_those_that_arent_saved_stay():
    torch.manual_seed(0)
    net, x = Buffered().eval(), normalise(smooth_images(40, 15))
    result = exact(net, [x])
    assert result.invariance_error["net"] > 0.01 and result.invariance_error["exact"] < 1e-5
    loaded = Buffered().eval()
    loaded.load_state_dict(result.plain.state_dict())
    torch.testing.assert_close(loaded(x), result.plain(x))
    assert loaded.coordinates[1].abs().max() < 1e-6 and torch.equal(loaded.coordinates[0], net.coordinates[0])
    assert torch.equal(result.plain.inside, net.inside) and torch.equal(result.plain.mean, net.mean)
