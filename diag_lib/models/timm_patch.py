"""What would any timm classifier say about each patch of an image?"""

import difflib
import math
from typing import Any

import torch
from torch import Tensor, nn

from diag_lib.errors import UserError
from diag_lib.models.base import Geometry, PatchModel, geometry_from_map
from diag_lib.models.geometry import trace_geometry

POSITIONS_PER_CALL = 4096


class TimmPatchModel(PatchModel):
    """A timm classifier whose head is applied at every position of its last feature map or patch token.

    A position-wise logit is the classifier's own head run on a feature map (or token sequence) that holds
    nothing but that position. For average pooling and a linear head the mean of those is the classifier's
    logit. For other heads (norm after pooling, class token, max, attention or generalised-mean pooling) one
    constant per image is added to the map so that its mean still is the classifier's logit exactly: the map
    then shows how patches deviate from it. Two-class heads give logit(fake) - logit(real), index 1 is fake.
    """

    def __init__(self, arch: str, net: nn.Module) -> None:
        super().__init__(arch)
        self.net = net
        self.prefix_tokens = int(getattr(net, "num_prefix_tokens", 0) or 0)
        self._geometries: dict[int, Geometry] = {}

    @property
    def weights_module(self) -> nn.Module:
        return self.net

    @property
    def supports_preprocess(self) -> bool:
        return False

    def geometry(self, size: int) -> Geometry:
        if size not in self._geometries:
            cells = self.map_size(size)[0]
            traced = trace_geometry(self.net, self._features, size, cells, next(self.parameters()))
            self._geometries[size] = traced or geometry_from_map(size, cells)
        return self._geometries[size]

    def patch_logits(self, prepared: Tensor) -> Tensor:
        features = self._features(prepared)
        image = fake_minus_real(self._head(features), self.arch)
        if features.ndim == 4:
            positions, rows, columns = self._map_positions(features)
        else:
            positions, rows, columns = self._token_positions(features, prepared.shape[-2:])
        logits = [
            fake_minus_real(self._head(chunk), self.arch)
            for chunk in torch.split(positions, POSITIONS_PER_CALL)
        ]
        patches = torch.cat(logits).view(len(prepared), 1, rows, columns)
        return patches + (image.view(-1, 1, 1, 1) - patches.mean(dim=(2, 3), keepdim=True))

    def _features(self, x: Tensor) -> Tensor:
        features = self.net.forward_features(x)  # type: ignore[operator]
        if not isinstance(features, Tensor) or features.ndim not in (3, 4):
            raise UserError(
                f"{self.arch} has no single feature map to put its head on: choose another timm model"
            )
        return features

    def _head(self, features: Tensor) -> Tensor:
        out: Tensor = self.net.forward_head(features)  # type: ignore[operator]
        return out

    def _map_positions(self, features: Tensor) -> tuple[Tensor, int, int]:
        """Every position of (B, C, h, w) or (B, h, w, C) as a 1x1 map."""
        channels = int(self.net.num_features)  # type: ignore[arg-type]
        if features.shape[1] == channels:
            rows, columns = features.shape[2:]
            return features.permute(0, 2, 3, 1).reshape(-1, channels, 1, 1), rows, columns
        if features.shape[-1] != channels:
            raise UserError(
                f"{self.arch} has a feature map of unknown layout {tuple(features.shape)}: choose another"
            )
        rows, columns = features.shape[1:3]
        return features.reshape(-1, 1, 1, channels), rows, columns

    def _token_positions(self, tokens: Tensor, image_hw: torch.Size) -> tuple[Tensor, int, int]:
        """Every patch token of (B, n, C) as a sequence of that token alone, class-token places included."""
        patches = tokens[:, self.prefix_tokens :]
        rows, columns = token_grid(patches.shape[1], image_hw[0], image_hw[1], self.arch)
        single = patches.reshape(-1, 1, tokens.shape[-1])
        return single.expand(-1, self.prefix_tokens + 1, -1), rows, columns


def fake_minus_real(logits: Tensor, arch: str) -> Tensor:
    """One logit an image (B,): a single logit as it is, of two logit[1] - logit[0] (real = 0, fake = 1)."""
    if logits.ndim != 2 or logits.shape[1] not in (1, 2):
        raise UserError(
            f"{arch} gives outputs of shape {tuple(logits.shape)}: a real/fake head has 1 or 2 logits"
        )
    return logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]


