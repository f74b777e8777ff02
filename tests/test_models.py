"""The networks: architecture facts, preprocessing, timm heads, weights, alignment, pooling."""

import os
import pickle
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from diag_lib import models
from diag_lib.errors import UserError
from diag_lib.models.alignment import Window
from diag_lib.models.ladeda import stem
from diag_lib.settings import Settings


@pytest.fixture(scope="module")
def ladeda9():
    return models.build("ladeda9", None, "NPR")[0]


@pytest.fixture
def tiny():
    return models.build("tiny_ladeda", None, "raw")[0]


def randomise_norms(model):
    generator = torch.Generator().manual_seed(1)
    for norm in models.batch_norms(model).values():
        norm.running_mean.copy_(torch.randn(norm.running_mean.shape, generator=generator) * 0.3)
        norm.running_var.copy_(torch.rand(norm.running_var.shape, generator=generator) + 0.5)


# --- architecture ---


def test_ladeda9_is_the_published_architecture(ladeda9):
    state = ladeda9.state_dict()
    assert sum(p.numel() for p in ladeda9.parameters()) == 13_641_793
    assert len(state) == 321
    assert state["conv1.weight"].shape == (64, 3, 1, 1)
    assert state["layer1.0.downsample.1.running_var"].shape == (256,)
    three = sorted(key for key, value in state.items() if value.ndim == 4 and value.shape[-1] == 3)
    assert three == ["conv2.weight", "layer1.0.conv2.weight", "layer2.0.conv2.weight"]
    assert ladeda9.bn1.momentum == 0.001
    assert ladeda9.map_size(256) == (31, 31)
    assert ladeda9.map_size(224) == (27, 27)


def test_tiny_ladeda_is_the_published_architecture(tiny):
    shapes = {key: tuple(value.shape) for key, value in tiny.state_dict().items()}
    assert sum(p.numel() for p in tiny.parameters()) == 1_297
    assert len(shapes) == 21
    assert shapes["layer1.0.conv2.weight"] == (8, 8, 3, 3)
    assert shapes["fc.weight"] == (1, 8)
    assert tiny.map_size(256) == (126, 126)
    assert tiny.map_size(224) == (110, 110)


@pytest.mark.parametrize(
    ("arch", "field"),
    [("ladeda5", 5), ("ladeda9", 9), ("ladeda17", 17), ("ladeda33", 33), ("tiny_ladeda", 5)],
)
def test_receptive_field_is_what_the_gradient_sees(arch, field):
    model = models.build(arch, None, "raw")[0].eval()
    size = field + 3 * 8
    image = torch.zeros(1, 3, size, size, requires_grad=True)
    cell = 1
    model(image + torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)))[
        0, 0, cell, cell
    ].backward()
    rows = image.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    geometry = model.geometry(size)
    assert (rows[0] + rows[-1]).item() / 2 == geometry.offset + cell * geometry.stride
    assert len(rows) == geometry.receptive_field == field
    assert model.map_size(field) == (1, 1)
    with pytest.raises(UserError, match=f"at least {field}x{field}"):
        model(torch.zeros(1, 3, field - 1, field + 20))


def test_residual_is_cropped_to_its_top_left(ladeda9):
    block = ladeda9.layer1[0]
    x = torch.randn(1, 64, 9, 9, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        main = block.bn3(block.conv3(F.relu(block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x))))))))
        expected = F.relu(main + block.downsample(x)[..., :4, :4])
        assert main.shape[-1] == 4 and block.downsample(x).shape[-1] == 5
        torch.testing.assert_close(block(x), expected)


