"""quality.py: VBench's formulas by hand, extractors of tiny models, the vbench package's files."""

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

from common.files import BadInput
from common.video import from_bytes
from rvebench import quality
from rvebench.quality import feature_consistency, middle_frames, temporal_flickering


def flat(*values, height=4, width=6):
    """Flat frames of these 8-bit values, uint8 (F, 3, H, W)."""
    return torch.stack([torch.full((3, height, width), v, dtype=torch.uint8) for v in values])


def directions(*degrees):
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_temporal_flickering_by_hand():
    assert temporal_flickering(flat(7, 7, 7)) == 1
    assert temporal_flickering(flat(0, 255)) == 0
    assert temporal_flickering(flat(100, 110, 90)) == (255 - 15) / 255
    one = flat(0, 0)
    one[1, 0, 0, 0] = 72                                 # one of 72 values
    assert temporal_flickering(one) == 254 / 255
    assert temporal_flickering(from_bytes(flat(100, 110, 90))) == (255 - 15) / 255


def test_feature_consistency_by_hand():
    assert feature_consistency(directions(10, 10, 10)) == pytest.approx(1)
    assert feature_consistency(directions(0, 60)) == pytest.approx(.5)
    assert feature_consistency(directions(0, 60, 0)) == pytest.approx((.5 + (.5 + 1) / 2) / 2)
    assert feature_consistency(directions(0, 180)) == 0                  # a negative cosine is none
    lengths = torch.tensor([[3.], [.2]])                                 # which do not matter
    assert feature_consistency(directions(0, 60) * lengths) == pytest.approx(.5)
    for bad in (directions(0), directions(0, math.nan)):
        with pytest.raises(ValueError):
            feature_consistency(bad)


def test_middle_frames_by_hand():
    assert middle_frames(16) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert middle_frames(8) == list(range(8)) and middle_frames(3, 5) == [0, 1, 2, 2, 2]
    assert middle_frames(17) == [0, 2, 4, 6, 8, 10, 12, 15]              # parts of 2, and one of 3


# -------------------------------------------------------------------------------------- extractors

class ViCLIP(torch.nn.Module):
    """A stand-in: a clip's feature is its mean colour."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def encode_vision(self, frames, test=False):
        assert frames.shape == (1, 8, 3, 224, 224) and test
        return frames.mean((0, 1, 3, 4))[None]

    def encode_text(self, text):
        return torch.tensor([[1., len(text), 0.]])


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of a tiny ViT and a tiny CLIP."""
    folder = tmp_path_factory.mktemp("models")
    small = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    eye = small | dict(image_size=32, patch_size=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ViTModel(ViTConfig(**eye)).save_pretrained(folder / "dino")
        clip = CLIPConfig(text_config=small | {"vocab_size": 50}, vision_config=eye,
                          projection_dim=8)
        CLIPModel(clip).save_pretrained(folder / "clip")
    return folder


def normalised(values, mean_std):
    """Flat frames (F, 3, 1, 1) of these values, as an extractor gets them."""
    mean, std = map(torch.tensor, mean_std)
    return ((torch.tensor(values)[:, None] / 255 - mean) / std)[..., None, None]


def test_frames_are_resized_without_antialiasing_as_by_vbench():
    """To a quarter: between the middle two of four pixels, or the cubic of all four; antialiasing
    would see eight and sixteen. The cubic weights by hand, of Keys' kernel with a = -0.75."""
    video = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, 3, 64, 96), np.uint8))
    nothing = (0, 0, 0), (1, 1, 1)
    x = video.double().numpy() / 255

    def shrink(x, weights):
        x = sum(weight * x[..., k::4, :] for k, weight in enumerate(weights))
        return sum(weight * x[..., k::4] for k, weight in enumerate(weights))    # (F, 3, 16, 24)
    for mode, weights in (("bilinear", (0, .5, .5, 0)),
                          ("bicubic", (-.09375, .59375, .59375, -.09375))):
        found = quality.prepare(video, 16, mode, False, nothing).numpy()
        middle = quality.prepare(video, 16, mode, True, nothing).numpy()
        np.testing.assert_allclose(found, shrink(x, weights), atol=1e-5)
        np.testing.assert_array_equal(middle, found[..., 4:20])


@torch.no_grad()
def test_dino_sees_whole_frames_and_clip_their_middle_squares(models):
    names = [str(models / name) for name in ("dino", "clip")]
    values = [10. * k for k in range(20)]                # more than a batch
    video = flat(*map(int, values), height=32, width=48)                 # nothing to resize
    margins = video.clone()
    margins[..., :8], margins[..., 40:] = 255, 3         # what CLIP crops does not matter
    x = normalised(values, quality.IMAGENET).expand(-1, -1, 32, 48)
    seen = ViTModel.from_pretrained(names[0]).eval()(x, interpolate_pos_encoding=True)
    x = normalised(values, quality.CLIP).expand(-1, -1, 32, 32)
    middle = CLIPModel.from_pretrained(names[1]).eval().get_image_features(pixel_values=x)
    near = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)
    near(quality.dino(names[0])(video), seen.last_hidden_state[:, 0])    # the class token
    near(quality.clip(names[1])(margins), middle.pooler_output)
    assert quality.Measures(*names)(video, "x") == {
        "TF": temporal_flickering(video),
        "SC": pytest.approx(feature_consistency(seen.last_hidden_state[:, 0]), abs=1e-5),
        "BC": pytest.approx(feature_consistency(middle.pooler_output), abs=1e-5)}


def test_viclip_runs_only_when_trusted(monkeypatch):
    monkeypatch.setattr(quality, "load_extractor", lambda *flags, **more: ViCLIP())
    with pytest.raises(BadInput, match="--trust-remote-code"):
        quality.viclip("a/folder", False)
    cosines = quality.viclip("a/folder", True)
    white, text = flat(*[255] * 9), torch.tensor([1., 2., 0.])

    def cosine(mean_std):
        return torch.cosine_similarity(normalised([255.], mean_std).flatten(), text, 0).item()
    expected = {"OC": cosine(quality.CLIP), "ViCLIP-T": cosine(quality.IMAGENET)}
    assert cosines(white, "ab") == pytest.approx(expected, abs=1e-5)
    assert set(cosines(white[:5], "ab")) == {"OC"}       # its own way needs eight frames


# ------------------------------------------------------------------------------ the vbench package

def test_what_vbench_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)                          # its paths are as it was given them

    def write(day, **said):
        for name, score in said.items():
            said[name] = [score, [{"video_path": "ours/one.mp4", "video_results": score}]]
        Path(f"{day}_eval_results.json").write_text(json.dumps(said))
    with pytest.raises(BadInput, match="run vbench first"):
        quality.vbench_results(".")
    write("01", motion_smoothness=.9, dynamic_degree=True)
    write("02", motion_smoothness=.8, subject_consistency=math.nan)
    assert quality.vbench_results(".") == {tmp_path / "ours/one.mp4": {"MS": .8}}
    Path("03_eval_results.json").write_text('{"motion_smoothness": 0.8}')
    with pytest.raises(BadInput, match="is no result of vbench"):
        quality.vbench_results(".")
