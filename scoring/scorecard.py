"""The scores of a set of pictures, with everything that is needed to read or to repeat them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from ..core.errors import LikenessError
from ..core.tables import csv_text, finite, not_a_formula, plain
from .metrics import Mean, average, subject_means
from .thumbnails import Thumbnail

METRICS = ("clip_t", "clip_i", "dino")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One picture's scores. A score that could not be computed is NaN."""

    subject: str
    prompt: str
    text: str  # what CLIP-T read: the prompt without the identifier
    seed: int | None = None
    image: str = ""  # the picture's file, where it has one
    scores: Mapping[str, float]  # by METRICS


@dataclass(frozen=True, kw_only=True)
class Scorecard:
    """Rows and the protocol they were made by; means follow from them.

    ``protocol`` records encoders (id, weights hash, preprocessing), identifier rule, reference sets and
    averaging order. ``thumbnails`` are of some rows, by row number; they are not part of the JSON.
    """

    label: str
    rows: tuple[Row, ...]
    protocol: Mapping[str, Any]
    thumbnails: Mapping[int, Thumbnail] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def means(self) -> dict[str, Mean]:
        """Each metric's mean with its 95 % interval, in the protocol's averaging order."""
        return {metric: average(self._column(metric)) for metric in METRICS}

    def by_subject(self, metric: str) -> dict[str, float]:
        return subject_means(self._column(metric))

    def name(self, metric: str) -> str:
        """The metric as a column is headed. Toybox's own never go by the full-size models' names."""
        return str(self.protocol.get("metrics", {}).get(metric, {}).get("label", metric))

    def summary(self) -> str:
        """The means in one line."""
        parts = [f"{self.name(metric)} {plain(mean.value)}" for metric, mean in self.means.items()]
        return f"{self.label}: " * bool(self.label) + ", ".join(parts) + f" ({len(self.rows)} pictures)"

    def brief(self) -> dict[str, Any]:
        """The label and the means as JSON holds them, for a batch to compare: a score is null or finite."""
        means = {metric: finite(mean.value) for metric, mean in self.means.items()}
        return {"label": self.label, **means, "names": {metric: self.name(metric) for metric in METRICS}}

    def _column(self, metric: str) -> Iterator[tuple[str, str, float]]:
        return ((row.subject, row.prompt, row.scores.get(metric, math.nan)) for row in self.rows)

    # --- files ------------------------------------------------------------------------------------
    def to_json(self) -> str:
        """Equal scorecards give equal bytes. NaN is null."""
        record = {
            "label": self.label,
            "means": {metric: asdict(mean) for metric, mean in self.means.items()},
            "subjects": {metric: self.by_subject(metric) for metric in METRICS},
            "protocol": self.protocol,
            "rows": [asdict(row) for row in self.rows],
        }
        return json.dumps(finite(record), indent=2, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Scorecard:
        """The inverse of ``to_json``, without thumbnails. LikenessError when it is not a scorecard."""
        try:
            record = json.loads(text)
            rows = tuple(
                Row(**{**row, "scores": {k: math.nan if v is None else v for k, v in row["scores"].items()}})
                for row in record["rows"]
            )
            return cls(label=record["label"], rows=rows, protocol=record["protocol"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LikenessError("This is not a scorecard", expected="the JSON that Likeness wrote") from error

    def to_csv(self) -> str:
        """One line per picture, then nothing else, so that any spreadsheet opens it."""
        head = ["subject", "prompt", "text", "seed", "image", *(self.name(m) for m in METRICS)]
        return csv_text([head, *map(_cells, self.rows)])


def _cells(row: Row) -> list[object]:
    words = [not_a_formula(text) for text in (row.subject, row.prompt, row.text)]
    scores = [plain(row.scores.get(metric, math.nan), 6) for metric in METRICS]
    return [*words, row.seed, not_a_formula(row.image), *scores]
