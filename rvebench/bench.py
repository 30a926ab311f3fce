"""Does the report page stay usable with 1,000 samples? The browser itself measures.

    python -m rvebench.bench                             # 1,000 samples of 5 methods, into out/

Makes a folder of synthetic results (clips of noise, scores, reasons, replies), its page as
rvebench.report does, opens that in a headless Chromium and prints how long it took to build and to
paint, what filtering and sorting cost, and its memory before and after scrolling through all of it.
Needs chromium and chromedriver.
"""

import shutil
import time
from pathlib import Path

import numpy as np
import torch
from selenium import webdriver

from common.files import BadInput, Parser, atomic_write, positive, run_script
from common.intervals import geometric_mean, overall
from common.jsonl import to_json, write_rows
from common.manifest import SUBSET_OF
from common.video import write_video
from rvebench import judge, quality, report

CLIPS = 16                                               # different ones; the files are copies
REASON = "The light has changed as asked, but the tree on the left has moved, its shadow has not. "
PAINT, RESPONSE = 2., .2                                 # seconds: what is aimed at


# ------------------------------------------------------------------------------ made-up results

def make_results(out: Path, samples: int, methods: int) -> None:
    """Write scores.jsonl, about.json and videos into `out`, as rvebench.score would."""
    rng = np.random.default_rng(0)
    names = [f"method {k + 1}" for k in range(methods)]
    clips = [write_clip(out / f"clips/{k}.mp4", rng) for k in range(CLIPS)]
    rows = []
    for k in range(samples):
        for name in ("source", "target", *names):
            folder = out / "videos" / name
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(clips[rng.integers(CLIPS)], folder / f"{k}.mp4")
        rows += [make_row(f"{k}", name, place, rng) for place, name in enumerate(names)]
    about = {"head": "made up, judged by chance, 8 frames: means", "judge": "openai", "repeat": 1,
             "methods": names, "labels": {column: column for column in quality.COLUMNS}, "why": {},
             "asked": {"frames": 8, "prompts": judge.prompts(8)}}
    write_rows(out / "scores.jsonl", rows)
    atomic_write(out / "about.json", to_json(about))


def write_clip(path: Path, rng: np.random.Generator) -> Path:
    """A clip of 9 frames of noise, 32 x 32."""
    write_video(path, torch.from_numpy(rng.uniform(-1, 1, (9, 3, 32, 32))).float())
    return path


def make_row(sample: str, method: str, place: int, rng: np.random.Generator) -> dict:
    """A row of scores.jsonl. A method is the better the later its place; 1 row in 50 has failed."""
    kinds = list(SUBSET_OF)
    kind = kinds[int(sample) % len(kinds)]
    scores = dict(zip(("EA", "PC", "GN", "GR"), rng.normal(5 + place / 5, 2, 4).clip(0, 10)))
    if SUBSET_OF[kind] == "icvg":
        del scores["PC"]
    four = scores["EA"], scores.get("PC"), scores["GN"], scores["GR"]
    scores |= {"Overall": overall(*four), "Geometric mean": geometric_mean(*four)}
    scores = {name: float(score) for name, score in scores.items()}
    answers = {"consistency": {name: scores[name] for name in ("EA", "PC") if name in scores},
               "quality": {name: scores[name] for name in ("GN", "GR")}}
    answers = {about: {"reason": REASON * 2, **given} for about, given in answers.items()}
    row = {"id": sample, "subset": SUBSET_OF[kind], "type": kind,
           "instruction": f"It is {int(sample) % 24} hours later at the place of sample {sample}.",
           "method": method, "source": f"videos/source/{sample}.mp4",
           "target": f"videos/target/{sample}.mp4", "video": f"videos/{method}/{sample}.mp4",
           "failed": None, "missing": [], "unanswered": 0, "repeats": [scores],
           "reasons": [answer["reason"] for answer in answers.values()],
           "replies": [{about: to_json(answer) for about, answer in answers.items()}],
           "quality": {"TF": float(rng.uniform(.9, 1))}, "frames": 9}
    if rng.integers(50):
        return row | {"PC": None, "Yes": None} | scores
    nothing = dict.fromkeys((*scores, "PC", "Yes"))
    return row | nothing | {"failed": "judge: refused", "repeats": [], "reasons": [], "replies": []}


# ------------------------------------------------------------------------------ the browser

