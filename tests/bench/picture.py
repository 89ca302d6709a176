"""The picture of a run for the README: four panels of bars, drawn as SVG by hand.

Owns geometry and colours. All numbers come from results.py.
"""

from html import escape

from tests.bench.contenders import REFERENCE, SUBJECT
from tests.bench.results import Run, ratios

PANELS = (
    ("json_188b_cpu_us", "188 B prompt"),
    ("json_64k_cpu_us", "64 KiB prompt"),
    ("json_1m_cpu_us", "1 MiB prompt"),
    ("sse_cpu_us", "SSE event"),
)
NAMES = {
    "nginx": "nginx (no routing)",
    REFERENCE: "HAProxy",
    SUBJECT: "Nimway",
    "go": "Go ReverseProxy",
    "litellm": "LiteLLM",
}
RATIO_MAX = 7.0
"""Longer bars are cut here and say so by their number."""

WIDTH, LABELS, BAR, ROW, HEAD, GAP = 820, 110, 190, 19, 26, 16
COLOURS = {SUBJECT: "#5a9e00", REFERENCE: "#4a5568"}
OTHER_COLOUR = "#a0aec0"


def draw(run: Run) -> str:
    """Return an SVG document: CPU cost of each contender as a ratio to HAProxy."""
    names = list(run.about["versions"])
    panel_height = HEAD + ROW * len(names) + GAP
    height = 34 + 2 * panel_height + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="system-ui, sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" rx="6" fill="#ffffff"/>',
        _text(14, 22, "CPU time, as a ratio to HAProxy doing the same (less is better)", size=14),
        _text(
            WIDTH - 14,
            22,
            f"{run.about['date']}, {len(run.rounds)} rounds, median and range",
            anchor="end",
            fill="#718096",
        ),
    ]
    for index, (metric, title) in enumerate(PANELS):
        x = 14 + index % 2 * (WIDTH // 2)
        y = 34 + index // 2 * panel_height
        parts.append(_text(x, y + 17, title, weight="bold"))
        parts.extend(
            _bar(run, name, metric, x, y + HEAD + row * ROW) for row, name in enumerate(names)
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _bar(run: Run, name: str, metric: str, x: float, y: float) -> str:
    label = _text(x + LABELS - 6, y + 12, NAMES.get(name, name), anchor="end")
    ratio = ratios(run, name, metric)
    if ratio is None:
        return label
    left, middle = x + LABELS, y + ROW / 2 - 2
    width = _length(ratio.median)
    low, high = left + _length(ratio.low), left + _length(ratio.high)
    return "".join(
        (
            label,
            f'<rect x="{left}" y="{y}" width="{width:.1f}" height="{ROW - 5}" rx="2" '
            f'fill="{COLOURS.get(name, OTHER_COLOUR)}"/>',
            f'<path d="M{low:.1f} {middle}H{high:.1f}" stroke="#1a202c" stroke-width="1"/>',
            _text(max(left + width, high) + 6, y + 12, f"{ratio.median:.2f}"),
        )
    )


def _length(ratio: float) -> float:
    return min(ratio, RATIO_MAX) / RATIO_MAX * BAR


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    fill: str = "#1a202c",
    size: int = 12,
    weight: str = "normal",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}" '
        f'font-size="{size}" font-weight="{weight}">{escape(text)}</text>'
    )
