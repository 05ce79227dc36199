"""The chart alone, in a browser without ComfyUI: quick, true to its data, and usable without a mouse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

JS = Path(__file__).parents[2] / "js"
MAKE = """async (source) => {
    const blob = new Blob([source], { type: 'text/javascript' });
    Object.assign(window, await import(URL.createObjectURL(blob)));
    const loss = (i) => Math.exp(-i / 2000) + (i * 7919 % 101) / 300;
    window.points = Array.from({ length: 10000 }, (_, i) => [i + 1, loss(i)]);
    window.chart = new Chart({ title: 'Loss' });
    document.body.append(chart.element);
    chart.set([{ name: 'loss', color: 'loss', points }]);
    chart.draw();
}"""


@pytest.fixture
def chart(browser: Any) -> Any:
    tab = browser.new_page()
    tab.evaluate(MAKE, (JS / "chart.js").read_text(encoding="utf-8"))
    yield tab
    tab.close()


def test_ten_thousand_steps_draw_in_no_time(chart: Any) -> None:
    """Bounds, smoothing and strokes; the best of many, as a busy machine takes time away."""
    best = chart.evaluate("""() => Math.min(...Array.from({ length: 20 }, () => {
        const start = performance.now();
        chart.set([{ name: 'a', color: 'loss', points, style: 'faint' },
                   { name: 'b', color: 'loss', points: smooth(points) }]);
        chart.draw();
        return performance.now() - start;
    }))""")
    assert best < 50


def test_decimation_keeps_extremes_and_order(chart: Any) -> None:
    kept = chart.evaluate("() => decimate(points, 1, 10000, 300)")
    values = [y for _, y in chart.evaluate("() => points")]
    assert len(kept) <= 602 and kept == sorted(kept)
    assert {min(values), max(values)} <= {y for _, y in kept}


def test_smoothing_is_a_mean(chart: Any) -> None:
    constant = chart.evaluate("() => smooth([[1, 5], [2, 5], [3, 5]], 10)")
    assert all(abs(y - 5) < 1e-9 for _, y in constant)
    assert chart.evaluate("() => smooth([[1, 0], [2, 1]], 2)") == [[1, 0], [2, pytest.approx(2 / 3)]]


def test_keys_move_the_cursor_and_say_where_it_is(chart: Any) -> None:
    chart.locator("canvas").focus()
    chart.keyboard.press("Home")
    chart.keyboard.press("ArrowRight")
    chart.wait_for_function("() => chart.canvas.getAttribute('aria-valuenow') === '2'")
    assert chart.locator("canvas").get_attribute("aria-valuetext").startswith("step 2")
    chart.keyboard.press("Escape")
    chart.wait_for_function("() => chart.canvas.getAttribute('aria-valuenow') === '10000'")


@pytest.mark.parametrize(
    "background, text, theme", [("#202020", "#ddd", "dark"), ("#f5f5f5", "#222", "light")]
)
def test_every_colour_is_readable_on_its_theme(chart: Any, background: str, text: str, theme: str) -> None:
    chart.evaluate("(c) => { chart.element.style.transition = 'none'; chart.element.style.color = c; }", text)
    palette = chart.evaluate("() => paletteOf(chart.element)")
    for colour in [c for c in palette.values() if isinstance(c, str)] + palette["runs"]:
        assert contrast(colour, background) >= 4.5, (theme, colour)


def contrast(a: str, b: str) -> float:
    """WCAG 2.1's ratio of two colours."""
    low, high = sorted(luminance(c) for c in (a, b))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    def linear(part: str) -> float:
        share = int(part, 16) / 255
        return share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4

    digits = colour[1:] if len(colour) == 7 else "".join(c * 2 for c in colour[1:])
    red, green, blue = (linear(digits[i : i + 2]) for i in (0, 2, 4))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
