"""A scorecard as files, and as one picture: means with intervals above, pictures with scores below."""

from __future__ import annotations

import io
import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..core.paths import write_atomic
from .metrics import Mean
from .scorecard import Scorecard

WIDTH = 1240
MARGIN = 48
COLUMNS = 5
GAP = 20
MAX_CELLS = 20
INK, MUTED, LINE, PAPER = "#1d1c1a", "#6b6862", "#dedad1", "#fbfaf7"
COLORS = {"clip_t": "#4f55b5", "clip_i": "#a8611b", "dino": "#0b6e5f"}


def draw_card(card: Scorecard) -> Image.Image:
    """The picture, as high as its content. Only pictures with a thumbnail are shown, 20 at most."""
    cells = sorted(card.thumbnails)[:MAX_CELLS]
    edge = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GAP) // COLUMNS
    cell_height = edge + 84
    grid_top = 330
    height = grid_top + math.ceil(len(cells) / COLUMNS) * cell_height + 64
    page = Image.new("RGB", (WIDTH, height), PAPER)
    draw = ImageDraw.Draw(page)
    _heading(draw, card)
    for index, (metric, mean) in enumerate(card.means.items()):
        _bar(draw, 146 + index * 52, card.name(metric), mean, COLORS[metric])
    for place, number in enumerate(cells):
        left = MARGIN + place % COLUMNS * (edge + GAP)
        _cell(page, draw, card, number, (left, grid_top + place // COLUMNS * cell_height), edge)
    _footer(draw, card, height)
    return page


def save_card(card: Scorecard, folder: Path, name: str) -> tuple[Path, Path, Path]:
    """``name``.json, .csv and .png in ``folder``, each written whole or not at all."""
    buffer = io.BytesIO()
    draw_card(card).save(buffer, "PNG")
    table, sheet, picture = (folder / f"{name}{suffix}" for suffix in (".json", ".csv", ".png"))
    write_atomic(table, card.to_json())
    write_atomic(sheet, card.to_csv())
    write_atomic(picture, buffer.getvalue())
    return table, sheet, picture


def _heading(draw: ImageDraw.ImageDraw, card: Scorecard) -> None:
    subjects = sorted({row.subject for row in card.rows})
    names = ", ".join(subjects[:4]) + (", ..." if len(subjects) > 4 else "")
    title = _fitted(draw, card.label or "Scorecard", 34, WIDTH - 2 * MARGIN)
    draw.text((MARGIN, 40), title, font=_font(34), fill=INK)
    counts = f"{len(card.rows)} pictures of {names or 'nothing'}"
    draw.text((MARGIN, 90), _fitted(draw, counts, 18, WIDTH - 2 * MARGIN), font=_font(18), fill=MUTED)


def _bar(draw: ImageDraw.ImageDraw, y: int, name: str, mean: Mean, color: str) -> None:
    """Name, bar from 0 to 1 with the interval as a whisker, and the number."""
    left, right = MARGIN + 190, WIDTH - MARGIN - 270
    draw.text((MARGIN, y), name, font=_font(20), fill=INK)
    draw.rectangle((left, y + 2, right, y + 24), fill="#efece4")
    if not math.isfinite(mean.value):
        draw.text((right + 20, y), "no number", font=_font(20), fill=MUTED)
        return
    draw.rectangle((left, y + 2, _at(mean.value, left, right), y + 24), fill=color)
    number = f"{mean.value:.3f}"
    draw.text((right + 20, y), number, font=_font(20), fill=INK)
    if math.isfinite(mean.low):
        low, high = _at(mean.low, left, right), _at(mean.high, left, right)
        draw.line((low, y + 13, high, y + 13), fill=INK, width=2)
        for x in (low, high):
            draw.line((x, y + 8, x, y + 18), fill=INK, width=2)
        draw.text((right + 90, y + 2), f"{mean.low:.3f} to {mean.high:.3f}", font=_font(17), fill=MUTED)


def _at(value: float, left: int, right: int) -> int:
    return round(left + min(max(value, 0.0), 1.0) * (right - left))


def _cell(
    page: Image.Image,
    draw: ImageDraw.ImageDraw,
    card: Scorecard,
    number: int,
    corner: tuple[int, int],
    edge: int,
) -> None:
    """A picture, its prompt in at most two lines, its scores."""
    left, top = corner
    row, image = card.rows[number], card.thumbnails[number].open()
    scale = edge / max(image.size)
    smooth = Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS
    size = (round(image.width * scale), round(image.height * scale))
    page.paste(image.resize(size, smooth), (left + (edge - size[0]) // 2, top + (edge - size[1]) // 2))
    for line, text in enumerate(_wrapped(draw, row.prompt, 14, edge)[:2]):
        draw.text((left, top + edge + 7 + line * 18), text, font=_font(14), fill=INK)
    x = float(left)
    for metric, color in COLORS.items():
        value = row.scores.get(metric, math.nan)
        text = f"{value:.3f}" if math.isfinite(value) else "n/a"
        draw.text((x, top + edge + 47), text, font=_font(14), fill=color)
        x += draw.textlength(text, font=_font(14)) + 14


def _footer(draw: ImageDraw.ImageDraw, card: Scorecard, height: int) -> None:
    metrics = card.protocol.get("metrics", {})
    encoders = sorted({str(m["encoder"]) for m in metrics.values()}) if metrics else []
    over = {mean.interval_over for mean in card.means.values()} - {"nothing"}
    text = f"Judged by {' and '.join(encoders)}." if encoders else ""
    if over:
        text += f" Whiskers: 95 % bootstrap over {' and '.join(sorted(over))}."
    draw.line((MARGIN, 304, WIDTH - MARGIN, 304), fill=LINE)
    draw.text((MARGIN, height - 46), _fitted(draw, text, 15, WIDTH - 2 * MARGIN), font=_font(15), fill=MUTED)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _fitted(draw: ImageDraw.ImageDraw, text: str, size: int, width: int) -> str:
    """One line of ``text`` that fits, with dots where it was cut."""
    line = " ".join(text.split())
    if draw.textlength(line, font=_font(size)) <= width:
        return line
    while line and draw.textlength(line + "...", font=_font(size)) > width:
        line = line[:-1]
    return line.rstrip() + "..."


def _wrapped(draw: ImageDraw.ImageDraw, text: str, size: int, width: int) -> list[str]:
    """Two lines: the first as full as words allow, the second with what is left, cut where it must be."""
    words, first = text.split(), ""
    while words and draw.textlength(f"{first} {words[0]}".strip(), font=_font(size)) <= width:
        first = f"{first} {words.pop(0)}".strip()
    if not first and words:
        return [_fitted(draw, " ".join(words), size, width)]
    return [first, _fitted(draw, " ".join(words), size, width)]
