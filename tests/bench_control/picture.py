"""The picture: latencies as ranges from p50 to p99 beside their goals, and bursts by size."""

import math
from collections.abc import Iterator
from typing import Any

_BARS = (
    ("create", "create → Deployment", 40),
    ("change", "spec change → Deployment changed", 40),
    ("replace", "Deployment deleted → back", 40),
    ("drift", "field changed by hand → repaired", 250),
    ("listed", "create → listed by every proxy", 250),
    ("gone", "delete → listed by no proxy", 250),
    ("first_request", "pod Ready → first request", 25),
)
_LEFT, _WIDTH, _ROW, _TOP = 250, 400, 26, 64
_MS_MAX = 300.0
_STYLE = (
    "text{font:13px sans-serif;fill:#222}.h{font-weight:bold}.s{font-size:11px;fill:#666}"
    ".b{fill:#76b900}.g{stroke:#c33;stroke-width:2}.a{stroke:#ccc}"
)


def draw(about: dict[str, Any], found: dict[str, Any]) -> str:
    """Return an SVG of a run."""
    shown = [(found[key], label, goal) for key, label, goal in _BARS if key in found]
    bursts = found.get("bursts", {})
    below = _TOP + _ROW * len(shown) + 56
    height = below + _ROW * len(bursts) + 44
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {height}" width="760">',
        f"<style>{_STYLE}</style>",
        f'<rect width="760" height="{height}" fill="#fff"/>',
        _text(16, 24, "From a call to what it causes, milliseconds: p50 to p99", "h"),
        _text(16, 42, "red line: the goal for p99; every time contains the client's own call", "s"),
        *_latencies(shown),
        _text(16, below - 12, "Models created at once, seconds until the last Deployment", "h"),
        *_bursts(bursts, below),
        _text(16, height - 12, f"{about['machine']}, Kubernetes {about['kubernetes']}", "s"),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _latencies(shown: list[tuple[dict[str, Any], str, int]]) -> Iterator[str]:
    for row, (values, label, goal) in enumerate(shown):
        y = _TOP + _ROW * row
        left, right = _x(values["p50"]), _x(values["p99"])
        text = f"{values['p50']:.0f} to {values['p99']:.0f}"
        yield _text(16, y + 14, label)
        yield _line(_LEFT, _LEFT + _WIDTH, y + 20)
        yield f'<rect class="b" x="{left}" y="{y + 4}" width="{right - left:.1f}" height="12"/>'
        yield f'<line class="g" x1="{_x(goal)}" x2="{_x(goal)}" y1="{y}" y2="{y + 19}"/>'
        yield _text(_LEFT + _WIDTH + 12, y + 14, text)


def _bursts(bursts: dict[int, dict[str, Any]], top: int) -> Iterator[str]:
    longest = max((max(each["last_deployment_s"], 12.0) for each in bursts.values()), default=1.0)
    for row, (size, each) in enumerate(bursts.items()):
        y, last_s = top + _ROW * row, each["last_deployment_s"]
        width = _WIDTH * last_s / longest
        goal = _LEFT + _WIDTH * 0.012 * size / longest
        yield _text(16, y + 14, f"{size} models")
        yield f'<rect class="b" x="{_LEFT}" y="{y + 4}" width="{width:.1f}" height="12"/>'
        yield f'<line class="g" x1="{goal:.1f}" x2="{goal:.1f}" y1="{y}" y2="{y + 19}"/>'
        yield _text(_LEFT + _WIDTH + 12, y + 14, f"{last_s:.1f} s")


def _x(value_ms: float) -> float:
    """Place milliseconds on a square-root scale: short ones stay readable beside long ones."""
    return round(_LEFT + _WIDTH * math.sqrt(min(value_ms, _MS_MAX) / _MS_MAX), 1)


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text x="{x}" y="{y}"{f" class={kind!r}" if kind else ""}>{text}</text>'


def _line(left: float, right: float, y: float) -> str:
    return f'<line class="a" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>'
