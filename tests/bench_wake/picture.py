"""The picture: GPUs held over the day, and how soon a held request is answered. SVG by hand."""

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from tests.bench_wake.trace import HOURS

WIDTH, LEFT, RIGHT = 760, 60, 24
PLOT = WIDTH - LEFT - RIGHT
DAY_TOP, DAY_HEIGHT = 66, 190
BARS_LEFT, BARS_WIDTH, ROW = 300, 330, 26
MS_MAX = 60.0
KUBEAI = {"p50": 12.5, "p99": 21.5}
_STYLE = (
    "text{font:13px sans-serif;fill:#222}.h{font-weight:bold}.s{font-size:11px;fill:#666}"
    ".b{fill:#76b900}.o{fill:#a0aec0}.f{fill:#e2e8f0}.g{stroke:#c33;stroke-width:2}.a{stroke:#ccc}"
)


def draw(about: dict[str, Any], found: dict[str, Any]) -> str:
    """Return an SVG of a run; what was not measured is left out."""
    parts: list[str] = []
    top = 24.0
    if "day" in found:
        parts += _day(found["day"])
        top = DAY_TOP + DAY_HEIGHT + 62
    if "held" in found:
        bars = list(_bars(found["held"]))
        parts.append(_text(16, top, "A request held through scale from zero, p50 to p99", "h"))
        for row, (label, low, high, goal, kind) in enumerate(bars):
            parts += _bar(top + 12 + row * ROW, label, (low, high), goal, kind)
        top += 12 + len(bars) * ROW + 24
    height = round(top + 8)
    foot = f"{about['date']}, {about['machine']}, Kubernetes {about['kubernetes']}"
    return (
        "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
                f'width="{WIDTH}">',
                f"<style>{_STYLE}</style>",
                f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
                *parts,
                _text(16, top, foot, "s"),
                "</svg>",
            ]
        )
        + "\n"
    )


def _day(day: dict[str, Any]) -> Iterator[str]:
    held, fixed = day["levels"]["auto"], day["levels"]["fixed"]
    most = max([*fixed, *held, 1.0])
    saved, added = day["saved"], day["added"]
    title = f"GPUs held on a day of {day['requests']} requests to {day['models']} models"
    yield _text(16, 24, title, "h")
    yield _text(
        16,
        42,
        f"grey: fixed replicas; green: autoscaling from zero, {100 * saved:.0f} % less, "
        f"latency +{added['p50']:.0f} ms p50, +{added['p99']:.0f} ms p99",
        "s",
    )
    yield f'<path class="f" d="{_area(fixed, most)}"/>'
    yield f'<path class="b" d="{_area(held, most)}"/>'
    for level in range(0, round(most) + 1, 2 if most > 6 else 1):
        y = _y(level, most)
        yield f'<line class="a" x1="{LEFT}" x2="{LEFT + PLOT}" y1="{y}" y2="{y}"/>'
        yield _text(LEFT - 26, y + 4, str(level), "s")
    for hour in range(0, HOURS + 1, 3):
        x = LEFT + PLOT * hour / HOURS
        yield _text(x - 14, DAY_TOP + DAY_HEIGHT + 18, f"{hour:02}:00", "s")


def _area(values: Sequence[float], most: float) -> str:
    """Return the path of a stepped area."""
    width = PLOT / len(values)
    steps = "".join(
        f"V{_y(value, most)}H{LEFT + width * (place + 1):.1f}" for place, value in enumerate(values)
    )
    return f"M{LEFT} {_y(0, most)}{steps}V{_y(0, most)}Z"


def _y(value: float, most: float) -> float:
    return round(DAY_TOP + DAY_HEIGHT * (1 - value / most), 1)


def _bars(held: dict[str, Any]) -> Iterator[tuple[str, float, float, float, str]]:
    goals = {"p50": 12.0, "p99": 25.0}
    shown = (
        ("pod Ready → answer", held["ready"], goals["p99"], "b"),
        ("the same, KubeAI", KUBEAI, 0.0, "o"),
        ("pod made ready → answer, both proxies", held["patched"], goals["p99"], "b"),
        ("request sent → scale written", held["written"], 50.0, "b"),
    )
    for label, values, goal, kind in shown:
        if "p50" in values:
            yield label, values["p50"], values["p99"], goal, kind


def _bar(
    y: float, label: str, values: tuple[float, float], goal: float, kind: str
) -> Iterator[str]:
    left, right = map(_x, values)
    yield _text(16, y + 14, label)
    width = max(2.0, right - left)
    yield f'<rect class="{kind}" x="{left}" y="{y + 4}" width="{width:.1f}" height="12"/>'
    if goal:
        yield f'<line class="g" x1="{_x(goal)}" x2="{_x(goal)}" y1="{y}" y2="{y + 19}"/>'
    text = f"{values[0]:.1f} to {values[1]:.1f} ms"
    yield _text(BARS_LEFT + BARS_WIDTH + 10, y + 14, text)


def _x(value_ms: float) -> float:
    return round(BARS_LEFT + BARS_WIDTH * min(max(value_ms, 0.0), MS_MAX) / MS_MAX, 1)


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}"{f" class={kind!r}" if kind else ""}>{escape(text)}</text>'
    )
