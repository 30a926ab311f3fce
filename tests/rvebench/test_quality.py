"""quality.py: VBench's formulas by hand, extractors of tiny models, the vbench package's files."""

import json
import math
import re
import shlex

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, ViTConfig, ViTModel

from rvebench import quality
from common.files import BadInput
from common.video import from_bytes
from rvebench.quality import (feature_consistency, middle_frames, temporal_flickering,
                              text_consistency)


def flat(*values):
    """Flat frames of these 8-bit values, uint8 (F, 3, 4, 6)."""
    return torch.stack([torch.full((3, 4, 6), v, dtype=torch.uint8) for v in values])


def test_temporal_flickering_by_hand():
    assert temporal_flickering(flat(7, 7, 7)) == 1
    assert temporal_flickering(flat(0, 255)) == 0
    assert temporal_flickering(flat(100, 110, 90)) == (255 - 15) / 255
    one = flat(0, 0)
    one[1, 0, 0, 0] = 72                                 # one of 72 values
    assert temporal_flickering(one) == 254 / 255
    assert temporal_flickering(from_bytes(flat(100, 110, 90))) == (255 - 15) / 255         # [-1, 1] is as good
    x = torch.randint(0, 256, (5, 3, 7, 9), dtype=torch.uint8, generator=torch.manual_seed(0))
    steps = [np.abs(a.astype(float) - b).mean() for a, b in zip(x.numpy(), x.numpy()[1:])]
    assert temporal_flickering(x) == pytest.approx((255 - np.mean(steps)) / 255, abs=1e-12)
    with pytest.raises(ValueError):
        temporal_flickering(flat(1))


def test_feature_consistency_by_hand():
    f = lambda *degrees: torch.tensor([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees])
    assert feature_consistency(f(10, 10, 10)) == pytest.approx(1)
    assert feature_consistency(f(0, 60)) == pytest.approx(.5)
    assert feature_consistency(f(0, 60, 0)) == pytest.approx((.5 + (.5 + 1) / 2) / 2)
    assert feature_consistency(f(0, 180)) == 0           # a negative cosine counts as none
    assert feature_consistency(f(0, 90, 180)) == pytest.approx(0, abs=1e-7)
    assert feature_consistency(f(0, 60) * torch.tensor([[3.], [.2]])) == pytest.approx(.5)     # length does not matter
    for bad in (f(0), f(0, math.nan)):
        with pytest.raises(ValueError):
            feature_consistency(bad)


def test_text_consistency_and_frames_by_hand():
    assert text_consistency(torch.tensor([3., 4.]), torch.tensor([1., 0.])) == pytest.approx(.6)
    assert middle_frames(16) == [0, 2, 4, 6, 8, 10, 12, 14] and middle_frames(8) == list(range(8))
    assert middle_frames(17) == [0, 2, 4, 6, 8, 10, 12, 15]                                # parts of 2, and one of 3
    assert middle_frames(80) == [4, 14, 24, 34, 44, 54, 64, 74] and middle_frames(3, 5) == [0, 1, 2, 2, 2]


# ----------------------------------------------------------------------------------------------------- extractors

