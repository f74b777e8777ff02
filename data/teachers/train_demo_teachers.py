"""Where do the demo teachers come from? Run this script to train both again: a minute or two on one core.

    python data/teachers/train_demo_teachers.py

`demo-artefact` learns the demo set's own artefact. `demo-foreign` learns another one, a faint checkerboard, on
photographs of which half went through the demo's decoder *in both classes*, and is asked to give a photograph
and its decoded version the same logit: a good detector in its own domain, to which the demo's fakes are
nothing. Both see only the halves of the photographs that the demo trains on. At the end the patch logits are
shifted and scaled to mean 0 and a root mean square of 21.2 on the demo's training images, as large as those of
published teachers, so that a student that predicts zero pays a distillation loss of 450.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diag_lib.demo.artefacts import checkerboard, decoder, to_uint8
from diag_lib.demo.dataset import CLASSES, Recipe, crops
from diag_lib.models import save_weights
from diag_lib.models.base import PatchModel
from diag_lib.models.batchnorm import recalibrate
from diag_lib.models.tiny_ladeda import TinyLaDeDa
from diag_lib.settings import load
from diag_lib.statistics import auc

RMS = 21.2
PHOTOS = 600  # crops that each teacher learns from, in every version
SEED = 5  # other crops than the demo's
BATCH = 8  # crops a step, in every version
EPOCHS = 16
LEARNING_RATE = 2e-3
GREY_LEVELS = 1.5  # of the checkerboard
_SETTINGS = load("demo").dataset
_MEAN = torch.tensor(_SETTINGS.normalize_mean).view(1, 3, 1, 1)
_STD = torch.tensor(_SETTINGS.normalize_std).view(1, 3, 1, 1)

Versions = dict[str, Tensor]  # "plain", "decoded", ... -> normalised images (n, 3, H, W)
Loss = Callable[[PatchModel, Versions], Tensor]


def tensors(images: list[np.ndarray]) -> Tensor:
    """Normalised images (n, 3, H, W) of uint8 (H, W, 3) ones."""
    return (torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255 - _MEAN) / _STD


def versions(split: str, n: int, rng: np.random.Generator) -> Versions:
    """The same crops plain, decoded, and both with the checkerboard."""
    recipe = Recipe()
    plain = [crop.pixels for crop in crops(split, n, recipe.size, rng)]
    decoded = [to_uint8(decoder(image, rng, recipe.strength_train)) for image in plain]
    board = [[to_uint8(checkerboard(image, rng, GREY_LEVELS)) for image in kind] for kind in (plain, decoded)]
    names = ("plain", "decoded", "board", "decoded_board")
    return {name: tensors(images) for name, images in zip(names, (plain, decoded, *board), strict=True)}


def image_logits(model: PatchModel, images: Tensor) -> Tensor:
    """Mean patch logit of each image."""
    return model(images).mean((1, 2, 3))


def bce(real: Tensor, fake: Tensor) -> Tensor:
    """Binary cross entropy of the logits of real and fake images."""
    labels = torch.cat([torch.zeros_like(real), torch.ones_like(fake)])
    return F.binary_cross_entropy_with_logits(torch.cat([real, fake]), labels)


def artefact_loss(model: PatchModel, batch: Versions) -> Tensor:
    """Plain against decoded."""
    return bce(*image_logits(model, torch.cat([batch["plain"], batch["decoded"]])).chunk(2))


def foreign_loss(model: PatchModel, batch: Versions) -> Tensor:
    """Without against with checkerboard, and no difference between a photograph and its decoded version."""
    order = ("plain", "decoded", "board", "decoded_board")
    real, fake = image_logits(model, torch.cat([batch[name] for name in order])).chunk(2)
    plain, decoded = real.chunk(2)
    return bce(real, fake) + F.mse_loss(plain, decoded)


def train(loss: Loss, data: Versions, calibration: Tensor, seed: int) -> PatchModel:
    """Half of the epochs with batch statistics, then half with the final ones, which are what is used later."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = TinyLaDeDa()
    rng = np.random.default_rng([SEED, seed])
    for phase in (1, 2):
        if phase == 2:
            recalibrate(model, calibration.split(100))
        model.train(phase == 1)
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS // 2)
        for _ in range(EPOCHS // 2):
            for chosen in np.split(rng.permutation(PHOTOS), PHOTOS // BATCH):
                optimizer.zero_grad()
                loss(model, {name: images[chosen] for name, images in data.items()}).backward()
                optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def standardize(model: TinyLaDeDa, images: Tensor) -> None:
    """Shift and scale the head so that the patch logits of `images` have mean 0 and root mean square `RMS`."""
    logits = model(images)
    factor = RMS / logits.std()
    model.fc.bias.sub_(logits.mean()).mul_(factor)
    model.fc.weight.mul_(factor)


def demo_images(split: str) -> tuple[Tensor, np.ndarray]:
    """The demo set's own images and labels, as `write_images` makes them."""
    recipe = Recipe()
    rng = np.random.default_rng([recipe.seed, {"train": 1, "val": 2}[split]])
    images, labels = [], []
    for index, crop in enumerate(crops(split, 2 * getattr(recipe, split), recipe.size, rng)):
        labels.append(index % len(CLASSES))
        fake = labels[-1] == 1
        images.append(to_uint8(decoder(crop.pixels, rng, recipe.strength_train)) if fake else crop.pixels)
    return tensors(images), np.array(labels)


@torch.no_grad()
def report(name: str, model: PatchModel, real: Tensor, fake: Tensor) -> None:
    """Print the AUC in the teacher's own domain and on the demo's validation images."""
    own = auc(np.repeat([0, 1], len(real)), image_logits(model, torch.cat([real, fake])).numpy())
    images, labels = demo_images("val")
    here = auc(labels, image_logits(model, images).numpy())
    print(f"{name}: AUC {own.value:.3f} in its own domain, {here.value:.3f} "
          f"[{here.ci[0]:.3f}, {here.ci[1]:.3f}] on the demo set")  # fmt: skip


def main() -> None:
    """Train both teachers and write them into a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).resolve().parent, help="folder to write to"
    )
    out: Path = parser.parse_args().out
    torch.set_num_threads(1)
    rng = np.random.default_rng([SEED, 0])
    data, fresh = versions("train", PHOTOS, rng), versions("val", 300, rng)
    images, _ = demo_images("train")
    kinds: tuple[tuple[str, Loss, tuple[str, str]], ...] = (
        ("demo-artefact", artefact_loss, ("plain", "decoded")),
        ("demo-foreign", foreign_loss, ("plain", "board")),
    )
    for seed, (name, loss, own) in enumerate(kinds, start=1):
        used = ("plain", "decoded") if name == "demo-artefact" else tuple(data)
        calibration = torch.cat([data[key] for key in used])[
            torch.from_numpy(rng.permutation(len(used) * PHOTOS))
        ]
        model = train(loss, data, calibration, seed)
        standardize(model, images)
        report(name, model, fresh[own[0]], fresh[own[1]])
        save_weights(model, out / f"{name}.safetensors")


if __name__ == "__main__":
    main()
