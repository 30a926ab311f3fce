"""Rows of a small benchmark of two methods."""

ABOUT = {"methods": ["ours", "theirs"], "head": "bench.jsonl, judged by nobody: means",
         "judge": "openai"}


def row(id, method, score, type="Temporal Reasoning", failed=None, **more):
    """A row of scores.jsonl; its Overall is EA and PC."""
    videos = {name: f"videos/{name}.mp4" for name in ("source", "target")}
    scores = {"EA": score, "PC": score, "GN": 5, "GR": 5, "Overall": score,
              "Geometric mean": score}
    return {"id": id, "subset": "rave", "type": type, "instruction": f"dusk {id}",
            "method": method, **videos, "video": f"videos/{method}.mp4", "failed": failed, **scores,
            "missing": [], "unanswered": 0, "reasons": [f"because {id}"],
            "replies": [], "quality": {"TF": .987654}, "frames": 9, **more}
