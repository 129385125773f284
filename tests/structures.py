"""Small nets, one for each operation on channels in common nets, and how much permuting them changes their outputs."""

import torch
from small_nets import net_of, shuffled
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves
from torchvision.ops import deform_conv2d

from relusym.channels.traced import channel_groups
from relusym.merging.identities import largest_difference


@net_of(lambda: {
    "stem": nn.Conv2d(3, 8, 3, padding=1), "head": nn.Linear(20, 10),
    "layers": nn.ModuleList(
     nn.Sequential(nn.BatchNorm2d(8 + 4 * i), nn.ReLU(), nn.Conv2d(8 + 4 * i, 4, 3, padding=1)) for i in range(3)),
})  # fmt: skip
def Dense(self, x):
    """Every layer reads the concatenated outputs of all earlier ones."""
    read = [self.stem(x)]
    for layer in self.layers:
        read.append(layer(torch.cat(read, 1)))
    return self.head(torch.cat(read, 1).relu().mean((2, 3)))


@net_of(lambda: {
    "stem": nn.Conv2d(3, 24, 3, padding=1), "first": nn.Sequential(nn.Conv2d(12, 12, 1), nn.BatchNorm2d(12), nn.ReLU()),
    "other": nn.Sequential(nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.Conv2d(12, 12, 1), nn.ReLU()),
    "head": nn.Conv2d(24, 16, 1), "classifier": nn.Linear(16, 10),
})  # fmt: skip
def Shuffled(self, x):
    """Two halves, one of which is passed on unchanged, and a shuffle, as in ShuffleNet V2."""
    x = self.stem(x).relu()
    for branch in (self.first, self.other):
        passed, read = x.chunk(2, dim=1)
        x = torch.cat([passed, branch(read)], 1)
        count, channels, height, width = x.shape
        x = x.view(count, 2, channels // 2, height, width).transpose(1, 2).contiguous().flatten(1, 2)
    return self.classifier(self.head(x).relu().mean([2, 3]))


class Unit(nn.Module):
    """A unit of ShuffleNet V1."""

    def __init__(self, before, after, groups, stride):
        super().__init__()
        middle = after // 4
        self.first = nn.Conv2d(before, middle, 1, groups=groups if before > 24 else 1)
        self.depthwise = nn.Conv2d(middle, middle, 3, stride, 1, groups=middle)
        self.last = nn.Conv2d(middle, after - before * (stride > 1), 1, groups=groups)
        self.shuffle, self.stride = nn.ChannelShuffle(groups), stride

    def forward(self, x):
        y = self.last(self.depthwise(self.shuffle(self.first(x).relu())))
        return (torch.cat([F.avg_pool2d(x, 3, 2, 1), y], 1) if self.stride > 1 else x + y).relu()


def shuffle_net(groups, width):
    """ShuffleNet V1 with two units: one that halves the map, and a residual one."""
    units = nn.Sequential(Unit(24, width, groups, 2), Unit(width, width, groups, 1))
    return nn.Sequential(
        *(nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), units),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)),
    )


@net_of(lambda: {
    "stem": nn.Conv2d(3, 16, 3, padding=1, bias=False), "grouped": nn.Conv2d(16, 24, 3, padding=1, groups=8),
    "depthwise": nn.Conv2d(24, 48, 3, padding=1, groups=24), "squeeze": nn.Conv2d(48, 4, 1),
    "excite": nn.Conv2d(4, 48, 1), "project": nn.Conv2d(48, 16, 1), "head": nn.Linear(16, 10),
})  # fmt: skip
def Excited(self, x):
    """Squeeze-and-excitation, grouped and depthwise convolutions, and a residual stream."""
    x = F.silu(self.stem(x))
    y = F.silu(self.depthwise(F.silu(self.grouped(x))))
    y = y * torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
    x = x + self.project(y)
    return self.head(torch.flatten(F.avg_pool2d(x.relu(), 32), 1))


@net_of(lambda: {
    "layers": nn.Sequential(
     *(nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(8, 16), nn.PReLU(16)),
     *(nn.Conv2d(16, 16, 3, padding=1), nn.GroupNorm(2, 16), nn.ReLU()),
     *(nn.Conv2d(16, 12, 3, padding=1), nn.InstanceNorm2d(12, affine=True), nn.PReLU()),
     *(nn.Conv2d(12, 12, 3, padding=1), nn.GroupNorm(1, 12), nn.Softplus())),
    "head": nn.Linear(8, 10),
})  # fmt: skip
def Normed(self, x):
    """Group norms with many and with few groups, instance norm, PReLU, and a slice of channels."""
    x = self.layers(x)
    return self.head((x[:, :8] + x[:, 4:]).mean(3).mean(2))