@given(height=st.integers(9, 45), width=st.integers(9, 45), preprocess=st.sampled_from(models.PREPROCESS))
@hypothesis_settings(max_examples=30, deadline=None)
def test_any_size_and_preprocess_gives_patches(height, width, preprocess):
    tiny = models.build("tiny_ladeda", None, preprocess)[0]
    x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    out = tiny(x)
    assert out.shape == (2, 1, (height - 5) // 2 + 1, (width - 5) // 2 + 1)
    assert torch.isfinite(out).all()


def test_image_logit_is_the_head_on_the_mean_feature(ladeda9):
    x = torch.randn(1, 3, 33, 41, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        captured = []
        handle = ladeda9.layer4.register_forward_hook(lambda module, inputs, output: captured.append(output))
        patches = ladeda9(x)
        handle.remove()
        torch.testing.assert_close(
            patches.mean((2, 3)), ladeda9.fc(captured[0].mean((2, 3))), rtol=1e-4, atol=1e-4
        )


def test_folded_stem_equals_the_two_convolutions(tiny):
    x = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        stem(x, tiny.conv1, tiny.conv2), tiny.conv2(tiny.conv1(x)), rtol=1e-4, atol=1e-5
    )
    tiny(x).sum().backward()
    assert tiny.conv1.weight.grad.abs().sum() > 0 and tiny.conv2.weight.grad.abs().sum() > 0


# --- preprocessing ---


@given(st.integers(1, 9), st.integers(1, 9))
@hypothesis_settings(max_examples=40, deadline=None)
def test_npr_subtracts_the_top_left_of_each_block(height, width):
    x = torch.randn(1, 2, height, width, generator=torch.Generator().manual_seed(0))
    out = models.apply_preprocess(x, "NPR")
    for row in range(height):
        for column in range(width):
            expected = x[..., row, column] - x[..., row - row % 2, column - column % 2]
            torch.testing.assert_close(out[..., row, column], expected)


@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        ("x_grad", [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]),
        ("y_grad", [[-1, -2, -1], [0, 0, 0], [1, 2, 1]]),
        ("left_diag", [[0, 1, 2], [-1, 0, 1], [-2, -1, 0]]),
        ("right_diag", [[-2, -1, 0], [-1, 0, 1], [0, 1, 2]]),
    ],
)
def test_gradients_are_unscaled_sobel_with_zero_padding(name, kernel):
    x = np.random.default_rng(0).normal(size=(5, 4))
    padded = np.pad(x, 1)
    expected = [[(padded[i : i + 3, j : j + 3] * kernel).sum() for j in range(4)] for i in range(5)]
    out = models.apply_preprocess(torch.tensor(x)[None, None].repeat(1, 3, 1, 1), name)
    for channel in range(3):
        np.testing.assert_allclose(out[0, channel].numpy(), expected)


def test_input_scale_multiplies_the_preprocessed_input(tiny):
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    before = tiny.preprocess, tiny.input_scale
    with models.preprocessing(tiny, "NPR", 2 / 3):
        torch.testing.assert_close(tiny.prepare(x), models.apply_preprocess(x, "NPR") * (2 / 3))
    assert (tiny.preprocess, tiny.input_scale) == before
    with pytest.raises(UserError, match="left_diag"):
        models.apply_preprocess(x, "sobel")


# --- alignment and pooling ---


@pytest.mark.parametrize("size", [256, 224, 64])
def test_tiny_onto_ladeda9_is_an_average_pool(tiny, size):
    cells, patches = (size - 5) // 2 + 1, (size - 9) // 8 + 1
    teacher = models.Geometry(8, 4, 9)
    student_map = torch.randn(2, 1, cells, cells, generator=torch.Generator().manual_seed(0))
    aligned = models.align(student_map, tiny.geometry(size), teacher, (patches, patches))
    assert torch.equal(aligned, F.avg_pool2d(student_map, 3, 4)[..., :patches, :patches])
    assert aligned.shape[-1] == patches


