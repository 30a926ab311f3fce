"""What does it cost? Milliseconds of the parts of a step, peak memory, FLOPs, and on what machine.

Each is used around a step, `with peak_memory(device) as peak: step()`, and holds its result
afterwards.
"""

import json
import os
import platform
import re
import sys
import tempfile
import time
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

# the profiler is talkative
os.environ |= {"TORCH_CPP_LOG_LEVEL": "ERROR", "KINETO_LOG_LEVEL": "99"}

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


class Clock:
    """Milliseconds of a step's parts, `parts`, in the order in which they were first done."""

    def __init__(self, device: torch.device):
        self.device, self.parts = device, {}
        self._last = self._now()

    def mark(self, part: str) -> None:
        """`part` is done: the time since the last mark is its own. A part may have several."""
        now = self._now()
        self.parts[part] = self.parts.get(part, 0.) + 1000 * (now - self._last)
        self._last = now

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


@contextmanager
def peak_memory(device: torch.device):
    """`.mib`: the most MiB of tensors alive at once, beyond what was alive before.

    Not ru_maxrss: a process's high-water mark is reached once, and is then blind to smaller steps.
    """
    peak = SimpleNamespace(mib=None)
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.mib = (torch.cuda.max_memory_allocated(device) - before) / 2 ** 20
        return
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU],
                                profile_memory=True) as record:
        yield peak
    with tempfile.TemporaryDirectory() as folder:
        record.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(f"{folder}/trace.json").read_text("utf-8"))["traceEvents"]
    alive = highest = 0
    for event in sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"]):
        alive += event["args"]["Bytes"]                  # below zero where they are freed
        highest = max(highest, alive)
    peak.mib = highest / 2 ** 20


@contextmanager
def count_flops():
    """`.flops`: floating-point operations of the matrix products and convolutions."""
    count = SimpleNamespace(flops=None)
    # the counter knows no fused attention
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        yield count
    count.flops = counter.get_total_flops()


def about() -> dict:
    """What a measurement is of: command, date, device, versions, and who else was at work."""
    names = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text("utf-8"))
    name = names[0] if names else platform.machine()
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    return {"command": " ".join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
            "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "device": f"{name}, {torch.get_num_threads()} CPU threads",
            "python": platform.python_version(), "torch": version("torch"),
            "transformers": version("transformers"), "diffusers": version("diffusers"),
            "load": f"{os.getloadavg()[0]:.1f} when it began"}