@net_of(lambda: {
    "stem": nn.Conv2d(3, 12, 4, 4), "depthwise": nn.Conv2d(12, 12, 3, padding=1, groups=12),
    "norm": nn.LayerNorm(12), "up": nn.Linear(12, 32), "down": nn.Linear(32, 12),
    "scale": nn.Parameter(torch.rand(12, 1, 1) + 0.5), "last": nn.LayerNorm(12), "head": nn.Linear(12, 10),
})  # fmt: skip
def ChannelsLast(self, x):
    """As in ConvNeXt: layer norm, linear layers and a learned scale, with channels last."""
    x = self.stem(x)
    y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
    x = x + self.scale * self.down(F.gelu(self.up(y))).permute(0, 3, 1, 2)
    return self.head(self.last(x.flatten(2).transpose(1, 2)).mean(1))


def block(before, after):
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


@net_of(lambda: {
    "down": nn.ModuleList([block(3, 8), block(8, 16), block(16, 24)]), "up1": nn.ConvTranspose2d(24, 16, 2, 2),
    "fuse1": block(32, 12), "fuse2": block(20, 8), "head": nn.Conv2d(8, 5, 1),
})  # fmt: skip
def UNet(self, x):
    """Two steps down and up, with skips and a transposed convolution; the last conv has an output per pixel."""
    a = self.down[0](x)
    b = self.down[1](F.max_pool2d(a, 2))
    c = self.down[2](F.max_pool2d(b, 2))
    b = self.fuse1(torch.cat([self.up1(c), b], 1))
    a = self.fuse2(torch.cat([a, F.interpolate(b, scale_factor=2, mode="bilinear")], 1))
    return self.head(a)


def tokens():
    return {
        "patches": nn.Conv2d(3, 24, 8, 8), "token": nn.Parameter(torch.randn(1, 1, 24)),
        "positions": nn.Parameter(torch.randn(1, 17, 24)), "norm": nn.LayerNorm(24), "qkv": nn.Linear(24, 72),
        "out": nn.Linear(24, 24), "attention": nn.MultiheadAttention(24, 4, batch_first=True),
        "head": nn.Linear(24, 10),
    }  # fmt: skip


@net_of(tokens)
def Tokens(self, x, written_out=True):
    """Attention written out, with a class token and position embeddings."""
    x = self.patches(x).flatten(2).transpose(1, 2)
    x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
    q, k, v = self.qkv(self.norm(x)).reshape(x.shape[0], 17, 3, 4, 6).permute(2, 0, 3, 1, 4).unbind(0)
    if written_out:
        y = torch.softmax(q @ k.transpose(-2, -1) * 6**-0.5, -1) @ v
    else:
        y = F.scaled_dot_product_attention(q, k, v)
    x = x + self.out(y.transpose(1, 2).reshape(x.shape[0], 17, 24))
    x = x + self.attention(x, x, x, need_weights=False)[0]
    return self.head(self.norm(x)[:, 0])


@net_of(tokens)
def Attended(self, x):
    """The same with PyTorch's function."""
    return Tokens.forward(self, x, written_out=False)


@net_of(lambda: {
    "conv": nn.Conv2d(3, 6, 3, padding=1), "norm": nn.BatchNorm1d(6 * 64), "hidden": nn.Linear(6 * 64, 20),
    "after": nn.BatchNorm1d(20), "head": nn.Linear(20, 10),
})  # fmt: skip
def Flattened(self, x):
    """A linear layer that reads a map of 8×8 pixels, with a batch norm before it and one after it."""
    x = F.max_pool2d(self.conv(x).relu(), 4)
    x = self.norm(x.reshape(x.size(0), -1))
    return self.head(self.after(self.hidden(x)).relu())


def twice():
    single = nn.Conv2d(12, 12, 1)
    convs = {"stem": nn.Conv2d(3, 12, 3, padding=1), "again": nn.Conv2d(12, 12, 3, padding=1)}
    return convs | {"one": single, "same": single, "head": nn.Linear(12, 10)}


