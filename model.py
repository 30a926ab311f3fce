"""The unified model: a VLM understands, a DiT generates, a connector joins them (Sec. 4.1).

    python model.py                              # the parts of the tiny preset and their sizes
    python model.py --preset wan1.3b             # the same for the real size, without allocating it

Eq. 1   h = U(V_src, I)                                          UnifiedModel.encode_vlm
        c = [VCA(E(V_src)); Adapter(ARHead(h)); T5(I)]           UnifiedModel.context
Eq. 2   x_t = (1 - t) x_0 + t eps, velocity eps - x_0            add_noise, velocity_target

Built from the classes of transformers and diffusers; ours are the connector's three small modules.
The VLM is in vlm.py, the sizes are in presets.py, and one code path serves both sizes.

Left out of the paper: the VLM's image *generation* head (ReViSE never calls it).

The paper's letters: U the VLM, G the DiT, E and D the VAE's encoder and decoder, VCA the visual
context adapter, V_src the source video, I the instruction, h what U makes of both, c the condition.

Axis letters: B batch, F frames, C channels, H W pixels, f h w latent frames and sides, T tokens, D
width.
"""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from safetensors import SafetensorError
from torch.nn.utils.rnn import pad_sequence
from transformers import UMT5Config, UMT5EncoderModel

import common.precision
from common.files import BadInput, Parser, run_script
from common.precision import autocast, fold_first_frame, keep_ends_in_float32
from common.unipc import unipc
from common.weights import read_parts, read_preset, write_parts
from presets import PARTS, PRESETS, TRAINED, Preset
from vlm import VILA, chat


# ------------------------------------------------------------------------------------ flow matching

def sample_timesteps(n: int, shift: float = 3.0,
                     generator: torch.Generator | None = None) -> torch.Tensor:
    """Noise levels t (n,) in (0, 1]: u ~ U(0, 1), t = s u / (1 + (s - 1) u) with flow shift s.

    With s = 3, P(t < tau) = tau / (3 - 2 tau): the trigger rates of Table 6. ValueError for shift
    <= 0.
    """
    if shift <= 0:
        raise ValueError(f"the flow shift must be positive, not {shift}")
    u = 1 - torch.rand(n, generator=generator)                               # in (0, 1]
    return shifted(u, shift)


def shifted(u: torch.Tensor, shift: float) -> torch.Tensor:
    """Noise levels t of uniform u in [0, 1], any shape: a shift above 1 draws more high ones."""
    return shift * u / (1 + (shift - 1) * u)


