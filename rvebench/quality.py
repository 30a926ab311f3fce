"""Is the video a good video? VBench's measures, and what they look through (Sec. 5.2).

    TF        temporal flickering, of pixels alone                       temporal_flickering
    SC, BC    subject and background consistency, of DINO's and CLIP's
              features                                                   feature_consistency
    OC        overall consistency: ViCLIP's cosine of text and 8 frames  viclip
    ViCLIP-T  the same cosine, the frames chosen and prepared as in
              ViCLIP's demonstration (the paper does not say)
    MS        motion smoothness, from the `vbench` package               vbench_results

Each is a short function on frames or features; what extracts the features comes from transformers,
by id or local folder. Frames are resized as VBench does it, without antialiasing: the inputs of
DINO and CLIP are the same numbers. There is no AMT-S in transformers: motion smoothness, and any of
the others, is taken from what the `vbench` package wrote (README.md), which needs an environment of
its own: its numpy is older.

Left out: DINO's own resizing of position embeddings; transformers' differs in the last digits
where a clip is not square.

Axis letters: F frames, H W pixels, D width of a feature. Pixels are (F, 3, H, W), uint8.
"""

import json
import math
from operator import attrgetter
from pathlib import Path
from typing import Callable

import torch
import torch.nn.functional as F
from transformers import AutoModel

from common.distributed import device
from common.files import BadInput
from common.video import to_bytes

DIMENSIONS = {
    "temporal_flickering": "TF", "subject_consistency": "SC", "background_consistency": "BC",
    "overall_consistency": "OC", "motion_smoothness": "MS"}
IMAGENET = (.485, .456, .406), (.229, .224, .225)        # mean, standard deviation
CLIP = (.48145466, .4578275, .40821073), (.26862954, .26130258, .27577711)
BATCH = 16                                               # frames that an extractor sees at a time
VERSION = 2                                     # of the preparation: part of a measured value's key


# ----------------------------------------------------------------------------------------- formulas

def temporal_flickering(video: torch.Tensor) -> float:
    """VBench's TF in 0..1: (255 - mean |I_t - I_{t+1}|) / 255 on 8-bit values; 1: a still one.

    video: (F, 3, H, W) in [-1, 1], or uint8, of full size. Raises ValueError below two frames.
    """
    if len(video) < 2:
        raise ValueError(f"temporal flickering needs two frames, not {len(video)}")
    x = video if video.dtype == torch.uint8 else to_bytes(video)
    later, earlier = x[1:], x[:-1]
    difference = torch.maximum(later, earlier) - torch.minimum(later, earlier)       # exact
    return (255 - difference.sum(dtype=torch.int64).item() / difference.numel()) / 255


def feature_consistency(features: torch.Tensor) -> float:
    """VBench's consistency in 0..1: the mean over t >= 1 of
    (max(0, cos(f_{t-1}, f_t)) + max(0, cos(f_0, f_t))) / 2.

    features: (F, D), one a frame: of DINO for the subject (SC), of CLIP for the background (BC).
    Raises ValueError below two frames, or where a feature is not finite.
    """
    if len(features) < 2 or not features.isfinite().all():
        raise ValueError(f"consistency needs finite features of two frames or more, "
                         f"not {tuple(features.shape)}")
    f = F.normalize(features.double(), dim=-1)
    to_previous = (f[1:] * f[:-1]).sum(-1)               # (F - 1,)
    to_first = (f[1:] * f[0]).sum(-1)
    return float((to_previous.clamp_min(0) + to_first.clamp_min(0)).mean() / 2)