@net_of(twice)
def Twice(self, x):
    """A layer that is called twice, and another under two names."""
    x = self.again(self.again(self.stem(x).relu()).relu()).relu()
    return self.head(self.same(self.one(x).relu()).relu().mean((2, 3)))


def tied():
    first, second = nn.Conv2d(12, 12, 1), nn.Conv2d(12, 12, 1)
    second.weight = first.weight
    return {"stem": nn.Conv2d(3, 12, 3), "first": first, "second": second, "head": nn.Linear(12, 10)}


@net_of(tied)
def Tied(self, x):
    """Two layers that share a parameter."""
    return self.head(self.second(self.first(self.stem(x).relu()).relu()).relu().mean((2, 3)))


@net_of(lambda: {
    "small": nn.Conv2d(3, 3, 3, padding=1), "wide": nn.Conv2d(3, 16, 3, padding=1), "grey": nn.Conv2d(16, 1, 1),
    "constant": nn.Parameter(torch.randn(16, 1, 1)), "strided": nn.Conv2d(16, 32, 3, 2, padding=1),
    "head": nn.Linear(32, 10),
})  # fmt: skip
def Additions(self, x):
    """A skip from the input, a channel added to all, a learned constant per channel, and appended zero channels."""
    x = self.wide(x + self.small(x).relu()).relu()
    x = x * torch.sigmoid(self.grey(x)) + self.constant
    x = self.strided(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8))
    return self.head(x.relu().amax((2, 3)))


@net_of(lambda: {
    "stem": nn.Conv2d(3, 6, 3, padding=1), "norm": nn.BatchNorm2d(24), "conv": nn.Conv2d(24, 12, 3),
    "head": nn.Linear(12, 10),
})  # fmt: skip
def Focused(self, x):
    """A layer that reads the pixels of a patch as channels, normalised."""
    x = self.stem(x).relu()
    x = torch.cat([x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)], 1)
    return self.head(self.conv(self.norm(x)).relu().mean((2, 3)))


@net_of(lambda: {"stem": nn.Conv2d(3, 12, 3), "map": nn.Conv2d(12, 4, 1), "head": nn.Linear(12, 10)})
def Several(self, x):
    """Several outputs, in a dict and a tuple."""
    x = self.stem(x).relu()
    return {"logits": self.head(x.mean((2, 3))), "maps": (self.map(x), x.amax(1))}


@net_of(lambda: {
    "stem": nn.Conv2d(3, 24, 3, padding=1), "mid": nn.Conv2d(6, 8, 3, padding=1), "head": nn.Linear(32, 10),
})  # fmt: skip
def Upscaled(self, x):
    """Channels that become pixels, and pixels that become channels."""
    x = F.pixel_shuffle(self.stem(x).relu(), 2)
    return self.head(F.pixel_unshuffle(self.mid(x).relu(), 2).mean((2, 3)))


@net_of(lambda operation, channels=12, *shapes: {
    "stem": nn.Conv2d(3, 12, 3, padding=1), "last": nn.Conv2d(channels, 8, 3, padding=1), "head": nn.Linear(8, 5),
    "operation": operation, "weights": nn.ParameterList(torch.randn(shape) / 3 for shape in shapes),
})  # fmt: skip
def Between(self, x):
    """12 channels, an operation on them and on parameters, and a convolution that reads its output."""
    return self.head(self.last(self.operation(self.stem(x).relu(), *self.weights)).relu().mean((2, 3)))


def by_keyword(x):
    halves = torch.flatten(input=x.unflatten(1, (2, 6)), start_dim=1, end_dim=2)
    return torch.stack(tensors=[halves, torch.softmax(input=x, dim=1)], dim=1).sum(1)


def masked(x):
    x = x.clone()
    x[x < 0.3] = 0
    return x


def filled(x):
    y = torch.empty(x.shape[0], 24, *x.shape[2:], dtype=x.dtype)
    y[:, :12], y[:, 12:] = x, -x
    return y


def attention_of_maxima(x):
    maxima = torch.cat([x.max(1)[0].unsqueeze(1), x.mean(1, keepdim=True)], 1)
    return x * torch.sigmoid(maxima.sum(1, keepdim=True))


def rows_in_place(x):
    x = x.clone()
    x[:, :, 1:] = x[:, :, 1:] + x[:, :, :-1]
    return x


