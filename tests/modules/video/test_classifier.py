"""VideoClassifier compared with the libraries: logits, averages, exports, and settings that are refused."""

import sys

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader
from transformers import AutoModelForVideoClassification, TimesformerConfig, VideoMAEConfig, VivitConfig

from slicefine_pl.modules import VideoClassifier
from slicefine_pl.modules.video.load import pathways

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 32}
CONFIGS = {
    "videomae": VideoMAEConfig(**TINY, num_frames=4, patch_size=16),
    "vivit": VivitConfig(**TINY, num_frames=4, tubelet_size=[2, 16, 16]),
    "timesformer": TimesformerConfig(**TINY, num_frames=4, patch_size=16),
}
NETWORKS = [("mvit_base_16x4", 4, 32), ("slow_r50", 4, 32), ("slowfast_r50", 8, 32), ("x3d_xs", 4, 32)]


@pytest.fixture
def folder(tmp_path, request):
    """A tiny model of transformers with weights for three classes."""
    config = CONFIGS[request.param]
    config.num_labels = 3
    AutoModelForVideoClassification.from_config(config).save_pretrained(tmp_path / request.param)
    return tmp_path / request.param


def videos(views=1, frames=4, edge=32, count=2):
    return torch.randint(0, 256, (count, views, 3, frames, edge, edge), dtype=torch.uint8)


def build(name, frames, edge, **settings):
    module = VideoClassifier(f"pytorchvideo/{name}", num_frames=frames, crop_size=edge, **settings)
    assert module.has_random_weights
    return module


@pytest.mark.parametrize("folder", CONFIGS, indirect=True)
def test_transformers_take_frames_first_and_their_own_normalisation(folder):
    module = VideoClassifier(str(folder), num_frames=4, crop_size=32).eval()
    plain = AutoModelForVideoClassification.from_pretrained(folder).eval()
    video = videos()
    mean, std = {
        "videomae": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "vivit": ([0.5] * 3, [0.5] * 3),
        "timesformer": ([0.45] * 3, [0.225] * 3),
    }[folder.name]
    pixels = (video[:, 0] / 255).permute(0, 2, 3, 4, 1).sub(torch.tensor(mean)).div(torch.tensor(std))
    with torch.no_grad():
        expected = plain(pixel_values=pixels.permute(0, 1, 4, 2, 3)).logits
        torch.testing.assert_close(module({"video": video}), expected)
    assert not module.untrained_head


@pytest.mark.parametrize(("name", "frames", "edge"), NETWORKS)
def test_pytorchvideo_networks_come_back_from_their_export_and_run_without_us(tmp_path, name, frames, edge):
    """The three lines that ``example`` prints give a plain network with the same outputs."""
    module = build(name, frames, edge, label_names=["a", "b", "c"]).eval()
    video = videos(frames=frames, edge=edge)
    with torch.no_grad():
        expected = module({"video": video})
        folder = module.export(tmp_path / "export")
        scope = {}
        exec(module.example(folder), scope)
        clips = (video[:, 0] / 255 - 0.45) / 0.225
        plain = scope["model"]([clips[:, :, [0, 7]], clips] if name == "slowfast_r50" else clips)
        torch.testing.assert_close(plain, expected)
        again = VideoClassifier(str(folder), num_frames=frames, crop_size=edge).eval()
        torch.testing.assert_close(again({"video": video}), expected)
    assert again.label_names == ["a", "b", "c"]
    assert not again.untrained_head


def test_slowfast_sees_every_fourth_frame_and_all():
    clips = torch.arange(32.0).view(1, 1, 32, 1, 1)
    slow, fast = pathways(clips)
    assert slow.flatten().tolist() == [0, 4, 8, 13, 17, 22, 26, 31]  # pytorchvideo's own: evenly from first to last
    assert torch.equal(fast, clips)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("folder", ["videomae"], indirect=True)
def test_scores_count_videos_by_the_mean_probability_of_their_views(folder, tmp_path):
    """Averaged by hand, one view at a time."""
    module = VideoClassifier(str(folder), num_classes=7, num_frames=4, crop_size=32).eval()
    module.untrained_head = False  # random on purpose
    rows = videos(views=5, count=12)
    labels = torch.arange(12) % 7
    with torch.no_grad():
        one = [module({"video": rows[:, view]}).softmax(-1) for view in range(5)]
    mean = torch.stack(one).mean(0)
    torch.testing.assert_close(module.predict_step({"video": rows}, 0).detach(), mean)
    loader = DataLoader(
        [{"video": row, "labels": label} for row, label in zip(rows, labels, strict=True)], batch_size=4
    )
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    [scores] = Trainer(default_root_dir=tmp_path, **quiet).test(module, loader, verbose=False)
    best = mean.argsort(-1, descending=True)
    assert scores["test/accuracy"] == pytest.approx((best[:, 0] == labels).float().mean().item())
    assert scores["test/top5"] == pytest.approx((best[:, :5] == labels[:, None]).any(1).float().mean().item())
    assert scores["test/loss"] == pytest.approx(F.nll_loss(mean.log(), labels).item(), rel=1e-4)


