"""How far raters agree, and how sure a share is."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence

Z_95 = 1.959963984540054  # the normal distribution's 97.5 % point


def fleiss_kappa(answers: Sequence[Sequence[str]]) -> float:
    """Fleiss' kappa (Fleiss 1971): one row of answers per question, equally many in each.

        P_i = (sum_j n_ij^2 - n) / (n (n - 1)),   P_e = sum_j p_j^2,   kappa = (mean P_i - P_e) / (1 - P_e)

    1 is full agreement, 0 what chance alone gives, below 0 less than that. NaN when there is nothing to
    compare: no rows, one rater, or one and the same answer everywhere. ValueError for unequal rows.
    """
    if not answers:
        return math.nan
    num_raters = len(answers[0])
    if any(len(row) != num_raters for row in answers):
        raise ValueError("Fleiss' kappa takes equally many answers to every question")
    if num_raters < 2:
        return math.nan
    counts = [Counter(row) for row in answers]
    pairs = num_raters * (num_raters - 1)
    agreed = [(sum(n * n for n in row.values()) - num_raters) / pairs for row in counts]
    total = sum(counts, Counter())
    by_chance = math.fsum((n / (num_raters * len(answers))) ** 2 for n in total.values())
    if len(total) == 1:
        return math.nan
    return (math.fsum(agreed) / len(answers) - by_chance) / (1 - by_chance)


def share_interval(hits: Iterable[tuple[Hashable, bool]]) -> tuple[float, float]:
    """The 95 % interval of a share: Wilson's (1927), at the sample size that clusters leave.

    ``hits`` are (cluster, hit). Pictures of one subject stand or fall together, so they are worth fewer than
    their number: n is divided by the design effect, the clustered variance of the share over the binomial
    one, where that is above 1 (Korn and Graubard 1998). With one cluster nothing is known of it, and n stays.
    """
    rows = list(hits)
    if not rows:
        return math.nan, math.nan
    share = sum(hit for _, hit in rows) / len(rows)
    return wilson(share, len(rows) / _design_effect(rows, share))


def _design_effect(rows: Sequence[tuple[Hashable, bool]], share: float) -> float:
    off: dict[Hashable, float] = defaultdict(float)
    for cluster, hit in rows:
        off[cluster] += hit - share
    binomial = share * (1 - share) / len(rows)
    if len(off) < 2 or not binomial:
        return 1.0
    clustered = len(off) / (len(off) - 1) * math.fsum(d * d for d in off.values()) / len(rows) ** 2
    return max(1.0, clustered / binomial)


def wilson(share: float, count: float) -> tuple[float, float]:
    """Wilson's score interval, inside [0, 1] and sensible at both ends."""
    spread = Z_95**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = Z_95 * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)