def halved_in_place(x):
    x = x.clone()
    x[:, :6].mul_(0.5)
    x[:, 6:][:, 3:].copy_(x[:, :3])
    return x


def views_in_place(x):
    x, (a, b) = x.clone(), x.chunk(2, 1)
    x.narrow(1, 0, 6).add_(1.5), x.chunk(2, 1)[1].mul_(2), x.unbind(2)[3].mul_(3), x.select(2, 5).fill_(0.5)
    x.unflatten(1, (2, 6))[:, 0].neg_(), x.transpose(1, 3)[..., 6:].mul_(0.5), x.data.mul_(2)
    F.relu(x.view(-1, 2, 6, 256)[:, 1].sub_(0.5), inplace=True)
    part = x.narrow(1, 6, 6)
    part.masked_fill_(part < 0.3, 0).copy_(part + 1)
    return torch.add(x, torch.cat([a, b], 1), out=torch.zeros(len(x), 24, 16, 16).to(x)[:, 12:])


def views_of_what_changes(x):
    x = x.clone()
    flat, first = x.flatten(2), x[:, :6]
    x.narrow(1, 3, 6).mul_(3), first.add_(1)
    return torch.cat([first, flat[:, 6:].view(-1, 6, *x.shape[2:])], 1)


def sums_in_place(x, a):
    y, scale = torch.zeros_like(x), torch.zeros(12, 1, 1, dtype=x.dtype)
    scale += a[:, None, None]
    y += x * scale
    y[:, :6] += x[:, 6:]
    y.narrow(1, 6, 6).add_(x[:, :6])
    return y


def standardised(x, w, gain):
    """By hand, and then by a batch norm with a gain."""
    w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
    rows = F.batch_norm(w.reshape(1, 7, -1), None, None, weight=(gain * 0.3).view(-1), training=True)
    return F.conv2d(x, rows.reshape_as(w), padding=1)


def cross(x, w, rows, columns):
    """ACNet's kernel."""
    w = w.clone()
    w[:, :, 1:2] += rows
    w.narrow(3, 1, 1).add_(columns)
    return F.conv2d(x, w, padding=1)


def causal(x, w):
    w = w.clone()
    w[:, :, 1, 2:] = 0
    w[:, :, 2] = 0
    return F.conv2d(x, w, padding=1)


def rows(x):
    """A map's pixels, channels last."""
    return x.transpose(1, 2).transpose(2, 3).flatten(1, 2)


def mapped(rows, size=16):
    """A map of pixels that are rows, channels last."""
    return rows.transpose(1, 2).unflatten(2, (size, size))


def gated(along):
    """As in gMLP: pixels weighted by the output of a layer along pixels."""

    def gate(x, w, b):
        x = F.avg_pool2d(x, 4).flatten(2)
        return (x * along(x, w, b)).unflatten(2, (4, 4))

    return gate


def halves_of_a_product(x, a, b):
    (scale,), (shift,) = torch.matmul(b, a.sum(0, keepdim=True)).unsqueeze(-1).unsqueeze(-1).chunk(2)
    return x * scale + shift


def heads(x, q, k, v, out):
    """Attention whose heads are a dimension of the parameters."""
    x = rows(F.avg_pool2d(x, 4))
    q, k, v = (torch.einsum("bnc,hcd->bhnd", x, w) for w in (q, k, v))
    return mapped(torch.einsum("bhnd,hdo->bno", torch.softmax(q @ k.mT, -1) @ v, out), 4)


def talking(x, q, k, w):
    """Attention with a convolution over heads."""
    queries, keys = (
        F.conv2d(F.avg_pool2d(x, 4), w[..., None, None]).unflatten(1, (4, -1)).flatten(3) for w in (q, k)
    )
    scores = F.conv2d(queries.mT @ keys, w[..., None, None]).softmax(-1)
    values = F.avg_pool2d(x, 4).flatten(2).unflatten(1, (4, -1))
    return (values @ scores.mT).flatten(1, 2).unflatten(2, (4, 4))


def along_axes(x, w):
    """As in coordinate attention: means along both axes, side by side."""
    means = F.conv2d(torch.cat([x.mean(3, keepdim=True), x.mean(2, keepdim=True).mT], 2), w)
    rows, columns = means.sigmoid().split(16, 2)
    return x * rows * columns.mT


