"""What a few trainings say about a claim, by one rule for the whole book.

A claim *shows* if every seed with it beats every seed without it; there is *a hint* if
the means differ by more than the seeds scatter (one standard deviation); otherwise the
two cannot be told apart.
"""

import numpy as np


def verdict(claim, ours, others, score):
    """One sentence, in Markdown, on whether `ours` beats `others`.

    ours, others: scores of the seeds with and without what is claimed, higher is
    better. claim: what `ours` would show; score: the name of the scores.
    """
    a, b = np.asarray(ours, float), np.asarray(others, float)
    means = f"{score} {a.mean():.3f} against {b.mean():.3f}"
    if a.min() > b.max():
        return f"**{claim}**: shows, on every seed. {means}."
    if a.max() < b.min():
        return f"**{claim}**: the opposite shows, on every seed. {means}."
    lead = a.mean() - b.mean()
    # The seeds are a sample: one less below the line. One seed scatters by nothing.
    scatter = max(x.std(ddof=1) if len(x) > 1 else 0.0 for x in (a, b))
    if lead > scatter:
        return f"**{claim}**: a hint; the seeds overlap. {means}."
    if -lead > scatter:
        return f"**{claim}**: a hint of the opposite; the seeds overlap. {means}."
    return f"**{claim}**: does not show here. {means}, within the scatter of the seeds."


def spread(values):
    """The mean, lowest and highest of a few scores: "0.512 (0.498 to 0.526)"."""
    values = np.asarray(values, float)
    return f"{values.mean():.3f} ({values.min():.3f} to {values.max():.3f})"
