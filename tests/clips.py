"""Small clips that say which frame is which."""

import torch


def numbered(n, height=48, width=80):
    """n flat frames whose brightness is their number: 10 k + 5 of 255. (n, 3, H, W)"""
    return torch.stack([torch.full((3, height, width), (10 * k + 5) / 127.5 - 1) for k in range(n)])


def numbers(video):
    """The numbers of such frames, whatever was done to them."""
    return ((video.mean((1, 2, 3)) + 1) * 127.5 - 5).div(10).round().int().tolist()
