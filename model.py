"""The connector-based unified model: a frozen VLM understands, a DiT generates, a connector joins them (Sec. 4.1).

    python model.py                              # print the parts of the tiny preset and their sizes
    python model.py --preset wan1.3b             # the same for the real size, without allocating it
    python model.py convert --from revise_ckpt/ --to weights/revise/     # the authors' weights; see convert.py

Eq. 1   h = U(V_src, I)                          UnifiedModel.encode_vlm
        c = [VCA(E(V_src)); Adapter(ARHead(h)); T5(I)]   UnifiedModel.context
Eq. 2   x_t = (1 - t) x_0 + t eps, target eps - x_0      add_noise, velocity_target

Built from the classes of transformers and diffusers; ours are the connector's three small modules. One code path for
both sizes: a `Preset` holds nothing but sizes, ids and named switches.

Left out of the paper: the VLM's image *generation* head (ReViSE never calls it); VILA's audio and multi-image modes.

Axis letters: B batch, F frames, C channels, H W pixels, f h w latent frames and sides, T tokens, D width.
"""

import argparse
import copy
import json
import os
import shutil
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import diffusers
import torch
import torch.nn as nn
import torch.nn.functional as F
import transformers
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.checkpoint import checkpoint
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, SiglipVisionConfig, SiglipVisionModel, UMT5Config, UMT5EncoderModel

warnings.filterwarnings("ignore", message="enable_nested_tensor is True")                  # nn.Transformer, of norm_first
transformers.utils.logging.disable_progress_bar()        # loading and saving are silent; what goes wrong is raised
transformers.utils.logging.set_verbosity_error()
diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()
if not torch.cuda.is_available():                        # the faster kernels of a CPU: 1.5 times as many steps
    torch.set_float32_matmul_precision("medium")         # oneDNN's matrix products
    torch.backends.cuda.enable_flash_sdp(False)          # this switch is not CUDA's alone


# -------------------------------------------------------------------------------------------------------- presets

@dataclass(frozen=True)
class Preset:
    """Sizes and named switches of one model. The `dict`s go to the library classes as they are."""
    name: str
    frames: int                         # pixel frames of a clip: 4 k + 1
    height: int
    width: int
    vlm_frames: int                     # how many frames of a clip the VLM looks at, uniformly spaced
    vlm_size: int                       # they are resized to a square of this many pixels
    siglip: dict
    llama: dict
    t5: dict
    vae: dict
    dit: dict
    ar_width: int                       # ARHead
    ar_layers: int
    ar_heads: int
    adapter_layers: int                 # Adapter
    adapter_heads: int
    adapter_queries: int
    visual_kernel: int                  # side of the visual context adapter's patches, in latents
    visual_width: int
    context_length: int                 # the context is padded with zeros to this, and never cut
    text_length: int                    # longest T5 sequence
    ar_queries: int = 4
    vlm_pool: int = 1                   # the VLM's tokens of a frame are averaged over squares of this side
    use_visual_as_input: bool = False   # source latents beside x_t on the channel axis (the authors' switch; off there)
    visual_position: bool = False       # a learned position for each visual token (the authors' adapter has none)
    use_vlm: bool = True                # off: the VLM's states are zeros; the generator reads only T5 (an ablation)
    shift: float = 3.0                  # flow shift at inference
    first_frame: bool = False           # the condition h is of the source's first frame only, as the authors' is
    guidance_from: str = "cond"         # guided velocity: c + g (c - u) from "cond", u + g (c - u) from "uncond"
    order: tuple[str, ...] = ("img", "ipl", "prp")       # of the context: source, VLM states, T5 states
    bf16: bool = False                  # frozen parts in bfloat16, and products under autocast; G stays in float32
    paired: bool = False                # what the critic is shown: each token of the edit right after the source's
    decode: str = "exact"               # how the critic's K frames are decoded; see critic.decode_frames

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """(C, f, h, w) of one clip's latents."""
        s = self.vae["scale_factor_spatial"]
        return self.vae["z_dim"], (self.frames - 1) // 4 + 1, self.height // s, self.width // s


