"""The parts of a self-contained HTML page. Whatever comes from outside is escaped here, and nowhere else.

The page asks for nothing: style is inline, pictures are data, there is no script, and its content security
policy would stop one that slipped in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from ..core.errors import LikenessError
from .thumbnails import Source, Thumbnail, thumbnail

STYLE = Path(__file__).with_name("report.css")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


class Html(str):
    """Markup that is safe to put into a page. Plain text becomes Html by ``text`` alone."""


def text(value: object) -> Html:
    return Html(escape(str(value)))


def join(parts: Iterable[Html]) -> Html:
    return Html("".join(parts))


def tag(name: str, *content: Html | str, **attributes: str) -> Html:
    """An element. Content that is not ``Html`` is escaped; ``class_`` and ``aria_label`` lose their bars."""
    inner = "".join(c if isinstance(c, Html) else escape(c) for c in content)
    told = "".join(f' {k.strip("_").replace("_", "-")}="{escape(v)}"' for k, v in attributes.items())
    return Html(f"<{name}{told}>{inner}</{name}>")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A picture with its alternative text and, below it, an optional name and a line of detail."""

    image: Thumbnail
    alt: str
    name: str = ""
    detail: str = ""
    mark: bool = False  # drawn with a frame: the best step


def figure(item: Figure) -> Html:
    image = item.image
    # small pictures are enlarged with their pixels kept, not blurred
    kind = "pixels" if max(image.width, image.height) <= 128 else "photo"
    img = Html(
        f'<img src="{image.uri}" alt="{escape(item.alt)}" width="{image.width}" height="{image.height}" '
        f'class="{kind}" decoding="async">'
    )
    name = tag("span", item.name, class_="name") if item.name else Html("")
    detail = tag("span", item.detail, class_="detail") if item.detail else Html("")
    caption = tag("figcaption", name, detail) if name or detail else Html("")
    return tag("figure", img, caption, class_="marked" if item.mark else "plain")


def figures_of(
    sources: Sequence[Source],
    edge: int,
    problems: list[str],
    *,
    alts: Sequence[str],
    names: Sequence[str] = (),
    details: Sequence[str] = (),
    marks: Iterable[int] = (),
) -> list[Figure]:
    """A figure of each source that can still be read; of the others, a line among the problems."""
    made, marked = [], set(marks)
    for i, source in enumerate(sources):
        try:
            image = thumbnail(source, edge=edge)
        except LikenessError as error:
            problems.append(str(error))
            continue
        name, detail = (names[i] if names else ""), (details[i] if details else "")
        made.append(Figure(image=image, alt=alts[i], name=name, detail=detail, mark=i in marked))
    return made


def gallery(items: Sequence[Figure], *, kind: str = "grid") -> Html:
    """``grid`` wraps, ``strip`` stays in one row and scrolls sideways where it must."""
    focus = {"tabindex": "0"} if kind == "strip" else {}  # so that a keyboard can scroll it
    return tag("div", join(figure(item) for item in items), class_=kind, **focus)


def chart(draw: Callable[[int], str], note: str = "") -> Html:
    """A chart at two widths, of which the page shows the one that fits, so that its text stays readable."""
    wide, narrow = tag("div", Html(draw(680)), class_="wide"), tag("div", Html(draw(340)), class_="narrow")
    return tag("div", wide, narrow, tag("p", note, class_="note") if note else Html(""), class_="chart")


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str) -> Html:
    """The first column names its row. On a narrow screen each row becomes a block, named by the head."""
    columns = join(tag("th", name, scope="col") for name in head)
    body = join(
        tag(
            "tr",
            tag("th", row[0], scope="row"),
            *(tag("td", cell, data_label=name) for name, cell in zip(head[1:], row[1:], strict=True)),
        )
        for row in rows
    )
    return tag(
        "table",
        tag("caption", caption),
        tag("thead", tag("tr", columns)),
        tag("tbody", body),
    )


def facts(items: Mapping[str, str]) -> Html:
    """Names and values, two by two."""
    pairs = (tag("div", tag("dt", name), tag("dd", value)) for name, value in items.items())
    return tag("dl", join(pairs), class_="facts")


def details(summary: str, *content: Html) -> Html:
    """Folded away until asked for."""
    return tag("details", tag("summary", summary), *content)


def section(heading: str, anchor: str, *content: Html) -> Html:
    return tag("section", tag("h2", heading, id=anchor), *content, aria_labelledby=anchor)


def page(*, title: str, lede: str, contents: Mapping[str, str], body: Html, footer: str) -> str:
    """The whole file. ``contents`` maps anchors to the names of sections."""
    links = join(tag("a", name, href=f"#{anchor}") for anchor, name in contents.items())
    header = tag(
        "header",
        tag("p", "Likeness report", class_="eyebrow"),
        tag("h1", title),
        tag("p", lede, class_="lede") if lede else Html(""),
        tag("nav", links, aria_label="Sections"),
    )
    style = STYLE.read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"{header}\n<main>\n{body}\n</main>\n{tag('footer', footer)}\n</body>\n</html>\n"
    )
