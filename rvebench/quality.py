"""Is the video a good video? VBench's measures, and what they look through (Sec. 5.2).

    python evaluate.py --manifest bench.jsonl --videos ours=out/ours --dino facebook/dino-vitb16 \\
        --clip openai/clip-vit-base-patch32

    TF        temporal flickering       pixels alone                                        temporal_flickering
    SC, BC    subject and background consistency, on features of DINO and of CLIP           feature_consistency
    OC        overall consistency       ViCLIP's cosine of text and 8 frames, VBench's way  text_consistency
    ViCLIP-T  the same cosine, the frames chosen and prepared as in ViCLIP's demonstration (the paper does not say)
    MS        motion smoothness         a network guesses each second frame                 motion_smoothness

Each is a short function on frames or features; what extracts the features is passed in. Real extractors come from
transformers, by id or local folder. There is no AMT-S in transformers: motion smoothness, and any of the others, is
taken from what the `vbench` package wrote in an environment of its own (`vbench_folder`, `vbench_results`). Left out:
DINO's own resizing of position embeddings: transformers' differs in the last digits where a clip is not square.

Axis letters: F frames, H W pixels, D width of a feature. Pixels are (F, 3, H, W), uint8.
"""

import json
import os
from pathlib import Path
from typing import Callable

import torch
import torch.nn.functional as F
from transformers import AutoModel

from common.files import BadInput, atomic_write
from common.video import to_bytes

COLUMNS = ("TF", "SC", "BC", "OC", "ViCLIP-T", "MS")
VBENCH = {"temporal_flickering": "TF", "subject_consistency": "SC", "background_consistency": "BC",
          "overall_consistency": "OC", "motion_smoothness": "MS"}
IMAGENET = (.485, .456, .406), (.229, .224, .225)        # mean, standard deviation
CLIP = (.48145466, .4578275, .40821073), (.26862954, .26130258, .27577711)
BATCH = 16                                               # frames that an extractor sees at a time


# ------------------------------------------------------------------------------------------------------- formulas

def _bytes(video: torch.Tensor) -> torch.Tensor:
    return video if video.dtype == torch.uint8 else to_bytes(video)


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """mean |a - b| of 8-bit values: exact, in whole numbers."""
    return (torch.maximum(a, b) - torch.minimum(a, b)).sum(dtype=torch.int64).item() / a.numel()


def temporal_flickering(video: torch.Tensor) -> float:
    """VBench's TF in 0..1: (255 - mean |I_t - I_{t+1}|) / 255 on 8-bit values; 1 is a still picture.

    video: (F, 3, H, W) in [-1, 1], or uint8, of full size. Raises ValueError for fewer than two frames.
    """
    if len(video) < 2:
        raise ValueError(f"temporal flickering needs two frames, not {len(video)}")
    x = _bytes(video)
    return (255 - _difference(x[1:], x[:-1])) / 255


def feature_consistency(features: torch.Tensor) -> float:
    """VBench's consistency in 0..1: the mean over t >= 1 of (max(0, cos(f_{t-1}, f_t)) + max(0, cos(f_0, f_t))) / 2.

    features: (F, D), one a frame: of DINO for the subject (SC), of CLIP for the background (BC). Raises ValueError for
    fewer than two frames, or features that are not finite.
    """
    if len(features) < 2 or not features.isfinite().all():
        raise ValueError(f"consistency needs finite features of two frames or more, not {tuple(features.shape)}")
    f = F.normalize(features.double(), dim=-1)
    before, first = (f[1:] * f[:-1]).sum(-1), (f[1:] * f[0]).sum(-1)                       # (F - 1,)
    return float((before.clamp_min(0) + first.clamp_min(0)).mean() / 2)


def motion_smoothness(video: torch.Tensor, interpolate: Callable) -> float:
    """VBench's MS in 0..1: (255 - mean |guess - frame|) / 255 over the odd frames, guessed from the even ones.

    video: (F, 3, H, W) in [-1, 1], or uint8. interpolate(before, after) -> the frames between, all (N, 3, H, W) in
    [-1, 1]; VBench's is AMT-S. An odd frame at the end has none after it and is left out. Raises ValueError for fewer
    than three frames.
    """
    if len(video) < 3:
        raise ValueError(f"motion smoothness needs three frames, not {len(video)}")
    x = _bytes(video)
    even = x[::2].float() / 127.5 - 1
    guess = _bytes(interpolate(even[:-1], even[1:]))
    return (255 - _difference(guess, x[1::2][:len(guess)])) / 255


