"""The dense questions: two heads on the VLM's states that are trained with it and then thrown away.

A verdict is one bit, too little to learn to see and to compare from. So the VLM is also asked

    covers      of each patch of the source, in the vision tower: what covers it?
    expects     of each token of the source, in Llama: what is there?
                And once the thought is known: what should be?
    compares    of each token of the edit, in Llama: is it another than it should be?

Without these questions it learns the words and says Yes to all. What should be there must be asked
where it cannot be copied from the edit. One head answers both parts of `expects`, so that the
states speak one language and can be compared.

Axis letters: B rows, N frames, K frames of a clip, H W pixels, P = 4 points of a cell, D width. A
frame has 16 x 16 points (every second pixel), 8 x 8 patches of 2 x 2 points for the vision tower, 4
x 4 tokens for Llama.
"""

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from pretrain.lessons import vlm_frames
from tiny.draw import LABELS
from vlm import VILA

POINTS = 4


class Heads(nn.Module):
    """eye: what covers a patch's points? mind: what covers a token's, and is it another?"""

    def __init__(self, vlm: VILA):
        super().__init__()
        self.eye = nn.Linear(vlm.vision_tower.config.hidden_size, POINTS * len(LABELS))
        self.mind = nn.Linear(vlm.llm.config.hidden_size, POINTS * len(LABELS) + POINTS)

    def token_labels(self, states: torch.Tensor) -> torch.Tensor:
        """Logits over LABELS of Llama's states (B, K*16, D): (B, K*16, P, labels)."""
        return self.mind(states)[..., POINTS:].unflatten(-1, (POINTS, len(LABELS)))

    def is_another(self, states: torch.Tensor) -> torch.Tensor:
        """Logits (B, K*16, P) of Llama's states (B, K*16, D)."""
        return self.mind(states)[..., :POINTS]


def covers(vlm: VILA, heads: Heads, frames: torch.Tensor, labels: torch.Tensor) -> tuple:
    """Loss, share that is right, of frames (N, 3, H, W) and their points' labels (N, 16, 16)."""
    labels = by_cell(labels).long()                                          # (N, 64, P)
    logits = heads.eye(vlm.patches(frames))
    guess = logits.unflatten(-1, (POINTS, len(LABELS)))                      # (N, 64, P, labels)
    loss = F.cross_entropy(guess.flatten(0, 2), labels.flatten())
    right = (guess.argmax(-1) == labels).float().mean()
    return loss, right


def expects(heads: Heads, there: torch.Tensor, expected: torch.Tensor,
            lessons: list[dict]) -> tuple:
    """Loss, share that is right where the edit is to change something.

    there, expected: states (B, K*16, D) at the source's tokens, in an early and in a late layer.
    """
    before = token_points([lesson["labels"] for lesson in lessons])          # (B, K*16, P)
    after = token_points([lesson["wanted"] for lesson in lessons])
    is_there, should_be = heads.token_labels(there), heads.token_labels(expected)
    loss = F.cross_entropy(should_be.flatten(0, 2), after.flatten(), reduction="none")
    changes = before != after
    loss = balanced(loss.view(after.shape), changes.float())
    loss = loss + F.cross_entropy(is_there.flatten(0, 2), before.flatten())
    right = (should_be.argmax(-1) == after)[changes].float().mean()
    return loss, right


def compares(heads: Heads, found: torch.Tensor, frames: torch.Tensor,
             lessons: list[dict]) -> torch.Tensor:
    """Loss of states `found` (B, K*16, D) at the tokens of edits `frames` (B, K, 3, H, W)."""
    target = torch.stack([vlm_frames(lesson["target"]) for lesson in lessons])
    far = F.avg_pool2d((frames - target).flatten(0, 1), 2).abs().amax(1, keepdim=True)
    far = by_cell(F.avg_pool2d(far, 2)[:, 0])                                # (B*K, 16, P)
    far = far.view(*found.shape[:2], POINTS)                                 # (B, K*16, P)
    another = ((far - .05) / .15).clamp(0, 1)
    loss = F.binary_cross_entropy_with_logits(heads.is_another(found), another, reduction="none")
    return balanced(loss, another)


def by_cell(points: torch.Tensor) -> torch.Tensor:
    """Points (..., S, S) -> (..., (S/2)^2, 4): the four of each cell, cells in reading order."""
    cells = points.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2))             # (..., S/2, 2, S/2, 2)
    return cells.transpose(-3, -2).flatten(-2).flatten(-3, -2)


def token_points(labels: list[np.ndarray]) -> torch.Tensor:
    """Labels of clips, each (K, 16, 16), at the four points of each token: (B, K*16, P)."""
    every_second = torch.from_numpy(np.stack(labels))[..., 1::2, 1::2]       # (B, K, 8, 8)
    return by_cell(every_second).flatten(1, 2).long()


def balanced(loss: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """The mean over rows of a loss (B, ...): half where `share` (B, ...) is 1, half where it is 0.

    So a small thing counts as much as the whole sky.
    """
    loss, share = loss.flatten(1), share.flatten(1)
    halves = []
    for weight in (share, 1 - share):
        mean = (loss * weight).sum(1) / weight.sum(1).clamp_min(1)           # (B,)
        halves.append(mean.mean())
    return sum(halves) / 2