@pytest.mark.parametrize("teacher_arch", ["ladeda5", "ladeda9", "ladeda17", "ladeda33"])
def test_aligned_cells_keep_the_teachers_centres(tiny, teacher_arch):
    teacher = models.build(teacher_arch, None, "raw")[0].geometry(256)
    student = tiny.geometry(256)
    position = student.centres(126).float()
    patches = int((256 - teacher.receptive_field) // 8 + 1)
    ramp = position.view(1, 1, 1, -1).expand(1, 1, 126, 126)
    for grid in (ramp, ramp.transpose(2, 3)):
        aligned = models.align(grid, student, teacher, (patches, patches))
        line = aligned[0, 0, 0] if grid is ramp else aligned[0, 0, :, 0]
        torch.testing.assert_close(line, teacher.centres(patches).float())


@given(
    student=st.builds(models.Geometry, st.floats(1, 40), st.floats(0, 20), st.floats(1, 60)),
    teacher=st.builds(models.Geometry, st.floats(1, 40), st.floats(0, 20), st.floats(1, 60)),
    cells=st.integers(1, 20),
    patches=st.integers(1, 20),
)
@hypothesis_settings(max_examples=100, deadline=None)
def test_other_pairs_are_sampled_at_the_teachers_centres(student, teacher, cells, patches):
    grid = student.centres(cells).view(1, 1, 1, -1).expand(1, 1, cells, cells)
    aligned = models.align(grid, student, teacher, (patches, patches))
    if models.exact_window(student, teacher) is None:
        inside = teacher.centres(patches).clamp(student.offset, student.offset + student.stride * (cells - 1))
        torch.testing.assert_close(aligned[0, 0, 0], inside)
    assert aligned.shape == (1, 1, patches, patches)


def test_exact_window_of_known_pairs(tiny):
    assert models.exact_window(tiny.geometry(256), models.Geometry(8, 4, 9)) == Window(3, 4, 0)
    assert models.exact_window(models.Geometry(8, 4, 9), models.Geometry(8, 4, 9)) == Window(1, 1, 0)
    assert models.exact_window(tiny.geometry(256), models.Geometry(16, 7.5, 16)) is None


def test_alignment_passes_gradients_to_all_cells_it_reads(tiny):
    student_map = torch.zeros(1, 1, 30, 30, requires_grad=True)
    models.align(student_map, tiny.geometry(64), models.Geometry(16, 7.5, 16), (4, 4)).sum().backward()
    assert student_map.grad.sum().item() == pytest.approx(16)


@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.floats(0.01, 1),
    st.integers(1, 30),
    st.sampled_from(["mean", "max"]),
)
@hypothesis_settings(max_examples=60, deadline=None)
def test_pooling(height, width, r, min_k, aggregation):
    x = torch.randn(3, 1, height, width, generator=torch.Generator().manual_seed(0))
    settings = SimpleNamespace(kind="topk", r=r, min_k=min_k, aggregation=aggregation)
    count = height * width
    k = min(count, max(min_k, int(r * count)))
    ordered = np.sort(x.flatten(1).numpy(), axis=1)[:, ::-1][:, :k]
    expected = ordered.mean(axis=1) if aggregation == "mean" else ordered[:, 0]
    np.testing.assert_allclose(models.pool(x, settings).numpy(), expected, rtol=1e-5, atol=1e-6)
    mean = models.pool(x, SimpleNamespace(kind="mean", r=r, min_k=min_k, aggregation=aggregation))
    torch.testing.assert_close(mean, x.mean((1, 2, 3)))


# --- timm and user code ---


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {}),
        ("convnext_atto", {}),
        ("efficientnet_b0", {}),
        ("vit_tiny_patch16_224", {}),
        ("vit_tiny_patch16_224", {"global_pool": "avg"}),
        ("swin_tiny_patch4_window7_224", {}),
    ],
)
def test_mean_of_timm_patches_is_the_classifiers_logit(name, options):
    import timm

    from diag_lib.models.timm_patch import TimmPatchModel

    torch.manual_seed(0)
    classes = 2 if options else 1
    net = timm.create_model(name, pretrained=False, num_classes=classes, **options).eval()
    for parameter in net.get_classifier().parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 3, 224, 224)
    model = TimmPatchModel(f"timm/{name}", net)
    with torch.no_grad():
        patches, logits = model(x), net(x)
    expected = logits[:, 1] - logits[:, 0] if classes == 2 else logits[:, 0]
    torch.testing.assert_close(patches.mean((1, 2, 3)), expected, rtol=1e-5, atol=1e-5)
    assert patches.std() > 1e-3
    assert model.geometry(224).stride == 224 / patches.shape[-1]