PRESETS = {
    "tiny": Preset(
        name="tiny", frames=9, height=32, width=32, vlm_frames=3, vlm_size=32,
        siglip=dict(hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
                    image_size=32, patch_size=4, vision_use_head=False),
        llama=dict(hidden_size=128, intermediate_size=256, num_hidden_layers=7, num_attention_heads=4,
                   num_key_value_heads=4, max_position_embeddings=512, vocab_size=1024, tie_word_embeddings=True),
        t5=dict(d_model=128, d_kv=32, d_ff=128, num_layers=2, num_heads=4, vocab_size=1024, dropout_rate=0.0),
        vae=dict(base_dim=16, z_dim=16, dim_mult=[1, 2, 4], num_res_blocks=1, temperal_downsample=[True, True],
                 scale_factor_spatial=4,
                 latents_mean=[0.] * 16, latents_std=[1.] * 16),
        dit=dict(patch_size=(1, 2, 2), num_attention_heads=4, attention_head_dim=48, in_channels=32, out_channels=16,
                 text_dim=128, freq_dim=128, ffn_dim=352, num_layers=5),
        ar_width=64, ar_layers=1, ar_heads=4, adapter_layers=1, adapter_heads=4, adapter_queries=4,
        visual_kernel=2, visual_width=128, context_length=128, text_length=48,
        use_visual_as_input=True, visual_position=True, paired=True, decode="alone"),
    "wan1.3b": Preset(
        name="wan1.3b", frames=17, height=352, width=640, vlm_frames=8, vlm_size=384,
        siglip=dict(hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16,
                    image_size=384, patch_size=14, vision_use_head=False),
        llama=dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
                   num_key_value_heads=8, max_position_embeddings=8192, vocab_size=128256, rope_theta=500000.0,
                   rms_norm_eps=1e-5),
        t5=dict(d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, vocab_size=256384,
                feed_forward_proj="gated-gelu", tie_word_embeddings=False),
        vae=dict(base_dim=96, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, temperal_downsample=[False, True, True],
                 scale_factor_spatial=8),
        dit=dict(patch_size=(1, 2, 2), num_attention_heads=12, attention_head_dim=128, in_channels=16, out_channels=16,
                 text_dim=4096, freq_dim=256, ffn_dim=8960, num_layers=30),
        ar_width=1152, ar_layers=4, ar_heads=8, adapter_layers=4, adapter_heads=8, adapter_queries=256,
        visual_kernel=4, visual_width=1536, context_length=2560, text_length=512, shift=5.0,
        first_frame=True, bf16=True),
}


# ------------------------------------------------------------------------------------------------- flow matching

def sample_timesteps(n: int, shift: float = 3.0, generator: torch.Generator | None = None) -> torch.Tensor:
    """Noise levels t (n,) in (0, 1]: u ~ U(0, 1), t = s u / (1 + (s - 1) u) with flow shift s.

    With s = 3, P(t < tau) = tau / (3 - 2 tau): the trigger rates of Table 6. Raises ValueError for shift <= 0.
    """
    if shift <= 0:
        raise ValueError(f"the flow shift must be positive, not {shift}")
    return shifted(1 - torch.rand(n, generator=generator), shift)                          # u in (0, 1]


def shifted(u: torch.Tensor, shift: float) -> torch.Tensor:
    """Noise levels t of uniform u in [0, 1], any shape: the flow shift spends more of them on much noise."""
    return shift * u / (1 + (shift - 1) * u)