@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of a tiny ViT, a tiny CLIP and a stand-in for ViCLIP, whose code lies beside it."""
    folder, small = tmp_path_factory.mktemp("models"), dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                                                            num_attention_heads=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ViTModel(ViTConfig(**small, image_size=32, patch_size=8)).save_pretrained(folder / "dino")
        CLIPModel(CLIPConfig(text_config=CLIPTextConfig(**small, vocab_size=50).to_dict(), projection_dim=8,
                             vision_config=CLIPVisionConfig(**small, image_size=32, patch_size=8).to_dict())
                  ).save_pretrained(folder / "clip")
    (folder / "viclip").mkdir()
    (folder / "viclip/config.json").write_text(json.dumps(
        {"model_type": "viclip_stand_in", "auto_map": {"AutoConfig": "stand_in.Config", "AutoModel": "stand_in.Model"}}))
    (folder / "viclip/stand_in.py").write_text('''
import torch
from transformers import PretrainedConfig, PreTrainedModel
class Config(PretrainedConfig):
    model_type = "viclip_stand_in"
class Model(PreTrainedModel):
    config_class = Config
    def __init__(self, config):
        super().__init__(config)
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.post_init()
    def encode_vision(self, frames, test=False):
        assert frames.shape == (1, 8, 3, 224, 224) and test
        return frames.mean((0, 1, 3, 4))[None]
    def encode_text(self, text):
        return torch.tensor([[1., len(text), 0.]])
''')
    from safetensors.torch import save_file
    save_file({"weight": torch.ones(1)}, folder / "viclip/model.safetensors", {"format": "pt"})
    return folder


def wide(n=3, h=40, w=72):
    return torch.randint(0, 256, (n, 3, h, w), dtype=torch.uint8, generator=torch.manual_seed(1))


def test_frames_are_resized_without_antialiasing_as_by_vbench():
    """To a quarter: the bilinear value between the middle two of four pixels, the cubic one of all four; antialiasing
    would see eight and sixteen. The cubic weights by hand, of Keys' kernel with a = -0.75 at 0.5 and 1.5."""
    video, nothing = wide(2, 64, 96), ((0, 0, 0), (1, 1, 1))
    x = video.double().numpy() / 255

    def shrink(x, weights):
        x = sum(weight * x[..., k::4, :] for k, weight in enumerate(weights))
        return sum(weight * x[..., k::4] for k, weight in enumerate(weights))                  # (F, 3, 16, 24)
    for mode, weights in (("bilinear", (0, .5, .5, 0)), ("bicubic", (-.09375, .59375, .59375, -.09375))):
        found, middle = [quality.prepare(video, 16, mode, crop, nothing).numpy() for crop in (False, True)]
        np.testing.assert_allclose(found, shrink(x, weights), atol=1e-5)
        np.testing.assert_array_equal(middle, found[..., 4:20])


def test_dino_is_the_class_token_of_a_normalised_frame(models):
    video = flat(50, 200).repeat_interleave(8, -1).repeat_interleave(8, -2)                # 32 x 48: nothing to resize
    features, model = quality.dino(str(models / "dino"))(video), ViTModel.from_pretrained(models / "dino").eval()
    mean, std = torch.tensor([.485, .456, .406]), torch.tensor([.229, .224, .225])
    x = ((torch.tensor([50., 200.])[:, None] / 255 - mean) / std)[..., None, None].expand(-1, -1, 32, 48)
    with torch.no_grad():
        expected = model(x, interpolate_pos_encoding=True).last_hidden_state[:, 0]
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    assert quality.dino(str(models / "dino"))(wide(20)).shape == (20, 16)                  # more than a batch


def test_clip_is_the_image_embedding_of_the_middle_square(models):
    extract = quality.clip(str(models / "clip"))
    video = flat(*range(0, 200, 50)).repeat_interleave(8, -1).repeat_interleave(8, -2)     # (4, 3, 32, 48)
    margins = video.clone()
    margins[..., :8], margins[..., 40:] = 255, 3
    torch.testing.assert_close(extract(video), extract(margins))                       # what is cropped does not matter
    model = CLIPModel.from_pretrained(models / "clip").eval()
    mean, std = torch.tensor([.48145466, .4578275, .40821073]), torch.tensor([.26862954, .26130258, .27577711])
    x = ((torch.arange(0, 200, 50)[:, None] / 255 - mean) / std)[..., None, None].expand(-1, -1, 32, 32)
    with torch.no_grad():
        expected = model.get_image_features(pixel_values=x).pooler_output
    torch.testing.assert_close(extract(video), expected, rtol=1e-4, atol=1e-4)
    assert extract(wide()).shape == (3, 8)


def test_viclip_runs_only_when_trusted(models):
    with pytest.raises(BadInput, match="--trust-remote-code"):
        quality.viclip(str(models / "viclip"), False)
    cosines = quality.viclip(str(models / "viclip"), True)
    white = flat(*[255] * 9)
    found = cosines(white, "ab")
    mean = lambda m, s: (1 - np.array(m)) / np.array(s)
    cos = lambda v: (v @ [1, 2, 0]) / np.linalg.norm(v) / math.sqrt(5)
    assert found == pytest.approx({"OC": cos(mean(*quality.CLIP)), "ViCLIP-T": cos(mean(*quality.IMAGENET))}, abs=1e-5)
    assert set(cosines(white[:5], "ab")) == {"OC"}       # its own way needs eight frames


def test_the_own_tower(tiny):
    video = wide(3, 32, 32)
    with torch.no_grad():
        expected = tiny.vlm.patches(from_bytes(video)).mean(1)
    torch.testing.assert_close(quality.own_tower(tiny)(video), expected, rtol=1e-4, atol=1e-4)