def test_timm_head_is_applied_at_every_position():
    model = models.build("timm/resnet18", None)[0]
    x = torch.randn(1, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = model.net.forward_features(x)
        expected = torch.einsum("bchw,oc->bohw", features, model.net.fc.weight) + model.net.fc.bias
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    assert expected.shape == (1, 1, 3, 2)


def test_vit_average_pool_head_counts_patch_tokens_only():
    import timm

    from diag_lib.models.timm_patch import TimmPatchModel

    torch.manual_seed(0)
    net = timm.create_model("vit_tiny_patch16_224", num_classes=1, global_pool="avg", fc_norm=False).eval()
    model = TimmPatchModel("timm/vit", net)
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        tokens = net.forward_features(x)[:, 1:]
        torch.testing.assert_close(model(x).flatten(), net.head(tokens).flatten(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "offset"), [("resnet18", 0.0), ("convnext_atto", 15.5), ("tf_efficientnet_b0", 31.0)]
)
def test_timm_cell_centres(name, offset):
    model = models.build(f"timm/{name}", None)[0]
    assert model.geometry(256) == models.Geometry(32.0, offset, 32.0)


def test_timm_two_class_file_is_read_as_fake_minus_real(tmp_path):
    import timm

    torch.manual_seed(3)
    net = timm.create_model("resnet18", num_classes=2).eval()
    file = tmp_path / "two.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}, "epoch": 3}, file)
    model, report = models.build("timm/resnet18", file)
    assert report.complete
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        logits = net(x)
        torch.testing.assert_close(
            model(x).mean((1, 2, 3)), logits[:, 1] - logits[:, 0], rtol=1e-4, atol=1e-5
        )


def test_timm_file_with_other_class_counts_is_refused(tmp_path):
    import timm

    file = tmp_path / "imagenet.pth"
    torch.save(timm.create_model("resnet18", num_classes=10).state_dict(), file)
    with pytest.raises(UserError, match="10 classes"):
        models.build("timm/resnet18", file)


def test_vit_file_of_another_size_fits(tmp_path):
    import timm

    net = timm.create_model("vit_tiny_patch16_224", num_classes=1, img_size=96, depth=12)
    file = tmp_path / "vit96.safetensors"
    save_file(net.state_dict(), file)
    model, report = models.build("timm/vit_tiny_patch16_224", file)
    assert report.complete
    assert model.map_size(128) == (8, 8)


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        ("timm/resnet_18", "resnet18"),
        ("timm/hf-hub:someone/model", "nothing is downloaded"),
        ("timm/coat_tiny", "feature map"),
        ("ladeda7", "ladeda9"),
    ],
)
def test_unknown_architectures_are_explained(arch, words):
    with pytest.raises(UserError, match=words):
        models.build(arch, None)


USER_CODE = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.conv = nn.Conv2d(3, 2 if shape == "two" else 1, 16, 16)
        self.shape = shape
    def forward(self, x):
        y = self.conv(x)
        return {"map": y, "flat": y[:, 0], "image": y.mean((2, 3)), "two": y}[self.shape]
def good(): return Net("map")
def flat(): return Net("flat")
def image(): return Net("image")
def two(): return Net("two")
def nothing(): return 3
def broken(): raise ValueError("my own mistake")
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "my_detector.py").write_text(USER_CODE)
    monkeypatch.chdir(tmp_path)
    yield "my_detector"
    sys.modules.pop("my_detector", None)


def test_a_strided_point_convolution_of_users_survives_training_and_computes_the_same(tmp_path, monkeypatch):
    """In a process of its own: where torch's kernel is broken the training ends in a crash."""
    (tmp_path / "points.py").write_text(
        "import torch\n"
        "def make():\n"
        "    torch.manual_seed(0)\n"
        "    return torch.nn.Conv2d(3, 1, kernel_size=1, stride=4)\n"
    )
    script = (
        "import torch, points\n"
        "from diag_lib.models import build\n"
        "torch.set_num_threads(1)\n"
        "model = build('points:make', None)[0].to(memory_format=torch.channels_last)\n"
        "for _ in range(60):\n"
        "    x = torch.randn(32, 3, 64, 64).contiguous(memory_format=torch.channels_last)\n"
        "    model(x).square().mean().backward()\n"
        "torch.testing.assert_close(model(x), points.make()(x), rtol=1e-4, atol=1e-5)\n"
        "print('survived')\n"
    )
    environment = {
        **os.environ,
        "DIAG_TRUST_CODE": "1",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]),
    }
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.stdout == "survived\n", done.stderr


def test_user_code_runs_only_when_trusted(user_module, monkeypatch):
    monkeypatch.delenv("DIAG_TRUST_CODE", raising=False)
    with pytest.raises(UserError, match="--trust-code"):
        models.build("my_detector:good", None)
    assert "my_detector" not in sys.modules
    monkeypatch.setenv("DIAG_TRUST_CODE", "1")
    for name in ("good", "flat"):
        model, report = models.build(f"my_detector:{name}", None)
        assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 1, 4, 4)
        assert model.geometry(64) == models.Geometry(16.0, 7.5, 16.0)
        assert not report.random


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("image", "patch logits"),
        ("two", "one logit a patch"),
        ("nothing", "torch.nn.Module"),
        ("broken", "my own mistake"),
        ("absent", "no 'absent'"),
    ],
)
def test_wrong_user_code_is_explained(user_module, monkeypatch, name, words):
    monkeypatch.setenv("DIAG_TRUST_CODE", "1")
    with pytest.raises(UserError, match=words):
        models.build(f"my_detector:{name}", None)
    with pytest.raises(UserError, match="no_such_module"):
        models.build("no_such_module:make", None)