def sample_timesteps_together(n: int, ranks: int, tau: float, shift: float = 3.0,
                              generator: torch.Generator | None = None) -> torch.Tensor:
    """As `sample_timesteps`, (n,), but of `ranks` samples in a row, one a rank, all are below tau or none is.

    They share one coin that shows "below" with P(t < tau); then each draws its own t of that part. So each sample's t is
    distributed as ever, and no rank asks the critic, which costs, while others wait. Raises ValueError for tau outside (0, 1].
    """
    if not 0 < tau <= 1:
        raise ValueError(f"tau must be in (0, 1], not {tau}")
    p = tau / (shift - (shift - 1) * tau)                                                  # P(t < tau)
    below = (torch.rand(-(-n // ranks), generator=generator) < p).repeat_interleave(ranks)[:n]
    u = 1 - torch.rand(n, generator=generator)                                             # in (0, 1]
    t = shifted(torch.where(below, p * u, p + (1 - p) * u), shift)
    edge = torch.tensor(float(tau))                      # rounding must not carry a rank over to the other side
    return torch.where(below, t.minimum(edge.nextafter(torch.tensor(0.))), t.maximum(edge))


def add_noise(x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Eq. 2: x_t = (1 - t) x_0 + t eps. x0, noise: (B, C, f, h, w); t: (B,)."""
    t = t.view(-1, 1, 1, 1, 1)
    return (1 - t) * x0 + t * noise


def velocity_target(x0: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Eq. 2: the velocity eps - x_0 that v_theta is trained to predict; shapes as given."""
    return noise - x0


def draws(step: int, seed: int, batch: int, shape: tuple, shift: float, tau: float | None = None, ranks: int = 1) -> tuple:
    """What is random in a step, from (seed, step) alone: t (B,), noise (B, C, f, h, w), condition dropout u (B,).

    tau: with it, `ranks` samples in a row are below it together; see `sample_timesteps_together`.
    """
    g = torch.Generator().manual_seed(seed * 1_000_003 + step)
    t = sample_timesteps(batch, shift, g) if tau is None else sample_timesteps_together(batch, ranks, tau, shift, g)
    return t, torch.randn(batch, *shape, generator=g), torch.rand(batch, generator=g)


# ------------------------------------------------------------------------------------------------------- the VLM

class DownsampleProjector(nn.Module):
    """VILA's `mlp_downsample`: 2x2 neighbouring patches become one token. (N, S*S, D) -> (N, ceil(S/2)^2, D')."""

    def __init__(self, vision_width: int, width: int):
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(4 * vision_width), nn.Linear(4 * vision_width, width), nn.GELU(),
                                    nn.Linear(width, width))

    def forward(self, x):
        n, patches, d = x.shape
        s = int(patches ** .5)
        x = x.view(n, s, s, d)
        x = F.pad(x, (0, 0, 0, s % 2, 0, s % 2))                                           # odd sides: zeros
        s = x.shape[1] // 2
        x = x.view(n, s, 2, s, 2, d).transpose(2, 3).reshape(n, s * s, 4 * d)
        return self.layers(x)


class VILA(nn.Module):
    """SigLIP -> projector -> Llama. Sees frames, reads and writes text; frozen after its own training."""

    def __init__(self, siglip: dict, llama: dict, frames: int, size: int, pool: int = 1):
        super().__init__()
        self.frames, self.size, self.pool = frames, size, pool
        self.vision_tower = SiglipVisionModel(SiglipVisionConfig(**siglip))
        self.mm_projector = DownsampleProjector(siglip["hidden_size"], llama["hidden_size"])
        self.llm = LlamaForCausalLM(LlamaConfig(**llama))
        self.tokenizer = None                                                              # set by load or training

    def pick(self, video: torch.Tensor) -> torch.Tensor:
        """`frames` frames of a clip (B, F, 3, H, W), uniformly spaced, the first and the last among them."""
        n = min(self.frames, video.shape[1])
        return video[:, torch.linspace(0, video.shape[1] - 1, n).round().long().to(video.device)]

    def patches(self, frames: torch.Tensor) -> torch.Tensor:
        """Patch features of frames (N, 3, H, W) in [-1, 1]: (N, S*S, D), SigLIP's hidden_states[-2].

        Differentiable in the pixels. SigLIP wants (x - 0.5) / 0.5 of values in [0, 1], and that is [-1, 1] again.
        """
        if frames.shape[-2:] != (self.size, self.size):
            frames = F.interpolate(frames, (self.size, self.size), mode="bicubic", antialias=True, align_corners=False)
        return self.vision_tower(frames, output_hidden_states=True).hidden_states[-2]

    def see(self, video: torch.Tensor) -> torch.Tensor:
        """Vision tokens of a clip (B, F, 3, H, W) in [-1, 1]: (B, K*tokens, D) for K picked frames."""
        frames = self.pick(video)                                                          # (B, K, 3, H, W)
        tokens = self.mm_projector(self.patches(frames.flatten(0, 1)))                     # (B*K, S*S, D)
        if self.pool > 1:
            grid = tokens.transpose(1, 2).unflatten(2, (int(tokens.shape[1] ** .5), -1))   # (B*K, D, S, S)
            tokens = F.avg_pool2d(grid, self.pool, ceil_mode=True).flatten(2).transpose(1, 2)
        return tokens.unflatten(0, frames.shape[:2]).flatten(1, 2)

    def words(self, text: str) -> torch.Tensor:
        """Embeddings (T, D) of a text; special tokens in it are read as such."""
        ids = self.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids[0]
        return self.llm.get_input_embeddings()(ids.to(self.llm.device))

    def join(self, rows: list[list[torch.Tensor | str]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of texts and vision tokens -> embeddings (B, T, D) and mask (B, T), padded on the left.

        On the left, so that the last position is the one to read in every row.
        """
        rows = [torch.cat([self.words(part) if isinstance(part, str) else part for part in row]) for row in rows]
        length = max(len(row) for row in rows)
        mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=rows[0].device)
        return torch.stack([F.pad(row, (0, 0, length - len(row), 0)) for row in rows]), mask

    def read(self, embeddings, mask, cache=None, hidden=False, last=False):
        """Run Llama over joined rows; `cache` holds what it has read before. Returns the library's output object.

        last: logits of the last position only; of all they are 128,256 numbers a token at the real size.
        """
        positions = (mask.cumsum(1) - 1).clamp_min(0)[:, -embeddings.shape[1]:]
        return self.llm(inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, past_key_values=cache,
                        use_cache=cache is not None, output_hidden_states=hidden, logits_to_keep=int(last))


def chat(system: str, user: list, answer: str | None = None) -> list:
    """Llama-3's chat, as a row for `VILA.join`: `user` is a list of texts and vision tokens; `answer` may be begun."""
    head = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n" + system + "<|eot_id|>"
    return [head + "<|start_header_id|>user<|end_header_id|>\n\n", *user,
            "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n" + (answer or "")]


GENERATE = "You are a helpful assistant that edits videos."      # system sentence of the generation chat (Eq. 1)
SPECIAL_TOKENS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "[GEN_VID]", "<pad>",
                  "Yes", "No"]


def make_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `texts` with the special tokens of our chats, for the tiny VLM and T5; it can read anything."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=SPECIAL_TOKENS,
                                                       show_progress=False,
                                                       initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", eos_token="<|eot_id|>")


# ------------------------------------------------------------------------------------------------- the connector

class ARHead(nn.Module):
    """Reads the VLM's states with 4 queries, into the space of SigLIP embeddings. (B, T, D_vlm) -> (B, 4, D_ar)."""

    def __init__(self, vlm_width, width, layers, heads, queries):
        super().__init__()
        self.decoder_query = nn.Parameter(torch.randn(1, queries, width) * .02)
        self.fc = nn.Sequential(nn.Linear(vlm_width, width), nn.GELU(), nn.Linear(width, width))
        self.visionHeadAdapter = nn.Transformer(width, heads, layers, layers, 4 * width, dropout=0., batch_first=True,
                                                norm_first=True)

    def forward(self, h, mask):
        pad = mask == 0
        return self.visionHeadAdapter(self.fc(h), self.decoder_query.expand(len(h), -1, -1),
                                      src_key_padding_mask=pad, memory_key_padding_mask=pad)


class Adapter(nn.Module):
    """Turns each of the 4 tokens, alone, into `queries` context tokens. (B, 4, D_ar) -> (B, 4*queries, D)."""

    def __init__(self, ar_width, width, layers, heads, queries):
        super().__init__()
        self.decoder_query = nn.Parameter(torch.randn(1, queries, width) * .02)
        self.fc = nn.Sequential(nn.Linear(ar_width, width), nn.GELU(), nn.Linear(width, width))
        self.adapter = nn.Transformer(width, heads, layers, layers, 4 * width, dropout=0., batch_first=True,
                                      norm_first=True)

    def forward(self, tokens):
        b, n, _ = tokens.shape
        source = self.fc(tokens).flatten(0, 1)[:, None]                                    # (B*4, 1, D)
        out = self.adapter(source, self.decoder_query.expand(b * n, -1, -1))               # (B*4, queries, D)
        return out.unflatten(0, (b, n)).flatten(1, 2)


class VisualContextAdapter(nn.Module):
    """Patches of the source latents as context tokens. (B, C, f, h, w) -> (B, f*h/k*w/k, D)."""

    def __init__(self, channels, width, out_width, kernel, position_shape=None):
        super().__init__()
        self.patch_embedding = nn.Conv3d(channels, width, (1, kernel, kernel), (1, kernel, kernel))
        self.projection = nn.Linear(width, out_width)
        if position_shape:
            f, h, w = position_shape
            self.position = nn.Parameter(torch.randn(1, f * (h // kernel) * (w // kernel), width) * .5)

    def forward(self, latents):
        x = self.patch_embedding(latents).flatten(2).transpose(1, 2)                       # (B, T, D)
        x = F.layer_norm(x, x.shape[-1:])
        if hasattr(self, "position"):
            x = x + self.position
        x = self.projection(x)
        return F.layer_norm(x, x.shape[-1:])


# --------------------------------------------------------------------------------------------- the unified model

FROZEN = ("vlm", "text_encoder", "vae", "ar_head", "adapter", "boundary")
TRAINED = ("transformer", "visual_context_adapter")                # G and the visual context adapter (Sec. 5.1)
LIBRARY = {"vlm.llm": LlamaForCausalLM, "vlm.vision_tower": SiglipVisionModel, "text_encoder": UMT5EncoderModel,
           "vae": AutoencoderKLWan, "transformer": WanTransformer3DModel}
OURS = ("vlm.mm_projector", "ar_head", "adapter", "visual_context_adapter", "boundary")


class UnifiedModel(nn.Module):
    """VLM U, connector, T5, VAE and the generator G (Wan's DiT). Random weights; see `from_preset`, `from_pretrained`."""

    def __init__(self, preset: Preset):
        super().__init__()
        self.preset = p = preset
        width = p.dit["text_dim"]
        self.vlm = VILA(p.siglip, p.llama, p.vlm_frames, p.vlm_size, p.vlm_pool)
        self.text_encoder = UMT5EncoderModel(UMT5Config(**p.t5))
        self.text_tokenizer = None
        self.lean = False                # run the VAE's decoder again in the backward pass; see scale.lean
        self.nothing = None              # the released condition of nothing, {"vlm", "text"}: (T, D); else it is encoded
        self.vae = AutoencoderKLWan(**p.vae)
        self.transformer = WanTransformer3DModel(**p.dit)
        self.ar_head = ARHead(p.llama["hidden_size"], p.ar_width, p.ar_layers, p.ar_heads, p.ar_queries)
        self.adapter = Adapter(p.ar_width, width, p.adapter_layers, p.adapter_heads, p.adapter_queries)
        c, *grid = p.latent_shape
        self.visual_context_adapter = VisualContextAdapter(c, p.visual_width, width, p.visual_kernel,
                                                           grid if p.visual_position else None)
        self.boundary = nn.ParameterDict({name: nn.Parameter(torch.randn(width))
                                          for name in ("img_st", "img_ed", "ipl_st", "ipl_ed", "prp_st", "prp_ed")})

    @property
    def device(self):
        return self.boundary["img_st"].device

    def look(self, frames: int | None = None, pool: int | None = None) -> None:
        """Change how many frames of a clip the VLM sees, and how coarsely; ValueError unless both are at least 1."""
        frames, pool = frames or self.preset.vlm_frames, pool or self.preset.vlm_pool
        if not (1 <= frames <= self.preset.frames and 1 <= pool):
            raise ValueError(f"the VLM can look at 1 to {self.preset.frames} frames, pooled by 1 or more, "
                             f"not at {frames} pooled by {pool}")
        self.preset = replace(self.preset, vlm_frames=frames, vlm_pool=pool)
        self.vlm.frames, self.vlm.pool = frames, pool

    def without(self, parts: list[str]) -> None:
        """Switch parts off, for ablations: "vlm" (its states are zeros) or "position" (of the visual context adapter)."""
        if "position" in parts and hasattr(self.visual_context_adapter, "position"):
            del self.visual_context_adapter.position
        self.preset = replace(self.preset, use_vlm=self.preset.use_vlm and "vlm" not in parts,
                              visual_position=self.preset.visual_position and "position" not in parts)

    def freeze(self) -> list[nn.Parameter]:
        """Freeze everything but G and the visual context adapter; returns the parameters to train (Sec. 5.1)."""
        self.requires_grad_(False)
        trained = [p for name in TRAINED for p in getattr(self, name).requires_grad_(True).parameters()]
        self.eval()
        return trained

    # ---- encode: once for each clip and instruction

    @torch.no_grad()
    def encode_video(self, video: torch.Tensor) -> torch.Tensor:
        """E(V): normalised latents (B, C, f, h, w) of clips (B, F, 3, H, W) in [-1, 1]."""
        z = self.vae.encode(video.transpose(1, 2)).latent_dist.mode()
        mean, std = self._latent_scale(z)
        return ((z - mean) / std).float()

    def decode_video(self, latents: torch.Tensor) -> torch.Tensor:
        """D(x): clips (B, F, 3, H, W) in [-1, 1] from normalised latents (B, C, f, h, w); differentiable.

        The VAE clamps: a saturated pixel passes no gradient.
        """
        mean, std = self._latent_scale(latents)
        z = latents * std + mean
        lean = self.lean and torch.is_grad_enabled() and z.requires_grad
        return (self.decode_lean(z) if lean else self.vae.decode(z).sample).transpose(1, 2).float()

    def decode_lean(self, z: torch.Tensor) -> torch.Tensor:
        """vae.decode with memory for one latent frame: (B, C, f, h, w) -> (B, 3, F, H, W).

        The library's own loop, in which its cache of earlier frames, instead of being changed in place, goes into each
        frame's decoding and comes out of it. So a frame can be run again in the backward pass.
        """
        def decode(first, x, *cache):
            cache = list(cache)
            return self.vae.decoder(x, feat_cache=cache, feat_idx=[0], first_chunk=first), *cache
        z, cache, frames = self.vae.post_quant_conv(z), [None] * self.vae._cached_conv_counts["decoder"], []
        for i in range(z.shape[2]):
            frame, *cache = checkpoint(decode, i == 0, z[:, :, i:i + 1], *cache, use_reentrant=False)
            frames.append(frame)
        return torch.cat(frames, 2).clamp(-1, 1)

    def _latent_scale(self, like):
        return (torch.tensor(x, device=like.device, dtype=like.dtype).view(1, -1, 1, 1, 1)
                for x in (self.vae.config.latents_mean, self.vae.config.latents_std))

    @torch.no_grad()
    def encode_vlm(self, source: torch.Tensor, instructions: list[str]) -> list[torch.Tensor]:
        """Eq. 1: h = U(V_src, I), the last hidden states over frames and instruction; one (T, D) for each row.

        source: (B, F, 3, H, W) in [-1, 1]. Rows differ in length, so they come as a list.
        """
        seen = self.vlm.see(source[:, :1] if self.preset.first_frame else source)
        rows = [chat(GENERATE, [seen[i], text], "[GEN_VID]") for i, text in enumerate(instructions)]
        embeddings, mask = self.vlm.join(rows)
        h = self.vlm.read(embeddings, mask, hidden=True).hidden_states[-1]                 # (B, T, D)
        return [row[m.bool()] * self.preset.use_vlm for row, m in zip(h, mask)]

    def encode_text(self, instructions: list[str]) -> list[torch.Tensor]:
        """T5(I): one (T, D) for each row, padding taken off. Raises ValueError where a text is longer than the preset's."""
        batch = self.text_tokenizer(instructions, padding=True, return_tensors="pt").to(self.device)
        if batch.input_ids.shape[1] > self.preset.text_length:
            raise ValueError(f"an instruction is {batch.input_ids.shape[1]} tokens long, the limit is "
                             f"{self.preset.text_length}: shorten {max(instructions, key=len)!r}")
        h = self.text_encoder(**batch).last_hidden_state
        return [row[m.bool()] for row, m in zip(h, batch.attention_mask)]

    @torch.no_grad()
    def unconditional(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(VLM states, T5 states) of nothing: a grey clip and an empty instruction; for dropout and guidance."""
        if self.nothing:                                 # the authors ship theirs
            return self.nothing["vlm"].to(self.device), self.nothing["text"].to(self.device)
        grey = torch.zeros(1, self.preset.frames, 3, self.preset.height, self.preset.width, device=self.device)
        return self.encode_vlm(grey, [""])[0], self.encode_text(["<pad>"])[0]

    # ---- the condition c and the generator G

    def bridge(self, h: list[torch.Tensor]) -> torch.Tensor:
        """Adapter(ARHead(h)): VLM states, one (T, D) a row, to context tokens (B, 4*queries, D)."""
        length = max(map(len, h))
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in h], device=self.device)
        h = torch.stack([F.pad(row, (0, 0, 0, length - len(row))) for row in h])
        return self.adapter(self.ar_head(h, mask))

    def context(self, source: torch.Tensor, bridged: torch.Tensor, text: list[torch.Tensor]) -> torch.Tensor:
        """c = [VCA(E(V_src)); Adapter(ARHead(h)); T5(I)] with boundary tokens, zeros to the preset's length.

        source: latents (B, C, f, h, w); bridged: (B, T, D) from `bridge`; text: one (T, D) a row.
        Returns (B, context_length, D). Raises ValueError where it does not fit: it is never cut in silence.
        """
        visual = self.visual_context_adapter(source)                                       # (B, T, D)
        e = {name: p[None] for name, p in self.boundary.items()}
        rows = [torch.cat([x for name in self.preset.order for x in (e[f"{name}_st"], parts[name], e[f"{name}_ed"])])
                for parts in ({"img": v, "ipl": a, "prp": s} for v, a, s in zip(visual, bridged, text))]
        longest, limit = max(map(len, rows)), self.preset.context_length
        if longest > limit:
            raise ValueError(f"the context is {longest} tokens long, its limit is {limit}: {visual.shape[1]} of them "
                             f"show the source; use fewer frames or a smaller picture")
        return torch.stack([F.pad(row, (0, 0, 0, limit - len(row))) for row in rows])

    def velocity(self, x_t: torch.Tensor, t: torch.Tensor, context: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """v_theta(x_t, t, c): (B, C, f, h, w). t: (B,) in (0, 1]; source: latents, used where the preset says so."""
        x = torch.cat([x_t, source], 1) if self.preset.use_visual_as_input else x_t
        return self.transformer(x, t * 1000, context).sample

    @torch.no_grad()
    def sample(self, source: torch.Tensor, instructions: list[str], steps: int = 12, guidance: float = 1.0,
               seed: int = 0, progress=lambda steps: steps) -> torch.Tensor:
        """Edit clips: `steps` Euler steps from noise to a clip.

        source: (B, F, 3, H, W) in [-1, 1]; returns the same shape. guidance g: cond + g (cond - uncond), so 0 is none
        and the authors' 3 is the usual 4. Row i is drawn from seed + i: the same whatever the batch.
        """
        with self.precision():
            return self._sample(source, instructions, steps, guidance, seed, progress)

    def _sample(self, source, instructions, steps, guidance, seed, progress):
        latents = self.encode_video(source)
        c = self.context(latents, self.bridge(self.encode_vlm(source, instructions)), self.encode_text(instructions))
        if guidance:
            h, s = self.unconditional()
            n = len(latents)
            c = torch.cat([c, self.context(latents, self.bridge([h]).expand(n, -1, -1), [s] * n)])
        x = torch.stack([torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(seed + i))
                         for i in range(len(latents))]).to(latents)
        ts = shifted(torch.linspace(1, 0, steps + 1), self.preset.shift).tolist()
        for t, t_next in progress(list(zip(ts[:-1], ts[1:]))):
            k = 2 if guidance else 1
            v = self.velocity(x.repeat(k, 1, 1, 1, 1), x.new_full((k * len(x),), t), c, latents.repeat(k, 1, 1, 1, 1))
            if guidance:
                cond, uncond = v.chunk(2)
                v = (cond if self.preset.guidance_from == "cond" else uncond) + guidance * (cond - uncond)
            x = x + (t_next - t) * v                                                       # one Euler step
        return self.decode_video(x)

    # ---- load and save

    @classmethod
    def from_preset(cls, name: str, weights: str | None = None) -> "UnifiedModel":
        """The model of a preset with its pretrained parts, from `weights` (default: weights/<name> beside this file)."""
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
        model = cls.from_pretrained(weights or Path(__file__).parent / "weights" / name)
        if model.preset.name != name:
            raise ValueError(f"{weights} holds preset {model.preset.name!r}, not {name!r}: "
                             f"pass --preset {model.preset.name}")
        return model

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "UnifiedModel":
        """Load what `save_pretrained` wrote. Raises FileNotFoundError or ValueError, naming what is missing or misfits."""
        folder = Path(folder)
        if (folder / "ar_model").is_dir():               # the authors' directory, as it was downloaded
            from realsize.convert import read_released
            return read_released(folder).cast().eval()
        if not (folder / "model.json").is_file():
            raise FileNotFoundError(f"{folder}/model.json is missing: {folder} is no model folder")
        record = json.loads((folder / "model.json").read_text())
        if record.get("preset") not in PRESETS:
            raise ValueError(f"{folder}/model.json names preset {record.get('preset')!r}: known are {', '.join(PRESETS)}")
        with torch.device("meta"):                       # every part is replaced by a file's
            model = cls(PRESETS[record["preset"]])
        model.look(record.get("vlm_frames"), record.get("vlm_pool"))
        model.without(record.get("without", []))
        frozen = folder / record["frozen"] if record["frozen"] else folder                 # a run keeps only G
        parts = {"tokenizer": frozen, "text_tokenizer": frozen}
        parts |= {name if name in LIBRARY else f"{name}.safetensors": folder if name in TRAINED else frozen
                  for name in (*LIBRARY, *OURS)}
        for name, home in parts.items():                         # else the libraries look for it on the hub
            if not (home / name).exists():
                raise FileNotFoundError(f"{home / name} is missing: {folder} cannot be used without it")
        model.vlm.tokenizer = AutoTokenizer.from_pretrained(frozen / "tokenizer")
        model.text_tokenizer = AutoTokenizer.from_pretrained(frozen / "text_tokenizer")
        for name in (*LIBRARY, *OURS):
            home = folder if name in TRAINED else frozen
            if name in LIBRARY:
                part, info = LIBRARY[name].from_pretrained(home / name, torch_dtype=model.dtype_of(name),
                                                           output_loading_info=True, ignore_mismatched_sizes=True)
                wrong = {k: [x if isinstance(x, str) else x[0] for x in v] for k, v in info.items() if v}
                if wrong:
                    raise ValueError(f"{home / name} does not fit preset {record['preset']!r}: {wrong}")
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, part)
            else:
                model.get_submodule(name).load_state_dict(load_file(home / f"{name}.safetensors"), assign=True)
        if (frozen / "unconditional.safetensors").is_file():
            model.nothing = load_file(frozen / "unconditional.safetensors")
        return model.cast().eval()

    def cast(self) -> "UnifiedModel":
        """Each part in its `dtype_of`; its parameters only: some buffers, of positions, are in float32 always."""
        for name in (*LIBRARY, *OURS):
            for p in self.get_submodule(name).parameters():
                p.data = p.data.to(self.dtype_of(name))
        return self

    def dtype_of(self, part: str) -> torch.dtype:
        """float32; bfloat16 for frozen parts where the preset says so. Not for the VAE: it is small, and it shows."""
        return torch.bfloat16 if self.preset.bf16 and part not in ("vae", *TRAINED) else torch.float32

    def precision(self):
        """Autocast to bfloat16 where the preset says so; else it does nothing."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.preset.bf16,
                              cache_enabled=False)       # a weight cast without gradient would be used again with one

    def save_pretrained(self, folder: str | Path, frozen: str | Path | None = None, dtype=torch.float32,
                        parts: tuple[str, ...] | None = None) -> None:
        """Write a model folder: `model.json` and safetensors for each part, under a temporary name and then renamed.

        frozen: a folder that holds the frozen parts; then only G and the visual context adapter are written.
        parts: write these and no tokenizer; such a folder is not loaded whole. dtype: None leaves each as it is.
        """
        folder, temporary = Path(folder), Path(f"{folder}.tmp{os.getpid()}")
        try:
            temporary.mkdir(parents=True)
            for name in parts or (TRAINED if frozen else (*LIBRARY, *OURS)):
                part = self.get_submodule(name)
                if name in LIBRARY:
                    part = part if dtype in (None, torch.float32) else copy.deepcopy(part).to(dtype)
                    part.save_pretrained(temporary / name)
                    config = temporary / name / "config.json"
                    kept = json.loads(config.read_text())
                    kept.pop("_name_or_path", None)      # a path of this machine
                    config.write_text(json.dumps(kept, indent=2) + "\n")
                else:
                    save_file({k: v.to(dtype or v.dtype).contiguous() for k, v in part.state_dict().items()},
                              temporary / f"{name}.safetensors")
            if not (frozen or parts):
                self.vlm.tokenizer.save_pretrained(temporary / "tokenizer")
                self.text_tokenizer.save_pretrained(temporary / "text_tokenizer")
                if self.nothing:
                    save_file({k: v.contiguous() for k, v in self.nothing.items()}, temporary / "unconditional.safetensors")
            frozen = os.path.relpath(Path(frozen).resolve(), folder.resolve()) if frozen else None
            off = ["vlm"] * (not self.preset.use_vlm)
            off += ["position"] * (PRESETS[self.preset.name].visual_position and not self.preset.visual_position)
            (temporary / "model.json").write_text(json.dumps(
                {"preset": self.preset.name, "frozen": frozen, "vlm_frames": self.preset.vlm_frames,
                 "vlm_pool": self.preset.vlm_pool, "without": off}) + "\n")
            old = Path(f"{folder}.old{os.getpid()}")
            if folder.exists():
                folder.rename(old)
            temporary.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["convert"]:
        from realsize import convert
        from common.files import run_script
        run_script(lambda: convert.main(sys.argv[2:]), "stopped; nothing was written")
        sys.exit()
    parser = argparse.ArgumentParser(description="Print the parts of a preset and their numbers of parameters.")
    parser.add_argument("--preset", choices=PRESETS, default="tiny", help="which size (default: tiny)")
    with torch.device("meta"):
        model = UnifiedModel(PRESETS[parser.parse_args().preset])
    for name in (*LIBRARY, *OURS):
        n = sum(p.numel() for p in model.get_submodule(name).parameters())
        print(f"{name:24s}{n:15,d}   {'trained' if name in TRAINED else 'frozen'}")
    print(f"{'total':24s}{sum(p.numel() for p in model.parameters()):15,d}")
