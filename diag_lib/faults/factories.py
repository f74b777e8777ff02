"""How does code of one's own break a network? Each factory is named in a setting `arch: <this module>:<name>`.

Teachers are the demo's good teacher with one mistake around it, students are Tiny-LaDeDa or something smaller with
one mistake inside. The preprocessing is built in, as in most networks of one's own.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from diag_lib.models import Geometry, PatchModel, batch_norms, build

PREPROCESS = "right_diag"
STILL = 1e-6  # a momentum with which running statistics stay where they are
TINY = 1e-6  # no image's contrast is smaller
FAR_OFF = 10.0  # a running mean that no activation comes near
FAR_BELOW = 200.0  # about the largest logit of the good teacher
KNOWN = 0.35  # how much of the good teacher is left in the weak one: its AUC is about .6 then


def _good_teacher() -> PatchModel:
    return build("tiny_ladeda", "demo-artefact", PREPROCESS)[0]


def _tiny() -> PatchModel:
    """A random Tiny-LaDeDa; the caller has seeded the global generator."""
    return build("tiny_ladeda", None, PREPROCESS, seed=int(torch.randint(2**31, ()).item()))[0]


class _Around(nn.Module):
    """A network whose patch logits are changed on their way out."""

    def __init__(self, net: PatchModel, change: Callable[[Tensor], Tensor] = lambda patches: patches) -> None:
        super().__init__()
        self.net = net
        self.change = change

    def geometry(self, size: int) -> Geometry:
        return self.net.geometry(size)

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.net(x))


class _Sum(_Around):
    """`KNOWN` times one network's patch logits and those of another.

    Both see images of one contrast, so that no other scale of the input lets one of them speak louder.
    """

    def __init__(self, net: PatchModel, other: PatchModel) -> None:
        super().__init__(net)
        self.other = other

    def forward(self, x: Tensor) -> Tensor:
        x = x / x.std((1, 2, 3), keepdim=True).clamp_min(TINY)
        known, stranger = self.net(x), self.other(x)
        return torch.add(stranger, known, alpha=KNOWN)


class _CutOff(_Around):
    """A network from whose output no gradient comes back."""

    def forward(self, x: Tensor) -> Tensor:
        nothing = torch.stack([parameter.sum() for parameter in self.net.parameters()]).sum() * 0.0
        return torch.add(self.net(x).detach(), nothing)


class _AlwaysTraining(_Around):
    """Somebody forgot `eval()`: the first `norms` normalisations use each batch's own statistics, come what may."""

    def __init__(self, net: PatchModel, norms: int | None = None) -> None:
        super().__init__(net)
        self.norms = norms

    def train(self, mode: bool = True) -> "_AlwaysTraining":
        super().train(mode)
        for norm in list(batch_norms(self.net).values())[: self.norms]:
            norm.train()
        return self


class _IndexedCache(_Around):
    """Logits looked up by running number: right in the order in which they were stored, and only there."""

    rows = 97

    def __init__(self, net: PatchModel) -> None:
        super().__init__(net)
        self.bank: list[Tensor] = []
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for own in self.net(x):
            if len(self.bank) < self.rows:
                self.bank.append(own.detach().clone())
            found.append(self.bank[self.calls % len(self.bank)].to(own.device))
            self.calls += 1
        return torch.stack(found)


def teacher_train_mode() -> nn.Module:
    """The good teacher in train mode; pictures come to it sorted by class, so its statistics swallow the label."""
    return _AlwaysTraining(_good_teacher())


def teacher_stem_in_train_mode() -> nn.Module:
    """The good teacher, its first normalisation alone in train mode: too early to know the label."""
    return _AlwaysTraining(_good_teacher(), norms=1)


def teacher_stale_cache() -> nn.Module:
    """The good teacher behind a cache that is keyed by running number."""
    return _IndexedCache(_good_teacher())


def teacher_mirrored() -> nn.Module:
    """The good teacher, its map mirrored."""
    return _Around(_good_teacher(), lambda patches: patches.flip(-1))


def teacher_low() -> nn.Module:
    """The good teacher, its logits far below zero, as those of published detectors are."""
    return _Around(_good_teacher(), lambda patches: patches - FAR_BELOW)


def teacher_low_probabilities() -> nn.Module:
    """The same, its logits sent through a sigmoid: next to nothing is left of them."""
    return _Around(_good_teacher(), lambda patches: torch.sigmoid(patches - FAR_BELOW))


def teacher_weak() -> nn.Module:
    """The good teacher drowned by one that knows another artefact: better than a coin, worse than the labels."""
    stranger = build("tiny_ladeda", "demo-foreign", PREPROCESS)[0]
    return _Sum(_good_teacher(), stranger)


def teacher_of_neighbours() -> nn.Module:
    """The good teacher, which answers for the image before in its batch."""
    return _Around(_good_teacher(), lambda patches: patches.roll(1, 0))


def teacher_at_random() -> nn.Module:
    """A network of the teacher's kind that nobody has trained."""
    return build("tiny_ladeda", None, PREPROCESS, seed=0)[0]


def student_detached() -> nn.Module:
    """A student whose features are detached before the head: no gradient reaches what makes them."""
    net = _tiny()
    net.get_submodule("layer1").register_forward_hook(lambda module, args, features: features.detach())
    return net


def student_without_capacity() -> nn.Module:
    """A student that sees nothing but single pixels: three weights and a bias."""
    return nn.Conv2d(3, 1, kernel_size=1, stride=4)


def student_still_batchnorm() -> nn.Module:
    """A student whose running statistics are another data set's and never follow its own activations."""
    net = _tiny()
    for norm in batch_norms(net).values():
        norm.momentum = STILL
    last = net.get_submodule("layer1.0.bn2")
    assert isinstance(last.running_mean, torch.Tensor)
    last.running_mean.fill_(FAR_OFF)
    return net


def student_without_momentum() -> nn.Module:
    """A student whose running statistics stay at a variance of 100 for good."""
    net = _tiny()
    for norm in batch_norms(net).values():
        norm.momentum = 0.0
        assert isinstance(norm.running_var, torch.Tensor)
        norm.running_var.fill_(100.0)
    return net


def student_cut_off() -> nn.Module:
    """A student whose output is detached: the loss depends on its weights in name only."""
    return _CutOff(_tiny())


def student_with_sigmoid() -> nn.Module:
    """A student that ends in a sigmoid, before losses that have one of their own."""
    return _Around(_tiny(), torch.sigmoid)


def student_of_one_channel() -> nn.Module:
    """A student of two convolutions with one channel between them."""
    return nn.Sequential(nn.Conv2d(3, 1, 3, 2, 1), nn.ReLU(), nn.Conv2d(1, 1, 3, 2, 1))