def middle_frames(n: int, k: int = 8) -> list[int]:
    """The middles of k equal parts of n frames; of fewer than k, each, and then the last again."""
    parts = min(k, n)
    ends = [n * i // parts for i in range(parts + 1)]
    middles = [(start + end - 1) // 2 for start, end in zip(ends, ends[1:])]
    return middles + middles[-1:] * (k - parts)


# --------------------------------------------------------------------------------------- extractors

def prepare(pixels: torch.Tensor, side: int, mode: str, crop: bool, mean_std) -> torch.Tensor:
    """VBench's frames for DINO and CLIP: (F, 3, H, W) uint8 -> (F, 3, h, w) float.

    The short side becomes `side`, without antialiasing; perhaps the middle square of it;
    normalised.
    """
    height, width = pixels.shape[-2:]
    short = min(height, width)
    size = [side * height // short, side * width // short]
    x = F.interpolate(pixels.float(), size, mode=mode, align_corners=False, antialias=False) / 255
    if crop:
        top, left = round((size[0] - side) / 2), round((size[1] - side) / 2)
        x = x[..., top:top + side, left:left + side]
    return _normalize(x, mean_std)


def _normalize(x: torch.Tensor, mean_std) -> torch.Tensor:
    mean, std = [torch.tensor(values, device=x.device).view(3, 1, 1) for values in mean_std]
    return (x - mean) / std


def load_extractor(flag: str, name: str, usual: str, *needs: str, **more):
    """A model of transformers by id or folder, ready to look.

    usual: the id of one that fits; needs: what it must have, as "config.image_size". Raises
    BadInput, naming the flag.
    """
    try:
        model = AutoModel.from_pretrained(name, dtype=torch.float32, **more)
        for need in needs:
            attrgetter(need)(model)
    except Exception as error:          # the hub, safetensors and foreign code raise what they like
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"{flag} {name}: cannot be used ({reason}); give an id or a local folder, "
                       f"such as {usual}") from error
    return model.eval().to(device())


def _features(model, extract: Callable, *preparation) -> Callable:
    """features(pixels (F, 3, H, W)) -> (F, D), on the CPU, of BATCH frames at a time."""

    def features(pixels):
        rows = []
        with torch.no_grad():
            for part in pixels.split(BATCH):
                x = prepare(part.to(model.device), *preparation)
                rows.append(extract(x).float().cpu())
        return torch.cat(rows)
    return features


def dino(name: str) -> Callable:
    """features(pixels) -> (F, D): the class token of a DINO ViT, the short side at its own size.
    Raises BadInput."""
    model = load_extractor("--dino", name, "facebook/dino-vitb16", "config.image_size")

    def extract(x):
        return model(x, interpolate_pos_encoding=True).last_hidden_state[:, 0]
    return _features(model, extract, model.config.image_size, "bilinear", False, IMAGENET)


def clip(name: str) -> Callable:
    """features(pixels) -> (F, D): CLIP's image embedding of the middle square. Raises BadInput."""
    model = load_extractor("--clip", name, "openai/clip-vit-base-patch32", "get_image_features",
                           "config.vision_config.image_size")

    def extract(x):
        return model.get_image_features(pixel_values=x).pooler_output
    return _features(model, extract, model.config.vision_config.image_size, "bicubic", True, CLIP)


def viclip(name: str, trust_remote_code: bool) -> Callable:
    """cosines(pixels, text) -> {"OC", "ViCLIP-T"}.

    ViCLIP is code that comes with its weights: it is only run if trusted. It needs
    `encode_vision(frames (B, T, 3, 224, 224), test=True)` and `encode_text(text)`, as the authors'
    class has them; texts are cut at its own 32 tokens. Raises BadInput.
    """
    if not trust_remote_code:
        raise BadInput(f"--viclip {name}: runs code that comes with the model; read it, then pass "
                       f"--trust-remote-code")
    model = load_extractor("--viclip", name, "OpenGVLab/ViCLIP-L-14-hf", "encode_vision",
                           "encode_text", trust_remote_code=True)

    def as_vbench(pixels):
        return prepare(pixels[middle_frames(len(pixels))], 224, "bicubic", True, CLIP)

    def as_demonstrated(pixels):
        frames = pixels[::max(1, len(pixels) // 8)][:8]
        square = F.interpolate(frames.float(), (224, 224), mode="bilinear", align_corners=False)
        return _normalize(square / 255, IMAGENET)

    def cosines(pixels, text):
        found = {}
        with torch.no_grad():
            words = model.encode_text(text).double().flatten()                   # (D,)
            for column, pick in (("OC", as_vbench), ("ViCLIP-T", as_demonstrated)):
                frames = pick(pixels)                   # (8, 3, 224, 224), or fewer of a short clip
                if len(frames) == 8:
                    seen = model.encode_vision(frames.to(device())[None], test=True).double()
                    found[column] = F.cosine_similarity(seen.flatten(), words, dim=0).item()
        return found
    return cosines


class Measures:
    """VBench's measures, those that there is an extractor for.

    stamp: names all that is looked through: part of a measured value's key.
    """

    def __init__(self, dino_name=None, clip_name=None, viclip_name=None, trust_remote_code=False):
        self.stamp = f"{VERSION} {dino_name} {clip_name} {viclip_name} "
        self.features = {}                               # {column: features(pixels) -> (F, D)}
        if dino_name:
            self.features["SC"] = dino(dino_name)
        if clip_name:
            self.features["BC"] = clip(clip_name)
        self.cosines = viclip(viclip_name, trust_remote_code) if viclip_name else None

    def __call__(self, pixels: torch.Tensor, text: str) -> dict[str, float]:
        """{column: value} of a clip (F, 3, H, W), uint8, and its instruction."""
        found = {"TF": temporal_flickering(pixels)}
        for column, features in self.features.items():
            found[column] = feature_consistency(features(pixels))
        if self.cosines:
            found |= self.cosines(pixels, text)
        return found


# ------------------------------------------------------------------------------- the vbench package

def vbench_results(folder: str | Path) -> dict[Path, dict[str, float]]:
    """{video: {column: value}} of the *_eval_results.json that vbench wrote.

    Where there are several files, the later name (they are dates) counts. A value that is not
    finite is left out. Raises BadInput where there is none, or one cannot be read.
    """
    files = sorted(Path(folder).rglob("*_eval_results.json"))
    if not files:
        raise BadInput(f"--vbench-results {folder}: holds no *_eval_results.json; run vbench first")
    found = {}
    for file in files:
        try:
            said = json.loads(file.read_text("utf-8"))
            rows = [(Path(video["video_path"]).resolve(), DIMENSIONS[name],
                     float(video["video_results"]))
                    for name, (_, videos) in said.items() if name in DIMENSIONS
                    for video in videos]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{file}: is no result of vbench ({error}); take it away") from error
        for path, column, value in rows:
            if math.isfinite(value):
                found.setdefault(path, {})[column] = value
    return found
