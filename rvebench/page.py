"""A page is one file: a template with its styles, scripts and data. Here and in curation.

    write_page("out/report.html", Path("rvebench/report.html"), "RVE-Bench", data=data)

A template names what goes into it: {{title}}, values such as {{data}} (a path: what is in that
file), or a file beside it or beside this script, such as {{page.css}}. The page then works from the
file system, without network. Whatever comes from elsewhere (instructions, reasons, names) reaches
it as the JSON of a value, escaped here and nowhere else; the scripts show it as text, never as
HTML.
"""

import html
import json
import math
import re
from pathlib import Path

from common.files import atomic_write

HERE = Path(__file__).parent


def without_nan(value):
    """The value, None for each float in it that is not finite: JSON has no word for those."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return value


def embed(value) -> str:
    """JSON that can stand in a <script>: nothing in it ends that, or begins a comment."""
    text = json.dumps(without_nan(value), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def write_page(path: str | Path, template: Path, title: str, **values) -> None:
    """Fill the slots of a template and write the page. Raises BadInput where it cannot."""
    def fill(slot):
        name = slot[1]
        if name == "title":
            return html.escape(title)
        if isinstance(values.get(name), Path):
            return values[name].read_text("utf-8")
        if name in values:
            return embed(values[name])
        beside = template.parent / name
        return (beside if beside.exists() else HERE / name).read_text("utf-8")

    # One pass: what has been filled in is not searched for slots.
    atomic_write(path, re.sub(r"\{\{([\w.]+)\}\}", fill, template.read_text("utf-8")))