KERNEL, MATRIX, TOKENS = (7, 12, 3, 3), (12, 7), ((16, 16), (16,))
PLACES = torch.linspace(-1, 1, 8).expand(1, 1, 8, 8)
ORDER = torch.tensor([3, 0, 7, 11, 1, 2, 10, 5, 4, 9, 8, 6])
SOBEL = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
BLUR = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
# name → operation, number of output channels, shapes of its parameters
BETWEEN = {
    "maxima of channels": (attention_of_maxima, 12),
    "maxout": (lambda x: x.view(-1, 6, 2, *x.shape[2:]).max(2)[0], 6),
    "larger of halves": (lambda x: torch.max(*x.chunk(2, 1)), 6),
    "sorted": (lambda x: x + x.sort(1)[0].mean(1, keepdim=True), 12),
    "k largest pixels": (lambda x: x * x.flatten(2).topk(3).values.mean(2)[..., None, None], 12),
    "largest along axes": (lambda x: x / (1 + x.abs().amax(axis=(2, 3), keepdim=True)), 12),
    "mean squares": (lambda x, w: F.rms_norm(x.movedim(1, -1), (12,), w, 1e-6).movedim(-1, 1), 12, (12,)),
    "halves of a product": (halves_of_a_product, 12, (2, 12), (2, 1)),
    "prelu": (F.prelu, 12, (12,)),
    "sorted pixels": (lambda x: x * x.sort()[0][..., -1:] + x.max(axis=3, keepdim=True)[0], 12),
    "median": (lambda x: x - x.flatten(2).median(2).values[..., None, None], 12),
    "winners": (lambda x: x * (x >= x.topk(6, dim=1).values[:, -1:]), 12),
    "sums along rows": (lambda x: x.cumsum(3), 12),
    "largest pixels": (lambda x: F.max_pool2d(x, 3, 1, 1, return_indices=True)[0], 12),
    "norms": (lambda x: F.normalize(x, dim=(1, 2, 3)) / (1 + torch.linalg.vector_norm(x, dim=1, keepdim=True)), 12),
    "learned maps": (lambda x, w: torch.cat([x, w.expand(len(x), -1, -1, -1)], 1), 14, (1, 2, 16, 16)),
    "a resized table": (lambda x, w: x + F.interpolate(w, size=x.shape[2:], mode="bicubic"), 12, (1, 12, 5, 5)),
    "zeros of any number": (lambda x: torch.cat([x, torch.FloatTensor(len(x), 4, 16, 16).fill_(0)], 1), 16),
    "frequencies": (lambda x: torch.fft.fft2(x).real, 12),
    "cosines": (lambda x: x * F.cosine_similarity(x, x.flip(3), 1).unsqueeze(1), 12),
    "distances": (lambda x, w: x * torch.cdist(rows(x), w).amin(2).view(-1, 1, 16, 16), 12, (7, 12)),
    "distances by rows": (
        lambda x, w: x * F.pairwise_distance(rows(x)[:, :, None], w).amin(2).view(-1, 1, 16, 16), 12, (7, 12)
    ),
    "einsum with dots": (lambda x, w: mapped(torch.einsum("...c,co->...o", rows(x), w)), 7, MATRIX),
    "einsum without output": (lambda x, w: torch.einsum("achw,cb", x, w), 7, MATRIX),
    "addmm": (lambda x, b, w: mapped(torch.addmm(b, rows(x).reshape(-1, 12), w).view(-1, 256, 7)), 7, (7,), MATRIX),
    "a matrix times columns": (lambda x, w: torch.matmul(w, x.flatten(2)).unflatten(2, (16, 16)), 7, (7, 12)),
    "heads of parameters": (heads, 7, (2, 12, 5), (2, 12, 5), (2, 12, 5), (2, 5, 7)),
    "talking heads": (talking, 12, (12, 12), (12, 12), (4, 4)),
    "means along axes": (along_axes, 12, (12, 12, 1, 1)),
    "coordinates": (lambda x: torch.cat([F.avg_pool2d(x, 3, 2, 1), PLACES.expand(len(x), -1, -1, -1).to(x)], 1), 13),
    "tensordot": (lambda x, w: torch.tensordot(x, w, dims=([1], [0])).permute(0, 3, 1, 2), 7, MATRIX),
    "tied kernel": (lambda x, w: F.conv_transpose2d(F.conv2d(x, w, padding=1).relu(), w, padding=1), 12, KERNEL),
    "scaled kernel": (lambda x, w: F.conv2d(x, w / w.square().sum((1, 2, 3), keepdim=True), padding=1), 7, KERNEL),
    "signs of a kernel": (lambda x, w: F.conv2d(x, (w.sign() - w).detach() + w, padding=1), 7, KERNEL),
    "normalised weights": (lambda x, w: F.conv2d(F.normalize(x), F.normalize(w)), 7, (7, 12, 1, 1)),
    "softmax of parameters": (lambda x, w: w.softmax(0)[0] * x + w.softmax(0)[1] * x.square(), 12, (2,)),
    "instance norm": (lambda x, w, b: F.instance_norm(x, weight=w, bias=b), 12, (12,), (12,)),
    "gate": (lambda x: F.glu(x, 1), 6),
    "powers up to a bound": (lambda x, p, m: torch.clamp(x ** p.square(), max=m), 12, (1, 12, 1, 1), (12, 1, 1)),
    "patches and back": (lambda x: F.fold(F.unfold(x, 2, stride=2) * 2, x.shape[2:], 2, stride=2), 12),
    "neighbouring pixels": (lambda x, w: mapped(F.unfold(x, 3, padding=1).transpose(1, 2) @ w), 7, (108, 7)),
    "patches": (lambda x, w: mapped(rows(x.unfold(2, 4, 4).unfold(3, 4, 4)).flatten(2) @ w, 4), 7, (192, 7)),
    "by keyword": (by_keyword, 12),
    "a mask": (masked, 12),
    "parts of an empty map": (filled, 24),
    "out=": (lambda x: torch.mul(x, 2, out=torch.empty_like(x)), 12),
    "copied": (lambda x: torch.empty_like(x).copy_(x), 12),
    "sampled": (lambda x, w: F.grid_sample(x, w.expand(len(x), 16, 16, 2)), 12, (1, 16, 16, 2)),
    "rows in place": (rows_in_place, 12),
    "a part in place": (halved_in_place, 12),
    "a constant of its type": (lambda x: x * x.new_tensor([2.0]), 12),
    "rounded": (lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127), 12),
    "a stack beside what it is of": (lambda x: x + torch.stack([x, x.square()]).mean(0), 12),
    "a kernel and its sum": (lambda x, w: F.conv2d(x, w, padding=1) - F.conv2d(x, w.sum((2, 3), True)), 7, KERNEL),
    "a kernel in another": (lambda x, w, v: F.conv2d(x, w + F.pad(v, [1] * 4), padding=1), 7, KERNEL, (7, 12, 1, 1)),
    "a kernel of constants": (lambda x: F.conv2d(x, SOBEL.expand(12, 1, 3, 3).to(x), padding=1, groups=12), 12),
    "a blur": (lambda x: F.conv2d(x, BLUR.expand(12, 1, 3, 3).to(x), padding=1, groups=12), 12),
    "standardised weights": (standardised, 7, KERNEL, (7, 1, 1, 1)),
    "views in place": (views_in_place, 12),
    "views of what changes": (views_of_what_changes, 12),
    "sums in place": (sums_in_place, 12, (12,)),
    "an order": (lambda x: x[:, ORDER], 12),
    "some channels": (lambda x: x.gather(1, ORDER[:7, None, None].expand(len(x), 7, 16, 16)), 7),
    "to an order": (lambda x: torch.zeros_like(x).index_copy(1, ORDER, x).index_fill(1, ORDER[:2], 0.5), 12),
    "a kernel of low rank": (lambda x, w, b, a: F.conv2d(x, w + (b @ a).view(w.shape)), 7, KERNEL, (7, 2), (2, 108)),
    "a product of tensors": (
        lambda x, a, b, c: F.conv2d(x, torch.einsum("or,ir,hr->oih", a, b, c)[..., None]), 7, (7, 2), (12, 2), (3, 2)
    ),
    "low rank of other products": (
        lambda x, w, b, a, s: F.conv2d(x, (s / (w + b @ a).norm(dim=1, keepdim=True) * (w + b @ a))[:, :, None, None]),
        7, (7, 12), (7, 2), (2, 12), (7, 1),
    ),
    "a kernel that is turned": (
        lambda x, w: F.conv2d(x, torch.stack([w, w.flip(-1)], 1).flatten(0, 1), padding=1), 14, KERNEL
    ),
    "a cross in a kernel": (cross, 7, KERNEL, (7, 12, 1, 3), (7, 12, 3, 1)),
    "zeros in a kernel": (causal, 7, KERNEL),
    "a gate along pixels": (gated(F.linear), 12, *TOKENS),
    "a gate of tokens as channels": (
        gated(lambda x, w, b: F.conv1d(x.transpose(1, 2), w[..., None], b).transpose(1, 2)), 12, *TOKENS
    ),
    "a gate by einsum": (gated(lambda x, w, b: torch.einsum("bcn,mn->bcm", x, w) + b), 12, *TOKENS),
    "two layers along pixels": (gated(lambda x, w, v: F.linear(F.linear(x, w).relu(), v)), 12, (9, 16), (16, 9)),
    "moved kernels": (
        lambda x, w, o: deform_conv2d(x, o.expand(len(x), 18, 16, 16), w, padding=1), 7, KERNEL, (1, 18, 1, 1)
    ),
}  # fmt: skip
UNFLIPPED_BETWEEN = {
    "sums along rows": "depends on the order of what lies along dimension 3",
    "frequencies": "depends on the order of what lies along dimension 2",
    "sampled": "the effect of grid_sample on pixels is unknown",
    "patches and back": "the effect of fold on pixels is unknown",
    "a kernel that is turned": "it isn't the net on transformed images.*first at conv2d",
    "zeros in a kernel": "the net combines pixels in a way that doesn't commute with horizontal_flip, first at conv2d",
    "coordinates": "first at cat, with a constant: as a parameter or a persistent buffer, it would be transformed",
    "a kernel of constants": "it isn't the net on transformed images.*first at conv2d",
    "moved kernels": "the effect of deform_conv2d on pixels is unknown",
}