# --- weights ---


def other_tiny(seed=7):
    model = models.build("tiny_ladeda", None, "raw", seed=seed)[0]
    randomise_norms(model)
    return model


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 4},
        lambda s: {"model": {f"module.{k}": v for k, v in s.items()}, "optimizer": {"lr": 0.1}},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {
            "checkpoint": 1,
            "net": {"state_dict": {f"_orig_mod.module.{k}": v for k, v in s.items()}},
        },
    ],
)
def test_checkpoints_are_unwrapped(tmp_path, wrap, tiny):
    source = other_tiny()
    torch.save(wrap(source.state_dict()), tmp_path / "w.pth")
    model, report = models.build("tiny_ladeda", tmp_path / "w.pth", "raw")
    assert report.complete and report.loaded == 21 and report.file == "w.pth"
    assert models.state_sha(model) == models.state_sha(source) != models.state_sha(tiny)
    assert report.sha256 == models.file_sha256(tmp_path / "w.pth")


def test_cuda_tagged_files_load_on_the_cpu(tmp_path, monkeypatch):
    source = other_tiny()
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save(source.state_dict(), tmp_path / "gpu.pth")
    assert b"cuda:0" in (tmp_path / "gpu.pth").read_bytes()
    model, report = models.build("tiny_ladeda", tmp_path / "gpu.pth", "raw")
    assert report.complete and next(model.parameters()).device.type == "cpu"
    assert models.state_sha(model) == models.state_sha(source)


def test_incomplete_files_load_what_fits_and_say_so(tmp_path):
    source = other_tiny()
    state = dict(source.state_dict())
    del state["fc.bias"]
    state["fc.weight"] = torch.zeros(1, 9)
    state["extra.weight"] = torch.zeros(2)
    save_file(state, tmp_path / "part.safetensors")
    model, report = models.build("tiny_ladeda", tmp_path / "part.safetensors", "raw")
    assert sorted(report.missing) == ["fc.bias", "fc.weight"]
    assert report.unexpected == ["extra.weight"]
    assert report.mismatched == ["fc.weight: (1, 9) in the file, (1, 8) in the model"]
    assert not report.complete
    assert "fc.bias" in report.message and "extra.weight" in report.message
    assert torch.equal(model.conv2.weight, source.conv2.weight)


def test_random_weights_are_seeded_and_announced():
    state = torch.random.get_rng_state()
    first, report = models.build("tiny_ladeda", None, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert report.random and "RANDOM" in report.message and len(report.missing) == 21
    assert models.state_sha(models.build("tiny_ladeda", None, seed=1)[0]) == models.state_sha(first)
    assert models.state_sha(models.build("tiny_ladeda", None, seed=2)[0]) != models.state_sha(first)


class Evil:
    def __reduce__(self):
        return (print, ("code of the file ran",))


def _pickle(path):
    path.write_bytes(pickle.dumps({"state_dict": Evil()}))


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        ("evil.pth", _pickle, "pickled code|not a readable"),
        ("evil2.pth", lambda p: torch.save({"a": Evil()}, p), "pickled code"),
        ("module.pth", lambda p: torch.save(nn.Linear(2, 2), p), "state_dict"),
        ("tensor.pth", lambda p: torch.save(torch.zeros(3), p), "no tensors by name"),
        ("numbers.pth", lambda p: torch.save({"epoch": 3, "lr": 0.1}, p), "no tensors by name"),
        ("text.pth", lambda p: p.write_text("<html>404</html>"), "web page"),
        ("lfs.pth", lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
        ("noise.pth", lambda p: p.write_bytes(b"weights" * 99), "no weights file"),
        ("other.pth", lambda p: save_file(other_tiny().state_dict(), p), "a safetensors file"),
        ("folder.pth", lambda p: p.mkdir(), "is a folder"),
        ("empty.pth", lambda p: p.write_bytes(b""), "empty"),
        ("half.safetensors", lambda p: p.write_bytes(b"\x10\0\0\0\0\0\0\0{"), "safetensors"),
    ],
)
def test_bad_files_are_one_line_errors(tmp_path, capsys, name, write, words):
    write(tmp_path / name)
    with pytest.raises(UserError, match=words) as caught:
        models.build("tiny_ladeda", tmp_path / name)
    assert "\n" not in str(caught.value)
    assert "code of the file ran" not in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("float8", lambda t: t.to(torch.float8_e4m3fn)),
        ("meta", lambda t: t.to("meta")),
        ("sparse", lambda t: t.to_sparse()),
        ("quantized", lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)),
        ("complex", lambda t: t.to(torch.complex64)),
        ("bool", lambda t: t.bool()),
        ("int8", lambda t: t.to(torch.int8)),
    ],
)
def test_tensors_that_would_lose_something_are_refused(tmp_path, kind, change):
    state = {name: change(t) if name == "fc.weight" else t for name, t in other_tiny().state_dict().items()}
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(UserError, match=rf"fc.weight is .*{kind}|not a readable"):
        models.build("tiny_ladeda", tmp_path / "odd.pth")


