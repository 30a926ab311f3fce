"""Flags that several commands of this folder share."""

import argparse
from pathlib import Path

from common.files import between, positive
from rvedata import embed
from rvedata.instructions import EXAMPLES

ratio = between(0, 1)


def shard(text: str) -> tuple[int, int]:
    """An argparse type: "i/n" with 0 <= i < n."""
    i, _, n = text.partition("/")
    if not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise argparse.ArgumentTypeError(f"must be i/n with 0 <= i < n, such as 0/4, not {text}")
    return int(i), int(n)


def folder(text: str) -> Path:
    """An argparse type: a folder that is there."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text}: there is no such folder; correct the path")
    return Path(text)


def add_work_flags(parser: argparse.ArgumentParser) -> None:
    """Of every command that reads videos."""
    add = parser.add_argument
    add("--skip-bad", action="store_true",
        help="go on without what cannot be read or asked, and count it")
    add("--workers", type=positive, default=8, help="items that are worked on at a time")


def add_siglip_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--siglip", default=embed.DEFAULT,
                        help="id or folder of the embedder; pixels: a stand-in without weights")


def add_vlm_flags(parser: argparse.ArgumentParser) -> None:
    """Of the commands that ask a VLM behind an OpenAI-compatible endpoint (see vlm.EndpointVLM)."""
    add = parser.add_argument
    add("--shard", type=shard, default=(0, 1), metavar="i/n", help="do only this part")
    add("--examples", type=Path, default=EXAMPLES, help="few-shot examples and forbidden verbs")
    add("--model", default="gpt-4o", help="its name")
    add("--base-url", help="the endpoint; OPENAI_BASE_URL or OpenAI's if not given")