def token_grid(tokens: int, height: int, width: int, arch: str) -> tuple[int, int]:
    """Rows and columns of `tokens` patch tokens laid over an image of this shape."""
    rows = round(math.sqrt(tokens * height / width))
    if rows < 1 or tokens % rows:
        raise UserError(f"the {tokens} tokens of {arch} do not form a grid over {width}x{height} pixels")
    return rows, tokens // rows


def create_timm(arch: str, state: dict[str, Tensor] | None, image_size: int) -> TimmPatchModel:
    """A `timm/<name>` classifier with as many outputs as the weights have (1 without weights).

    Raises UserError for unknown names, other class counts, and sizes that the network cannot take.
    """
    name = arch.removeprefix("timm/")
    classes = 1
    net = _create(name, classes, image_size)
    if state is not None:
        rows = classifier_outputs(net, state)
        if rows not in (None, 1, 2):
            raise UserError(
                f"the weights for {arch} have {rows} classes: a real/fake classifier has 1 or 2 outputs"
            )
        trained_size = position_grid_size(net, state)
        if rows == 2 or trained_size is not None:
            net = _create(name, rows or 1, image_size, trained_size)
    model = TimmPatchModel(arch, net)
    _check_forward(model, image_size)
    return model


def _create(name: str, classes: int, image_size: int, trained_size: int | None = None) -> nn.Module:
    import timm

    if not name or any(mark in name for mark in ":/\\"):
        raise UserError(f"timm/{name} is not a name of a built-in timm model (nothing is downloaded)")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=3)
        hint = f", did you mean timm/{' or timm/'.join(near)}?" if near else ": see timm.list_models()"
        raise UserError(f"timm has no model {name!r}{hint}")
    sized: dict[str, Any] = {"img_size": trained_size} if trained_size else {}
    # flexible ViTs keep their own grid and interpolate; fixed-grid networks are built for the size in use
    for options in ({"dynamic_img_size": True, **sized}, {"img_size": image_size}, {}):
        try:
            created: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes, **options)
        except TypeError:
            continue
        except (AssertionError, ValueError, RuntimeError) as error:
            raise UserError(f"timm/{name} cannot be built for {image_size} pixels: {error}") from None
        return created
    raise UserError(f"timm/{name} cannot be built as a classifier")


def classifier_outputs(net: nn.Module, state: dict[str, Tensor]) -> int | None:
    """Rows of the classifier's weight in a file, or None where the file has no classifier."""
    from diag_lib.models.weights import strip_prefixes

    heads = net.get_classifier()  # type: ignore[operator]
    head = heads[0] if isinstance(heads, (tuple, list)) else heads
    name = next((n for n, module in net.named_modules() if module is head), None)
    weight = strip_prefixes(state, net.state_dict()).get(f"{name}.weight")
    return None if weight is None or weight.ndim == 0 else int(weight.shape[0])


def position_grid_size(net: nn.Module, state: dict[str, Tensor]) -> int | None:
    """The image side that a ViT's file was trained with, where it differs from the network's own."""
    from diag_lib.models.weights import strip_prefixes

    own = getattr(net, "pos_embed", None)
    given = strip_prefixes(state, net.state_dict()).get("pos_embed")
    patch = getattr(net, "patch_embed", None)
    if not isinstance(own, Tensor) or given is None or patch is None or given.ndim != 3 or own.ndim != 3:
        return None
    extra = own.shape[1] - int(patch.num_patches)
    side = math.isqrt(max(given.shape[1] - extra, 0))
    if given.shape == own.shape or side**2 != given.shape[1] - extra:
        return None
    return side * int(patch.patch_size[0])


@torch.no_grad()
def _check_forward(model: TimmPatchModel, image_size: int) -> None:
    model.eval()
    try:
        model(torch.zeros(1, 3, image_size, image_size))
    except UserError:
        raise
    except (AssertionError, RuntimeError, ValueError, AttributeError, TypeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{model.arch} cannot take {image_size}x{image_size} images: {first[:160]}") from None