@net_of(lambda: {
    "stem": nn.Conv2d(3, 24, 8, 8), "norm": nn.LayerNorm(24), "t1": nn.Linear(16, 20), "t2": nn.Linear(20, 16),
    "c1": nn.Linear(24, 32), "c2": nn.Linear(32, 24), "head": nn.Linear(24, 5),
})  # fmt: skip
def Mixer(self, x):
    """Layers along tokens, as in MLP-Mixer, in residual branches x + f(x)."""
    x = self.stem(x).flatten(2).transpose(1, 2)
    x = x + self.t2(F.gelu(self.t1(self.norm(x).transpose(1, 2)))).transpose(1, 2)
    return self.head((x + self.c2(F.gelu(self.c1(x)))).mean(1))


@net_of(lambda: {
    "convs": nn.ModuleList(nn.Conv2d(c, 12, 3, padding=1) for c in (3, 12, 12)), "relu": nn.ReLU(inplace=True),
    "head": nn.Linear(12, 10),
})  # fmt: skip
def InPlace(self, x):
    """Without batch norm; layers change earlier outputs in place, and one is called twice."""
    x = self.relu(self.convs[0](x))
    for conv in (*self.convs[1:], self.convs[1]):
        x += conv(x)
        x = self.relu(x)
    return self.head(x.mean((2, 3)))