def test_which_columns_are_empty_and_why(models, tiny):
    video = wide()
    plain = quality.Measures()
    assert set(plain(video, "x")) == {"TF"} and set(plain.why) == {"SC", "BC", "OC", "ViCLIP-T", "MS"}
    own = quality.Measures(model=tiny)
    assert set(own(video, "x")) == {"TF", "SC"} and "own vision tower" in own.labels["SC"]
    assert "one feature" in own.why["BC"]
    real = quality.Measures(models / "dino", models / "clip", model=tiny)
    found = real(video, "x")
    assert set(found) == {"TF", "SC", "BC"} and real.labels["SC"] == "SC" and set(real.why) == {"OC", "ViCLIP-T", "MS"}
    assert found["BC"] == feature_consistency(quality.clip(models / "clip")(video))
    assert len({plain.stamp, real.stamp}) == 2


@pytest.mark.parametrize("load, words", [(lambda m: quality.dino(f"{m}/none"), "--dino .*none: cannot be loaded"),
                                         (lambda m: quality.clip(f"{m}/dino"), "is no CLIP"),
                                         (lambda m: quality.viclip(f"{m}/clip", True), "has no encode_vision")])
def test_a_wrong_extractor(models, monkeypatch, load, words):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BadInput, match=words):
        load(models)


# --------------------------------------------------------------------------------------------- the vbench package

def test_the_printed_command_survives_the_shell(tmp_path):
    out = tmp_path / "my results; rm -rf $HOME"
    command = quality.vbench_folder(out, "ours & theirs", {}, {})
    words = shlex.split(command)
    assert words[words.index("--videos_path") + 1] == str(out / "ours & theirs")
    assert words[words.index("--prompt_file") + 1] == str(out / "ours & theirs.json")
    assert words[words.index("--output_path") + 1] == str(out / "results")


def test_the_vbench_package(tmp_path, capsys):
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "vbench/ours").mkdir(parents=True)
    (tmp_path / "vbench/ours/old.mp4").symlink_to(tmp_path / "gone.mp4")
    command = quality.vbench_folder(tmp_path / "vbench", "ours", {"one": tmp_path / "a.mp4"}, {"one": "dusk", "two": ""})
    assert [p.name for p in (tmp_path / "vbench/ours").iterdir()] == ["one.mp4"]
    assert (tmp_path / "vbench/ours/one.mp4").read_bytes() == b"x"
    assert json.loads((tmp_path / "vbench/ours.json").read_text()) == {"one.mp4": "dusk"}
    assert "--mode=custom_input" in command and str(tmp_path / "vbench/ours.json") in command
    (tmp_path / "vbench/ours/mine.mp4").write_bytes(b"x")
    with pytest.raises(BadInput, match="mine.mp4: is none of our links"):
        quality.vbench_folder(tmp_path / "vbench", "ours", {}, {})
    with pytest.raises(BadInput, match="run vbench first"):
        quality.vbench_results(tmp_path / "vbench")
    video = f"{tmp_path}/vbench/ours/one.mp4"
    write = lambda day, **said: (tmp_path / f"vbench/results_{day}_eval_results.json").write_text(json.dumps(said))
    write("2026-01-01", motion_smoothness=[.9, [{"video_path": video, "video_results": .9}]],
          dynamic_degree=[.5, [{"video_path": video, "video_results": True}]])
    write("2026-01-02", motion_smoothness=[.8, [{"video_path": video, "video_results": .8}]],
          subject_consistency=[.7, [{"video_path": video, "video_results": .7}]])
    assert quality.vbench_results(tmp_path / "vbench") == {("ours", "one"): {"MS": .8, "SC": .7}}
    write("2026-01-03", motion_smoothness=[math.nan, [{"video_path": video, "video_results": math.nan}]])
    capsys.readouterr()
    assert quality.vbench_results(tmp_path / "vbench") == {("ours", "one"): {"SC": .7}}
    assert re.search(f"2026-01-03.*: MS of {video} is nan: left out", capsys.readouterr().err)
    write("2026-01-04", motion_smoothness=[97.5, [{"video_path": video, "video_results": 97.5}]])
    with pytest.raises(BadInput, match=f"2026-01-04.*: MS of {video} is 97.5, and no measure is"):
        quality.vbench_results(tmp_path / "vbench")
    write("2026-01-03", motion_smoothness=.8)
    with pytest.raises(BadInput, match="is no result of vbench"):
        quality.vbench_results(tmp_path / "vbench")