@pytest.mark.parametrize("content", [b"junk", b"path,label\na.png,1\n", b"\x00" * 64, b"hdr"])
def test_what_is_no_weights_file_is_called_so(tmp_path, content):
    """Four letters are a pickle whose first opcode runs out of bytes, a table one that empties its stack."""
    path = tmp_path / "teacher.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match="no weights file"):
        models.build("tiny_ladeda", str(path))


def test_truncated_and_non_finite_files_are_refused(tmp_path):
    good = tmp_path / "good.pth"
    torch.save(other_tiny().state_dict(), good)
    (tmp_path / "cut.pth").write_bytes(good.read_bytes()[:-2000])
    with pytest.raises(UserError, match=r"cut.pth"):
        models.build("tiny_ladeda", tmp_path / "cut.pth")
    state = dict(other_tiny().state_dict())
    state["fc.weight"] = torch.full((1, 8), float("nan"))
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(UserError, match=r"fc.weight"):
        models.build("tiny_ladeda", tmp_path / "nan.pth")


def test_a_tensor_that_claims_a_huge_shape_is_not_materialised(tmp_path):
    torch.save({"fc.weight": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "bomb.pth")
    report = models.build("tiny_ladeda", tmp_path / "bomb.pth")[1]
    assert "fc.weight" in report.missing and report.loaded == 0


@pytest.mark.parametrize(
    ("alias", "arch", "file"),
    [
        ("wildrf", "ladeda9", "WildRF_LaDeDa.pth"),
        ("wildrf", "tiny_ladeda", "WildRF_Tiny_LaDeDa.pth"),
        ("forensynth", "ladeda9", "ForenSynth_LaDeDa.pth"),
        ("forensynth", "tiny_ladeda", "ForenSynth_Tiny_LaDeDa.pth"),
        ("finetuned", "ladeda9", "finetuned.safetensors"),
        ("finetuned", "timm/resnet18", "finetuned.pth"),
    ],
)
def test_aliases_name_the_file_to_get(tmp_path, alias, arch, file):
    with pytest.raises(UserError, match=file) as caught:
        models.resolve_weights(alias, tmp_path, arch)
    assert str(tmp_path) in str(caught.value)
    (tmp_path / file).touch()
    assert models.resolve_weights(alias, tmp_path, arch) == tmp_path / file


def test_other_names_are_paths_or_files_of_the_weights_folder(tmp_path):
    (tmp_path / "mine.pth").touch()
    assert models.resolve_weights("mine.pth", tmp_path, "ladeda9") == tmp_path / "mine.pth"
    assert models.resolve_weights(str(tmp_path / "mine.pth"), None, "ladeda9") == tmp_path / "mine.pth"
    with pytest.raises(UserError, match=r"wildrff.*wildrf"):
        models.resolve_weights("wildrff", tmp_path, "ladeda9")


def test_saved_weights_come_back(tmp_path):
    source = other_tiny()
    path = models.save_weights(source, tmp_path / "deep" / "finetuned.safetensors")
    model, report = models.build("tiny_ladeda", "finetuned", "raw", weights_dir=path.parent)
    assert report.complete and models.state_sha(model) == models.state_sha(source)
    timm_model = models.build("timm/resnet18", None, seed=5)[0]
    models.save_weights(timm_model, tmp_path / "resnet.safetensors")
    again, report = models.build("timm/resnet18", tmp_path / "resnet.safetensors")
    assert report.complete and models.state_sha(again) == models.state_sha(timm_model)


def test_teacher_and_student_of_the_settings(tmp_path):
    models.save_weights(other_tiny(), tmp_path / "mine.safetensors")
    settings = Settings().with_overrides(
        {
            "teacher.arch": "tiny_ladeda",
            "teacher.weights": str(tmp_path / "mine.safetensors"),
            "teacher.preprocess": "left_diag",
            "teacher.input_scale": 0.5,
            "dataset.image_size": 64,
        }
    )
    teacher, report = models.build_teacher(settings)
    assert report.complete and not any(p.requires_grad for p in teacher.parameters()) and not teacher.training
    assert (teacher.preprocess, teacher.input_scale) == ("left_diag", 0.5)
    student, report = models.build_student(settings)
    assert report.random and student.preprocess == "right_diag"
    assert models.state_sha(student) != models.state_sha(models.build_student(settings, 43)[0])
    timm_settings = settings.with_overrides({"teacher.arch": "timm/resnet18", "teacher.weights": None})
    model, report = models.build_teacher(timm_settings)
    assert model.preprocess == "raw" and "not applied" in report.message


# --- training helpers ---


def test_select_trainable(tiny):
    assert models.select_trainable(tiny, ["fc"]) == ["fc.weight", "fc.bias"]
    assert [n for n, p in tiny.named_parameters() if p.requires_grad] == ["fc.weight", "fc.bias"]
    assert len(models.select_trainable(tiny, ["layer1", "fc"])) == 8
    assert len(models.select_trainable(tiny, ["all"])) == len(list(tiny.parameters()))
    with pytest.raises(UserError, match=r"layer2.*conv1, conv2, bn1, layer1, fc"):
        models.select_trainable(tiny, ["layer2"])
    net = models.build("timm/resnet18", None)[0]
    assert models.select_trainable(net, ["fc"]) == ["net.fc.weight", "net.fc.bias"]


def test_what_a_training_has_put_into_running_statistics(tiny):
    """One momentum is .001, the others .1: after 100 batches of ones a mean that was zero shows the share itself."""
    tiny.train()
    norms = models.batch_norms(tiny)
    ones = {norm.num_features: torch.ones(4, norm.num_features, 3, 3) for norm in norms.values()}
    with torch.no_grad():
        for _ in range(100):
            for norm in norms.values():
                norm(ones[norm.num_features])
    least = min(norm.running_mean.min().item() for norm in norms.values())
    assert models.taken_in(tiny, 100) == pytest.approx(least, abs=1e-5)
    assert models.taken_in(torch.nn.Linear(1, 1), 100) is None
    next(iter(norms.values())).momentum = 0.0
    assert models.taken_in(tiny, 1e6) == 0.0


def test_recalibration_averages_over_all_batches(tiny):
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(4, 3, 20, 20, generator=generator) for _ in range(3)]
    randomise_norms(tiny)
    tiny.train()
    assert models.recalibrate(tiny, batches) == 3
    with torch.no_grad():
        outputs = [tiny.conv2(tiny.conv1(batch)) for batch in batches]
    expected = torch.stack([out.mean((0, 2, 3)) for out in outputs]).mean(0)
    torch.testing.assert_close(tiny.bn1.running_mean, expected, rtol=1e-4, atol=1e-5)
    assert tiny.training and tiny.bn1.training and tiny.bn1.momentum == 0.001
    before = models.state_sha(tiny)
    assert models.recalibrate(tiny, []) == 0
    assert models.state_sha(tiny) == before


def test_demo_teachers_are_looked_up_in_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr("diag_lib.models.weights.teachers_dir", lambda: tmp_path)
    with pytest.raises(UserError, match=r"demo-foreign\.safetensors"):
        models.resolve_weights("demo-foreign", None, "tiny_ladeda")
    models.save_weights(other_tiny(), tmp_path / "demo-foreign.safetensors")
    assert models.build("tiny_ladeda", "demo-foreign", "raw")[1].complete