def text_consistency(clip: torch.Tensor, text: torch.Tensor) -> float:
    """Cosine of a clip's and a text's feature, each (D,): VBench's OC, and ViCLIP-T."""
    return float(F.cosine_similarity(clip.double(), text.double(), dim=0))


def middle_frames(n: int, k: int = 8) -> list[int]:
    """The middles of k equal parts of n frames; of fewer than k frames each, and then the last one again."""
    ends = [n * i // min(k, n) for i in range(min(k, n) + 1)]
    found = [(a + b - 1) // 2 for a, b in zip(ends, ends[1:])]
    return found + found[-1:] * (k - len(found))


# ----------------------------------------------------------------------------------------------------- extractors

def _fit(pixels: torch.Tensor, side: int, mode: str, crop: bool, mean_std) -> torch.Tensor:
    """Short side to `side`, perhaps the middle square of it, normalised: (F, 3, H, W) uint8 -> (F, 3, h, w) float."""
    h, w = pixels.shape[-2:]
    size = [side * h // min(h, w), side * w // min(h, w)]
    x = F.interpolate(pixels.float(), size, mode=mode, antialias=True, align_corners=False) / 255
    if crop:
        top, left = round((size[0] - side) / 2), round((size[1] - side) / 2)
        x = x[..., top:top + side, left:left + side]
    mean, std = (torch.tensor(v, device=x.device).view(3, 1, 1) for v in mean_std)
    return (x - mean) / std


def _load(flag: str, name: str, **more):
    """A model of transformers by id or folder. Raises BadInput, naming the flag."""
    try:
        model = AutoModel.from_pretrained(name, dtype=torch.float32, **more)
    except Exception as error:                           # the hub, safetensors and foreign code raise what they like
        raise BadInput(f"{flag} {name}: cannot be loaded ({' '.join(str(error).split())[:200]}); give an id or a local "
                       f"folder") from error
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def _batches(extract: Callable, pixels: torch.Tensor, device) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([extract(some.to(device)).float().cpu() for some in pixels.split(BATCH)])


def dino(name: str) -> Callable:
    """features(pixels) -> (F, D): the class token of a DINO ViT, the short side at its own size. Raises BadInput."""
    model = _load("--dino", name)
    side = getattr(model.config, "image_size", None)
    if not isinstance(side, int):
        raise BadInput(f"--dino {name}: is no ViT; facebook/dino-vitb16 is VBench's")
    extract = lambda x: model(_fit(x, side, "bilinear", False, IMAGENET),
                              interpolate_pos_encoding=True).last_hidden_state[:, 0]
    return lambda pixels: _batches(extract, pixels, model.device)


def clip(name: str) -> Callable:
    """features(pixels) -> (F, D): CLIP's image embedding of the middle square. Raises BadInput."""
    model = _load("--clip", name)
    if not hasattr(model, "get_image_features") or not hasattr(model.config, "vision_config"):
        raise BadInput(f"--clip {name}: is no CLIP; openai/clip-vit-base-patch32 is VBench's")
    side = model.config.vision_config.image_size
    extract = lambda x: model.get_image_features(pixel_values=_fit(x, side, "bicubic", True, CLIP)).pooler_output
    return lambda pixels: _batches(extract, pixels, model.device)


def own_tower(model) -> Callable:
    """features(pixels) -> (F, D): the mean of the patch features of a UnifiedModel's own frozen vision tower."""
    def extract(x):
        with model.precision():
            return model.vlm.patches(x.float() / 127.5 - 1).mean(1)
    return lambda pixels: _batches(extract, pixels, model.device)


def viclip(name: str, trust_remote_code: bool) -> Callable:
    """cosines(pixels, text) -> {"OC", "ViCLIP-T"}. ViCLIP is code that comes with its weights: only run if trusted.

    It needs `encode_vision(frames (B, T, 3, 224, 224), test=True)` and `encode_text(text)`, as the authors' class has
    them; texts are cut at its own 32 tokens. Raises BadInput.
    """
    if not trust_remote_code:
        raise BadInput(f"--viclip {name}: runs code that comes with the model; read it, then pass --trust-remote-code")
    model = _load("--viclip", name, trust_remote_code=True)
    for method in ("encode_vision", "encode_text"):
        if not hasattr(model, method):
            raise BadInput(f"--viclip {name}: has no {method}(); OpenGVLab/ViCLIP-L-14-hf is the paper's")

    def cosines(pixels, text):
        with torch.no_grad():
            device = next(model.parameters()).device
            words = model.encode_text(text).float().cpu().reshape(-1)
            oc = _fit(pixels[middle_frames(len(pixels))].to(device), 224, "bicubic", True, CLIP)
            every = pixels[::max(1, len(pixels) // 8)][:8].to(device)                      # ViCLIP's demonstration
            square = F.interpolate(every.float(), (224, 224), mode="bilinear", align_corners=False) / 255
            mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in IMAGENET)
            ways = {"OC": oc, "ViCLIP-T": (square - mean) / std}
            return {column: text_consistency(model.encode_vision(x[None], test=True).float().cpu().reshape(-1), words)
                    for column, x in ways.items() if len(x) == 8}
    return cosines


class Measures:
    """Which columns can be measured, with what, and why the others cannot.

    labels: {column: how it is headed}. why: {column: reason} of the empty ones. stamp: names all that is looked through.
    """

    def __init__(self, dino_name=None, clip_name=None, viclip_name=None, trust_remote_code=False, model=None, own=""):
        self.labels = {column: column for column in COLUMNS}
        self.why = {"SC": "give --dino", "BC": "give --clip", "OC": "give --viclip", "ViCLIP-T": "give --viclip",
                    "MS": "give --vbench-results"}
        self.stamp = f"{dino_name} {clip_name} {viclip_name} {own}"
        self._dino, self._clip, self._viclip = None, None, None
        if dino_name:
            self._dino = dino(dino_name)
        elif model is not None:
            self._dino = own_tower(model)
            self.labels["SC"] = f"SC ({model.preset.name}'s own vision tower, not DINO)"
            self.why["BC"] = "the own tower has one feature, which is in SC: give --clip"
            self.why |= dict.fromkeys(("OC", "ViCLIP-T"), "the own tower reads no text: give --viclip")
        if clip_name:
            self._clip = clip(clip_name)
        if viclip_name:
            self._viclip = viclip(viclip_name, trust_remote_code)
        for column, there in (("SC", self._dino), ("BC", self._clip), ("OC", self._viclip), ("ViCLIP-T", self._viclip)):
            if there:
                self.why.pop(column, None)

    def __call__(self, pixels: torch.Tensor, text: str) -> dict[str, float]:
        """{column: value} of a clip (F, 3, H, W), uint8, and its instruction."""
        found = {"TF": temporal_flickering(pixels)}
        if self._dino:
            found["SC"] = feature_consistency(self._dino(pixels))
        if self._clip:
            found["BC"] = feature_consistency(self._clip(pixels))
        return found | (self._viclip(pixels, text) if self._viclip else {})


# --------------------------------------------------------------------------------------------- the vbench package

def vbench_folder(folder: Path, name: str, videos: dict[str, Path], texts: dict[str, str]) -> str:
    """Make what `vbench evaluate --mode=custom_input` wants of a method, and return the command.

    videos, texts: by id. folder/name holds links to the videos and nothing else, folder/name.json maps file to prompt.
    Raises BadInput where something else lies there.
    """
    here = folder / name
    here.mkdir(parents=True, exist_ok=True)
    for old in here.iterdir():
        if not old.is_symlink():
            raise BadInput(f"{old}: is none of our links, and would be measured too; take it away")
        old.unlink()
    for key, path in videos.items():
        os.symlink(os.path.abspath(path), here / f"{key}.mp4")
    atomic_write(folder / f"{name}.json", json.dumps({f"{key}.mp4": texts[key] for key in videos}, indent=1) + "\n")
    return (f"vbench evaluate --mode=custom_input --videos_path {here} --prompt_file {folder / name}.json "
            f"--output_path {folder}/results --dimension motion_smoothness")


def vbench_results(folder: str | Path) -> dict[tuple[str, str], dict[str, float]]:
    """{(method, id): {column: value}} of the *_eval_results.json that vbench wrote; a video's folder is its method.

    Where there are several files, the later name (they are dates) counts. Raises BadInput where none can be read.
    """
    found, files = {}, sorted(Path(folder).rglob("*_eval_results.json"))
    if not files:
        raise BadInput(f"--vbench-results {folder}: holds no *_eval_results.json; run vbench first")
    for file in files:
        try:
            for dimension, (_, videos) in json.loads(file.read_text()).items():
                for video in videos if dimension in VBENCH else []:
                    path, value = Path(video["video_path"]), float(video["video_results"])
                    found.setdefault((path.parent.name, path.stem), {})[VBENCH[dimension]] = value
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{file}: is no result of vbench ({error}); take it away") from error
    return found