@pytest.mark.parametrize("folder", ["videomae"], indirect=True)
def test_transformers_export(folder, tmp_path):
    module = VideoClassifier(str(folder), label_names=["x", "y"], num_frames=4, crop_size=32).eval()
    assert module.untrained_head
    place = module.export(tmp_path / "export")
    scope = {}
    exec(module.example(place), scope)
    assert scope["model"].config.id2label == {0: "x", 1: "y"}
    again = VideoClassifier(str(place), num_frames=4, crop_size=32).eval()
    video = videos()
    torch.testing.assert_close(again({"video": video}), module({"video": video}))
    assert (again.label_names, again.untrained_head) == (["x", "y"], False)


def test_weights_of_another_number_of_classes_give_a_new_head(tmp_path):
    """As in pytorchvideo's model zoo: a state dict below model_state, for 400 classes."""
    source = build("x3d_xs", 4, 32)
    torch.save({"model_state": source.model.state_dict()}, tmp_path / "zoo.pyth")
    settings = {"weights": str(tmp_path / "zoo.pyth"), "num_frames": 4, "crop_size": 32}
    module = VideoClassifier("pytorchvideo/x3d_xs", num_classes=3, **settings)
    assert module.untrained_head
    ours, theirs = dict(module.model.named_parameters()), dict(source.model.named_parameters())
    changed = {name for name in ours if ours[name].shape != theirs[name].shape or not ours[name].equal(theirs[name])}
    assert changed == {"blocks.5.proj.weight", "blocks.5.proj.bias"}
    assert {id(parameter) for parameter in module.head()} == {id(ours[name]) for name in changed}
    assert not [part for part in module.model.modules() if isinstance(part, torch.nn.BatchNorm3d) and part.training]
    assert VideoClassifier("pytorchvideo/x3d_xs", num_classes=400, **settings).untrained_head is False
    with pytest.raises(ValueError, match=r"contains the weights of another network: \d+ names or shapes differ"):
        VideoClassifier("pytorchvideo/slow_r50", num_classes=3, **settings)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"backbone": "pytorchvideo/none"}, ValueError, "'pytorchvideo/none' is unknown; choose one of .*'mvit_base"),
        (
            {"backbone": "pytorchvideo/slowfast_r50", "num_frames": 6},
            ValueError,
            "num_frames=6 must be a multiple of 4",
        ),
        ({"backbone": "pytorchvideo/x3d_xs", "weights": "gone.pyth"}, FileNotFoundError, "gone.pyth' is not a file"),
        ({"backbone": "pytorchvideo/x3d_xs", "num_classes": 0}, ValueError, "num_classes=0 is too small"),
        ({"backbone": "./nowhere"}, FileNotFoundError, "is not a folder"),
        ({"backbone": "package:no_such_package/weights"}, ModuleNotFoundError, "pip install no-such-package"),
        ({"num_classes": 2, "label_names": ["a"]}, ValueError, "num_classes=2 differs from the 1 label_names"),
    ],
)
def test_wrong_settings(settings, error, message):
    with pytest.raises(error, match=message):
        VideoClassifier(**settings)


@pytest.mark.parametrize("folder", ["videomae"], indirect=True)
def test_clips_of_another_size_or_number_of_colors(folder):
    with pytest.raises(ValueError, match=r"needs 4 frames of 32 pixels, not 16 of 224; set --data.num_frames 4"):
        VideoClassifier(str(folder))
    module = VideoClassifier(str(folder), num_frames=4, crop_size=32)
    with pytest.raises(ValueError, match=r"shape \(2, 1, 1, 4, 32, 32\); give \(videos, views, 3 colors"):
        module({"video": videos()[:, :, :1]})


def test_a_text_user_never_imports_video_libraries():
    import subprocess

    code = "import sys, slicefine_pl.modules, slicefine_pl.data; print({'av', 'pytorchvideo'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
