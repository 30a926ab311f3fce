"""How does a vision-language model see, read and write? VILA: SigLIP -> projector -> Llama.

    seen = vlm.see(video)                                               # (B, T, D) tokens of frames
    embeddings, mask = vlm.join([chat(system, [tokens, text]) for tokens in seen])
    states = vlm.read(embeddings, mask, hidden=True).hidden_states[-1]  # Eq. 1's h
    texts = vlm.write([chat(system, [tokens, question]) for tokens in seen], limit=48)

A prompt is a row: a list of texts and of vision tokens, in the order in which they are read.
`see`, `join` and `read` are differentiable in the pixels; `write` is not.

Left out: VILA's audio and multi-image modes; sampling (it writes greedily).

Axis letters: B batch, F frames, K of them seen, H W pixels, N pictures, S side in patches, T
tokens, D width.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from transformers import (DynamicCache, LlamaConfig, LlamaForCausalLM, SiglipVisionConfig,
                          SiglipVisionModel)

END_OF_TURN = "<|eot_id|>"
USER_TURN = f"{END_OF_TURN}<|start_header_id|>user<|end_header_id|>\n\n"
ASSISTANT_TURN = f"{END_OF_TURN}<|start_header_id|>assistant<|end_header_id|>\n\n"


def chat(system: str, user: list, answer: str = "") -> list:
    """Llama-3's chat, as a row for `VILA.join`.

    user: texts and vision tokens (T, D). answer: how the assistant's turn begins.
    """
    head = f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{system}"
    return [f"{head}{USER_TURN}", *user, f"{ASSISTANT_TURN}{answer}"]


class DownsampleProjector(nn.Module):
    """VILA's `mlp_downsample`: 2x2 neighbouring patches become one token.

    (N, S*S, D) -> (N, ceil(S/2)^2, D'). by_column: the tokens run down the picture's columns
    instead of along its rows, as VILA's own do.
    """

    def __init__(self, vision_width: int, width: int, by_column: bool = False):
        super().__init__()
        self.by_column = by_column
        self.layers = nn.Sequential(
            nn.LayerNorm(4 * vision_width),
            nn.Linear(4 * vision_width, width),
            nn.GELU(),
            nn.Linear(width, width))

    def forward(self, x):
        n, patches, d = x.shape
        side = int(patches ** .5)
        odd = side % 2
        x = F.pad(x.view(n, side, side, d), (0, 0, 0, odd, 0, odd))          # with zeros
        s = (side + odd) // 2
        x = x.view(n, s, 2, s, 2, d).transpose(2, 3)                         # (N, s, s, 2, 2, D)
        if self.by_column:
            x = x.transpose(1, 2)
        return self.layers(x.reshape(n, s * s, 4 * d))


class VILA(nn.Module):
    """SigLIP -> projector -> Llama. Sees frames, reads and writes text; frozen once taught.

    frames: K, how many it sees of a clip. size: side of its square pictures, in pixels.
    """

    def __init__(self, siglip: dict, llama: dict, frames: int, size: int, by_column: bool = False):
        super().__init__()
        self.frames, self.size = frames, size
        self.vision_tower = SiglipVisionModel(SiglipVisionConfig(**siglip))
        self.mm_projector = DownsampleProjector(siglip["hidden_size"], llama["hidden_size"],
                                                by_column)
        self.llm = LlamaForCausalLM(LlamaConfig(**llama))
        self.tokenizer = None                            # set by load or training

    def pick(self, video: torch.Tensor) -> torch.Tensor:
        """K frames of a clip (B, F, 3, H, W), evenly spaced from the first to the last.

        A clip of K frames or fewer comes back whole.
        """
        n = min(self.frames, video.shape[1])
        places = torch.linspace(0, video.shape[1] - 1, n).round().long()
        return video[:, places.to(video.device)]

    def resize(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames (N, 3, H, W) as the VLM sees them: squares of its size, whatever their shape."""
        if frames.shape[-2:] == (self.size, self.size):
            return frames
        return F.interpolate(frames, (self.size, self.size), mode="bicubic", antialias=True,
                             align_corners=False)

    def patches(self, frames: torch.Tensor) -> torch.Tensor:
        """Patch features of frames (N, 3, H, W) in [-1, 1]: (N, S*S, D), SigLIP's last but one.

        Differentiable in the pixels. SigLIP wants (x - 0.5) / 0.5 of x in [0, 1]: that is [-1, 1]
        again.
        """
        frames = self.resize(frames)
        return self.vision_tower(frames, output_hidden_states=True).hidden_states[-2]

    def see(self, video: torch.Tensor) -> torch.Tensor:
        """Tokens of K frames picked from a clip (B, F, 3, H, W) in [-1, 1]: (B, K*tokens, D)."""
        frames = self.pick(video)                                            # (B, K, 3, H, W)
        tokens = self.mm_projector(self.patches(frames.flatten(0, 1)))       # (B*K, T, D)
        return tokens.unflatten(0, frames.shape[:2]).flatten(1, 2)

    def words(self, text: str) -> torch.Tensor:
        """Embeddings (T, D) of a text; special tokens in it are read as such."""
        ids = self.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids[0]
        return self.llm.get_input_embeddings()(ids.to(self.llm.device))

    def join(self, rows: list[list[torch.Tensor | str]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of texts and vision tokens -> embeddings (B, T, D), mask (B, T), padded on the left.

        On the left, so that the last position is the one to read in every row. Raises ValueError
        where a row is longer than the VLM can read.
        """
        joined = []
        for row in rows:
            parts = [self.words(part) if isinstance(part, str) else part for part in row]
            joined.append(torch.cat(parts))                                  # (T, D)
        length, limit = max(map(len, joined)), self.llm.config.max_position_embeddings
        if length > limit:
            raise ValueError(f"the prompt is {length} tokens long, the VLM reads {limit}: "
                             f"shorten the instruction")
        padding = [length - len(row) for row in joined]
        mask = [[0] * n + [1] * (length - n) for n in padding]
        embeddings = torch.stack([F.pad(row, (0, 0, n, 0)) for row, n in zip(joined, padding)])
        return embeddings, torch.tensor(mask, device=embeddings.device)

    def read(self, embeddings, mask, cache=None, hidden=False, last=False):
        """Run Llama over joined rows; returns the library's output object.

        embeddings: (B, T, D), what is new. mask: (B, T' + T), over what the cache holds, too.
        cache: what it has read before. hidden: keep all hidden states. last: logits of the last
        position only; of all they are 128,256 numbers a token at the real size.
        """
        positions = (mask.cumsum(1) - 1).clamp_min(0)                        # padding is masked
        positions = positions[:, -embeddings.shape[1]:]                      # what is not in cache
        return self.llm(inputs_embeds=embeddings, attention_mask=mask, position_ids=positions,
                        past_key_values=cache, use_cache=cache is not None,
                        output_hidden_states=hidden, logits_to_keep=int(last))

    @torch.no_grad()
    def write(self, rows: list[list], limit: int) -> list[str]:
        """What is written after each row, greedily, to the end of its turn or `limit` tokens."""
        embeddings, mask = self.join(rows)
        cache, written = DynamicCache(), []
        done = torch.zeros(len(rows), dtype=torch.bool, device=mask.device)
        stop = self.tokenizer.convert_tokens_to_ids(END_OF_TURN)
        for _ in range(limit):
            logits = self.read(embeddings, mask, cache, last=True).logits[:, -1]
            token = torch.where(done, stop, logits.argmax(-1))               # (B,)
            done |= token == stop
            if done.all():
                break
            written.append(token)
            embeddings = self.llm.get_input_embeddings()(token[:, None])     # (B, 1, D)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        columns, texts = [token.tolist() for token in written], []
        for i in range(len(rows)):
            ids = [column[i] for column in columns if column[i] != stop]
            texts.append(self.tokenizer.decode(ids))
        return texts


class Prefix(DynamicCache):
    """A key-value cache that can be closed: what is read afterwards attends to it and is not added.

    Activation checkpointing (realsize/) runs a layer twice, and must not add its keys twice.
    """
    closed = False

    def update(self, key_states, value_states, layer_idx, *args, **named):
        if not self.closed:
            return super().update(key_states, value_states, layer_idx, *args, **named)
        layer = self.layers[layer_idx]
        return torch.cat([layer.keys, key_states], -2), torch.cat([layer.values, value_states], -2)