def start_browser(*flags: str, **settings) -> webdriver.Chrome:
    """A headless Chromium. settings: its preferences. Raises BadInput where there is none."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not (chromium and driver):
        raise BadInput("chromedriver: there is no Chromium with its driver here; install both "
                       "(Debian: apt install chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                 "--window-size=1300,900", *flags):
        options.add_argument(flag)
    options.add_experimental_option("prefs", settings)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


# Milliseconds from a change of a control until the frame with its consequences is painted.
CHANGE = """
    const [id, value, done] = arguments;
    const control = document.getElementById(id), start = performance.now();
    control.value = value;
    control.dispatchEvent(new Event(control.type == 'search' ? 'input' : 'change'));
    requestAnimationFrame(() => setTimeout(() => done(performance.now() - start)));
"""
FIRST_PAINT = "return performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
# When the largest thing on the first screen was painted.
LARGEST_PAINT = """
    const done = arguments[0];
    new PerformanceObserver(list => done(list.getEntries().at(-1).startTime))
        .observe({ type: 'largest-contentful-paint', buffered: true });
"""
# Twenty screens down, as fast as a person would; whether there is more.
SCROLL = """
    const done = arguments[0];
    let left = 20;
    function next() {
        const before = scrollY;
        scrollBy(0, innerHeight);
        left -= 1;
        if (scrollY == before || !left) done(scrollY > before);
        else setTimeout(next, 60);
    }
    next();
"""
LOADED = "return document.querySelectorAll('video').length"


def slowest_change(browser, changes: list[tuple[str, str]]) -> float:
    """Seconds that the slowest of these changes (id of a control, value) takes."""
    return max(browser.execute_async_script(CHANGE, *change) for change in changes) / 1000


def memory(browser) -> float:
    """Megabytes that the scripts' objects take, without garbage."""
    browser.execute_cdp_cmd("HeapProfiler.collectGarbage", {})
    metrics = browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    return next(each["value"] for each in metrics if each["name"] == "JSHeapUsedSize") / 1e6


def measure(browser, page: Path) -> dict[str, float]:
    """What the browser says of a page: seconds, and megabytes before and after scrolling."""
    browser.execute_cdp_cmd("Performance.enable", {})
    browser.get(page.resolve().as_uri())
    found = {"first paint": browser.execute_script(FIRST_PAINT) / 1000,
             "largest paint": browser.execute_async_script(LARGEST_PAINT) / 1000}
    filters = [("type", next(iter(SUBSET_OF))), ("type", ""), ("search", "7 hours"), ("search", "")]
    orders = [("sort", order) for order in ("low", "high", "methods", "order")]
    found |= {"filter": slowest_change(browser, filters), "sort": slowest_change(browser, orders)}
    found["memory before"] = memory(browser)
    while browser.execute_async_script(SCROLL):
        pass
    found["memory after"] = memory(browser)
    found["videos"] = browser.execute_script(LOADED)
    return found


# ------------------------------------------------------------------------------ the command

def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m rvebench.bench", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--samples", type=positive, default=1000, help="samples on the page")
    add("--methods", type=positive, default=5, help="methods, each with a video of every sample")
    add("--out", type=Path, default=Path("out/page"), help="where results and page are made")
    args = parser.parse_args(argv)
    browser = start_browser()                            # before anything is made
    try:
        make_results(args.out, args.samples, args.methods)
        start = time.perf_counter()
        report.build([args.out])
        built = time.perf_counter() - start
        page = args.out / "report.html"
        found = measure(browser, page)
    finally:
        browser.quit()

    def line(name, seconds, goal):
        words = "" if seconds < goal else ", missed"
        print(f"{name:<16}{seconds:8.2f} s    (goal: below {goal:g} s{words})")
    print(f"{args.samples:,} samples, {args.methods} methods: {page}")
    print(f"{'built in':<16}{built:8.2f} s\n{'size':<16}{page.stat().st_size / 1e6:8.1f} MB")
    line("first paint", found["first paint"], PAINT)
    line("largest paint", found["largest paint"], PAINT)
    line("filter", found["filter"], RESPONSE)
    line("sort", found["sort"], RESPONSE)
    print(f"{'memory':<16}{found['memory before']:8.1f} MB, {found['memory after']:.1f} after "
          f"scrolling through, with {found['videos']} videos loaded")


if __name__ == "__main__":
    run_script(main)