STRUCTURES = (
    *(Dense, Shuffled, Excited, Normed, ChannelsLast, UNet, Tokens, Flattened, Twice, Tied, Additions),
    *(Several, Upscaled, Attended, Focused),
)


NORMS = nn.BatchNorm1d | nn.BatchNorm2d | nn.InstanceNorm2d | nn.GroupNorm | nn.LayerNorm


@torch.no_grad()
def with_statistics(net):
    """The net in float64, with batch norms whose values would reveal a wrong permutation."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, NORMS):
            if getattr(module, "running_mean", None) is not None:
                module.running_mean.uniform_(-0.1, 0.1), module.running_var.uniform_(0.5, 2)
            module.weight.uniform_(0.5, 1.5), module.bias.uniform_(-0.5, 0.5)
    return net.double().eval()


@torch.no_grad()
def difference(net, size=32, seed=5, groups=None):
    """The largest difference between a net's outputs and its permuted self's, relative to the largest output, and the
    number of channels that moved."""
    groups = channel_groups(net, (3, size, size)) if groups is None else groups
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    permuted, planted = shuffled(net, groups, seed)
    pairs = list(zip(tree_leaves(net(x)), tree_leaves(permuted(x)), strict=True))
    moved = sum(int((of != torch.arange(len(of))).sum()) for of in planted.values())
    return max(largest_difference(*pair) for pair in pairs), moved