def add_noise(x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Eq. 2: x_t = (1 - t) x_0 + t eps. x0, noise: (B, C, f, h, w); t: (B,)."""
    t = t.view(-1, 1, 1, 1, 1)
    return (1 - t) * x0 + t * noise


def velocity_target(x0: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Eq. 2: the velocity eps - x_0 that v_theta is trained to predict; shapes as given."""
    return noise - x0


def flow_loss(v: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Eq. 2, one value a sample: mean squared error of the velocity. (B, C, f, h, w) -> (B,)."""
    return (v - target).pow(2).mean((1, 2, 3, 4))


def euler(velocity, x: torch.Tensor, steps: int, shift: float, progress=list) -> torch.Tensor:
    """Integrate dx / dt = velocity(x, t) from noise x at t = 1 to a clip at t = 0: Euler steps.

    x: (B, C, f, h, w); t is a float. progress: wraps the list of steps, as tqdm does.
    """
    ts = shifted(torch.linspace(1, 0, steps + 1), shift).tolist()
    for t, t_next in progress(list(pairwise(ts))):
        x = x + (t_next - t) * velocity(x, t)
    return x


ROLLOUT_STEPS = 6


@torch.no_grad()
def rollout(model, noise: torch.Tensor, t: torch.Tensor, c: torch.Tensor, source: torch.Tensor,
            steps: int = ROLLOUT_STEPS) -> torch.Tensor:
    """The model's own x_t, where it comes to from pure noise: (B, C, f, h, w), without gradient.

    noise, source: (B, C, f, h, w); t: (B,), each row goes to its own, in `steps` equal Euler steps;
    c: (B, T, D).
    """
    x, now = noise, torch.ones_like(t)
    for k in range(steps):
        then = 1 + (t - 1) * (k + 1) / steps                                 # (B,)
        x = x + (then - now).view(-1, 1, 1, 1, 1) * model.velocity(x, now, c, source)
        now = then
    return x


# ------------------------------------------------------------------------------------ the connector

# Names of attributes are those of the released checkpoint.

class ARHead(nn.Module):
    """Reads the VLM's states with 4 queries, into SigLIP's space. (B, T, D_vlm) -> (B, 4, D_ar)."""

    def __init__(self, vlm_width, width, layers, heads, queries):
        super().__init__()
        self.decoder_query = nn.Parameter(torch.randn(1, queries, width) * .02)
        self.fc = nn.Sequential(nn.Linear(vlm_width, width), nn.GELU(), nn.Linear(width, width))
        self.visionHeadAdapter = nn.Transformer(width, heads, layers, layers, 4 * width, dropout=0.,
                                                batch_first=True, norm_first=True)

    def forward(self, h, mask):
        pad = mask == 0
        queries = self.decoder_query.expand(len(h), -1, -1)
        return self.visionHeadAdapter(self.fc(h), queries, src_key_padding_mask=pad,
                                      memory_key_padding_mask=pad)


class Adapter(nn.Module):
    """Turns each of the 4 tokens alone into Q context tokens. (B, 4, D_ar) -> (B, 4*Q, D)."""

    def __init__(self, ar_width, width, layers, heads, queries):
        super().__init__()
        self.decoder_query = nn.Parameter(torch.randn(1, queries, width) * .02)
        self.fc = nn.Sequential(nn.Linear(ar_width, width), nn.GELU(), nn.Linear(width, width))
        self.adapter = nn.Transformer(width, heads, layers, layers, 4 * width, dropout=0.,
                                      batch_first=True, norm_first=True)

    def forward(self, tokens):
        b, n, _ = tokens.shape
        source = self.fc(tokens).flatten(0, 1)[:, None]                      # (B*4, 1, D)
        queries = self.decoder_query.expand(b * n, -1, -1)                   # (B*4, queries, D)
        return self.adapter(source, queries).unflatten(0, (b, n)).flatten(1, 2)


class VisualContextAdapter(nn.Module):
    """Patches of the source latents as context tokens. (B, C, f, h, w) -> (B, f * h/k * w/k, D).

    k: the patch's side. The layer norms have no weights, as the authors'.
    """

    def __init__(self, channels, width, out_width, kernel, eps, position_shape=None):
        super().__init__()
        self.eps = eps
        self.patch_embedding = nn.Conv3d(channels, width, (1, kernel, kernel), (1, kernel, kernel))
        self.projection = nn.Linear(width, out_width)
        if position_shape:
            f, h, w = position_shape
            tokens = f * (h // kernel) * (w // kernel)
            self.position = nn.Parameter(torch.randn(1, tokens, width) * .5)

    def forward(self, latents):
        x = self.patch_embedding(latents).flatten(2).transpose(1, 2)         # (B, T, D)
        x = F.layer_norm(x, x.shape[-1:], eps=self.eps)
        if hasattr(self, "position"):
            x = x + self.position
        x = self.projection(x)
        return F.layer_norm(x, x.shape[-1:], eps=self.eps)


# -------------------------------------------------------------------------------- the unified model

# the tokens around the parts of c: the source (img), what U makes of it (ipl), T5's states (prp)
BOUNDARY = ("img_st", "img_ed", "ipl_st", "ipl_ed", "prp_st", "prp_ed")


class UnifiedModel(nn.Module):
    """VLM U, connector, T5, VAE and the generator G (Wan's DiT), with random weights.

    `from_preset` and `from_pretrained` load pretrained ones.
    """

    def __init__(self, preset: Preset):
        super().__init__()
        self.preset = p = preset
        llm_width, width = p.llama["hidden_size"], p.dit["text_dim"]
        channels, *grid = p.latent_shape
        self.vlm = VILA(p.siglip, p.llama, p.vlm_frames, p.vlm_size, p.patches_by_column)
        self.text_encoder = UMT5EncoderModel(UMT5Config(**p.t5))
        self.text_tokenizer = None
        self.vae = AutoencoderKLWan(**p.vae)
        self.vae.decoder.apply(fold_first_frame)         # the same numbers in less time
        self.transformer = WanTransformer3DModel(**p.dit)
        self.ar_head = ARHead(llm_width, p.ar_width, p.ar_layers, p.ar_heads, p.ar_queries)
        self.adapter = Adapter(p.ar_width, width, p.adapter_layers, p.adapter_heads,
                               p.adapter_queries)
        self.visual_context_adapter = VisualContextAdapter(
            channels, p.visual_width, width, p.visual_kernel, p.visual_eps,
            grid if p.visual_position else None)
        self.boundary = nn.ParameterDict()
        for name in BOUNDARY:
            self.boundary[name] = nn.Parameter(torch.randn(width))
        self.released_unconditional = None  # {"vlm", "text"}: (T, D), if the weights bring them

    @property
    def device(self):
        return self.boundary["img_st"].device

    def set_vlm_frames(self, frames: int | None) -> None:
        """How many frames the VLM sees; None: the preset's. ValueError: a clip has fewer."""
        frames = frames or self.preset.vlm_frames
        if not 1 <= frames <= self.preset.frames:
            raise ValueError(f"the VLM can look at 1 to {self.preset.frames} frames, "
                             f"not at {frames}")
        self.preset = replace(self.preset, vlm_frames=frames)
        self.vlm.frames = frames

    def set_boundary(self, tokens: dict[str, torch.Tensor]) -> None:
        """The boundary tokens of the context, each (D,), or (rows, D) as the released ones.

        Raises ValueError where their names or widths are others.
        """
        if set(tokens) != set(BOUNDARY):
            raise ValueError(f"the boundary tokens are {', '.join(BOUNDARY)}, "
                             f"not {', '.join(tokens)}")
        for name, token in tokens.items():
            if token.ndim > 2 or token.shape[-1] != self.preset.dit["text_dim"]:
                raise ValueError(f"boundary token {name} has shape {tuple(token.shape)}")
            self.boundary[name] = nn.Parameter(token)

    def freeze(self) -> list[nn.Parameter]:
        """Freeze all but G and the visual context adapter; returns what is trained (Sec. 5.1)."""
        self.requires_grad_(False)
        self.eval()
        trained = [getattr(self, name).requires_grad_(True) for name in TRAINED]
        return [p for part in trained for p in part.parameters()]

    # ---- encode: once for each clip and instruction

    @torch.no_grad()
    def encode_video(self, video: torch.Tensor) -> torch.Tensor:
        """E(V): normalised latents (B, C, f, h, w) of clips (B, F, 3, H, W) in [-1, 1].

        In float32.
        """
        with torch.autocast(self.device.type, enabled=False):
            z = self.vae.encode(video.float().transpose(1, 2)).latent_dist.mode()
        mean, std = self._latent_scale(z)
        return ((z - mean) / std).float()

    def decode_video(self, latents: torch.Tensor) -> torch.Tensor:
        """D(x), differentiable: latents (B, C, f, h, w) -> clips (B, F, 3, H, W) in [-1, 1].

        In float32. The VAE clamps: a saturated pixel passes no gradient.
        """
        mean, std = self._latent_scale(latents)
        with torch.autocast(self.device.type, enabled=False):
            return self.run_decoder((latents * std + mean).float()).transpose(1, 2)

    def run_decoder(self, z: torch.Tensor) -> torch.Tensor:
        """The VAE's decoder: (B, C, f, h, w) -> (B, 3, F, H, W). realsize/ replaces it."""
        return self.vae.decode(z).sample

    def _latent_scale(self, z):
        """Mean and standard deviation of the latents' channels, (1, C, 1, 1, 1) each."""
        config = self.vae.config
        return z.new_tensor([config.latents_mean, config.latents_std]).view(2, 1, -1, 1, 1, 1)

    @torch.no_grad()
    def encode_vlm(self, source: torch.Tensor, instructions: list[str]) -> list[torch.Tensor]:
        """Eq. 1: h = U(V_src, I), the last hidden states over frames and instruction, (T, D) a row.

        source: (B, F, 3, H, W) in [-1, 1]. Rows differ in length, so they come as a list. Raises
        ValueError where an instruction is too long.
        """
        said = self.preset.chat
        with autocast(self.device, self.preset.bf16, self.vlm.llm.dtype):
            seen = self.vlm.see(source[:, :1] if self.preset.first_frame else source)
            rows = [chat(said.system, [tokens, said.prefix + text], said.answer)
                    for tokens, text in zip(seen, instructions)]
            embeddings, mask = self.vlm.join(rows)
            h = self.vlm.read(embeddings, mask, hidden=True).hidden_states[-1].float()
        return [row[m.bool()] for row, m in zip(h, mask)]

    def encode_text(self, instructions: list[str]) -> list[torch.Tensor]:
        """T5(I): one (T, D) a row, without padding.

        Raises ValueError where a text is too long, or holds half of a character (a surrogate).
        """
        "".join(instructions).encode()                   # half of a character is a ValueError
        instructions = [prompt_clean(text) for text in instructions]
        for text in instructions:
            n = len(self.text_tokenizer(text).input_ids)
            if n > self.preset.text_length:
                raise ValueError(f"an instruction is {n} tokens long, the limit is "
                                 f"{self.preset.text_length}: shorten {text[:80]!r}")
        batch = self.text_tokenizer(instructions, padding=True, return_tensors="pt").to(self.device)
        h = self.text_encoder(**batch).last_hidden_state                     # (B, T, D)
        return [row[m.bool()] for row, m in zip(h, batch.attention_mask)]

    @torch.no_grad()
    def unconditional(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(VLM states, T5 states) of a grey clip and no instruction; for dropout and guidance."""
        if self.released_unconditional:
            vlm, text = self.released_unconditional["vlm"], self.released_unconditional["text"]
            return vlm.to(self.device).float(), text.to(self.device).float()
        p = self.preset
        grey = torch.zeros(1, p.frames, 3, p.height, p.width, device=self.device)
        nothing = self.encode_text(["<pad>"])[0]         # an empty text may be no token at all
        return self.encode_vlm(grey, [""])[0], nothing

    # ---- the condition c and the generator G

    def bridge(self, h: list[torch.Tensor]) -> torch.Tensor:
        """Adapter(ARHead(h)): VLM states, one (T, D) a row, to context tokens (B, 4*queries, D)."""
        lengths = torch.tensor([len(row) for row in h], device=self.device)
        states = pad_sequence(h, batch_first=True)                           # (B, T, D)
        mask = torch.arange(states.shape[1], device=self.device) < lengths[:, None]
        return self.adapter(self.ar_head(states, mask))

    def context(self, source: torch.Tensor, bridged: torch.Tensor,
                text: list[torch.Tensor]) -> torch.Tensor:
        """Eq. 1: c = [VCA(E(V_src)); Adapter(ARHead(h)); T5(I)], boundary tokens around each part.

        source: latents (B, C, f, h, w); bridged: (B, T, D) from `bridge`; text: one (T, D) a row.
        Returns (B, context_length, D), filled up with zeros, to which G attends: Wan's
        cross-attention has no mask. Raises ValueError where it does not fit: it is never cut in
        silence.
        """
        visual = self.visual_context_adapter(source)                         # (B, T, D)
        edge = {name: token.view(-1, token.shape[-1]) for name, token in self.boundary.items()}
        rows = []
        for seen, understood, told in zip(visual, bridged, text):
            rows.append(torch.cat([edge["img_st"], seen, edge["img_ed"],
                                   edge["ipl_st"], understood, edge["ipl_ed"],
                                   edge["prp_st"], told, edge["prp_ed"]]))   # (T, D)
        longest, limit = max(map(len, rows)), self.preset.context_length
        if longest > limit:
            raise ValueError(f"the context is {longest} tokens long, its limit is {limit}: "
                             f"{visual.shape[1]} of them show the source; "
                             f"use fewer frames or a smaller picture")
        return torch.stack([F.pad(row, (0, 0, 0, limit - len(row))) for row in rows])

    def velocity(self, x_t: torch.Tensor, t: torch.Tensor, context: torch.Tensor,
                 source: torch.Tensor) -> torch.Tensor:
        """v_theta(x_t, t, c): (B, C, f, h, w). t: (B,) in (0, 1]; source: latents, if used."""
        x = torch.cat([x_t, source], 1) if self.preset.source_beside_noise else x_t
        return self.transformer(x, t * 1000, context).sample                 # Wan's t: 0 to 1000

    # ---- sample

    @torch.no_grad()
    def sample(self, source: torch.Tensor, instructions: list[str], steps: int | None = None,
               guidance: float | None = None, seed: int = 0, progress=list,
               view: torch.Tensor | None = None, decode: bool = True) -> torch.Tensor:
        """Edit clips, from noise: (B, F, 3, H, W) in [-1, 1] -> the same shape.

        steps, guidance: None is the preset's. guidance g: v + g (v - v_uncond), so 0 is none and
        the authors' 3 is the usual 4. Row i is drawn from seed + i, whatever the batch. view: what
        the VLM is shown for the condition, (B, F', 3, H', W'), where it is not the source. decode:
        False returns latents (B, C, f, h, w). Raises ValueError where an instruction is too long.
        """
        p, n = self.preset, len(source)
        g = p.guidance if guidance is None else guidance
        solve = unipc if p.sampler == "unipc" else euler
        with self.precision():
            latents = self.encode_video(source)                              # (B, C, f, h, w)
            text = self.encode_text(instructions)
            bridged = self.bridge(self.encode_vlm(source if view is None else view, instructions))
            c = self.context(latents, bridged, text)
            if g:
                h, nothing = self.unconditional()
                empty = self.bridge([h]).expand(n, -1, -1)
                c = torch.cat([c, self.context(latents, empty, [nothing] * n)])    # (2B, T, D)

            def velocity(x, t):
                if not g:
                    return self.velocity(x, x.new_full((n,), t), c, latents)
                both = self.velocity(torch.cat([x, x]), x.new_full((2 * n,), t), c,
                                     torch.cat([latents, latents]))
                cond, uncond = both.chunk(2)
                return cond + g * (cond - uncond)
            x = solve(velocity, sampling_noise(latents, seed), steps or p.sample_steps, p.shift,
                      progress)
            return self.decode_video(x) if decode else x

    # ---- precision

    def dtype_of(self, part: str) -> torch.dtype:
        """float32; half precision for frozen parts if the preset says so, but not the VAE."""
        if not self.preset.bf16 or part in ("vae", *TRAINED):
            return torch.float32
        return common.precision.VLM_DTYPE if part.startswith("vlm") else torch.bfloat16

    def cast(self) -> "UnifiedModel":
        """Each part in its `dtype_of`. Parameters only: buffers of positions are always float32."""
        for name in PARTS:
            for p in self.get_submodule(name).parameters():
                p.data = p.data.to(self.dtype_of(name))
        if self.preset.bf16:
            keep_ends_in_float32(self.transformer)
        return self

    def precision(self):
        """Autocast to bfloat16 where the preset says so, for products; else it does nothing."""
        return autocast(self.device, self.preset.bf16)

    # ---- load and save

    @classmethod
    def from_preset(cls, name: str, weights: str | None = None) -> "UnifiedModel":
        """A preset with its pretrained parts, from `weights` (without it: weights/<name>)."""
        weights = weights or Path(__file__).parent / "weights" / name
        model = cls.from_pretrained(weights)
        if model.preset.name != name:
            raise ValueError(f"{weights} holds preset {model.preset.name!r}, not {name!r}: "
                             f"pass --preset {model.preset.name}")
        return model

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "UnifiedModel":
        """Load what `save_pretrained` wrote, or a run of train.py.

        Raises FileNotFoundError or ValueError, naming what is missing or does not fit.
        """
        with torch.device("meta"):                       # every part is replaced by a file's
            model = cls(read_preset(folder))
        read_parts(model, folder)
        return model.cast().eval()

    def save_pretrained(self, folder: str | Path, frozen: str | Path | None = None,
                        dtype=torch.float32, parts: tuple[str, ...] | None = None) -> None:
        """Write a model folder; a kill leaves the old one or the new.

        frozen: a folder that holds the frozen parts; then only G and the visual context adapter are
        written. parts: write these and no tokenizer; such a folder is not loaded whole. dtype: None
        leaves each as it is.
        """
        write_parts(self, Path(folder), frozen, dtype, parts)


def sampling_noise(latents: torch.Tensor, seed: int) -> torch.Tensor:
    """Noise (B, C, f, h, w) to sample from; row i is drawn from seed + i."""
    rows = []
    for i in range(len(latents)):
        generator = torch.Generator().manual_seed(seed + i)
        rows.append(torch.randn(latents.shape[1:], generator=generator))
    return torch.stack(rows).to(latents)


def load_model(folder: str | Path | None, preset: str | None = None) -> UnifiedModel:
    """The model in `folder`, of this preset if one is named; None: weights/<preset>.

    Raises BadInput with the mend where it cannot be loaded.
    """
    try:
        if folder is None or preset:
            return UnifiedModel.from_preset(preset or "tiny", folder)
        return UnifiedModel.from_pretrained(folder)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise BadInput(f"cannot load {folder or preset or 'tiny'}: {reason}") from error


def main() -> None:
    parser = Parser(description="Print the parts of a preset and their numbers of parameters.")
    parser.add_argument("--preset", choices=PRESETS, default="tiny", help="which size")
    args = parser.parse_args()
    with torch.device("meta"):
        model = UnifiedModel(PRESETS[args.preset])
    for name in PARTS:
        n = sum(p.numel() for p in model.get_submodule(name).parameters())
        print(f"{name:24s}{n:15,d}   {'trained' if name in TRAINED else 'frozen'}")
    print(f"{'total':24s}{sum(p.numel() for p in model.parameters()):15,d}")


if __name__ == "__main__":
    run_script(main)
