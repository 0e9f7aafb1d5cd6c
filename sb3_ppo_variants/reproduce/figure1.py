"""Fig. 1: one term of L^CLIP as a function of the probability ratio, for a positive and a negative advantage."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th

from sb3_ppo_variants import losses
from sb3_ppo_variants.arguments import require
from sb3_ppo_variants.reproduce import drawing
from sb3_ppo_variants.reproduce.places import OUTPUT

CLIP_RANGE = 0.2
LARGEST_RATIO = 1.75
POINTS = 351


class Term(NamedTuple):
    """One term of L^CLIP."""

    ratio: np.ndarray
    """``(n,)``"""
    value: np.ndarray
    """``(n,)``, in units of the advantage's size"""


def term(advantage: float, clip_range: float = CLIP_RANGE) -> Term:
    """One term of L^CLIP, by :func:`~sb3_ppo_variants.losses.clipped_surrogate`, from r = 0 on."""
    ratio = th.linspace(0.0, LARGEST_RATIO, POINTS, dtype=th.float64)
    value = losses.clipped_surrogate(ratio, th.full_like(ratio, advantage), clip_range)
    return Term(ratio.numpy(), value.numpy())


def figure1(*, clip_range: float = CLIP_RANGE, output: str | Path = OUTPUT) -> list[Path]:
    """Draw Fig. 1.

    :param clip_range: ε
    :param output: folder for the picture
    :return: the files
    :raises ValueError: for an ε outside (0, 0.7)
    """
    require("clip_range", clip_range, "a number in (0, 0.7)", lambda value: 0 < value < 0.7)
    return drawing.save(draw(clip_range), Path(output), "figure1")


def draw(clip_range: float) -> Any:
    """The picture, with axes through the origin as in the paper's."""
    figure = drawing.new_figure(7.2, 2.7)
    left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.12})
    _draw(left, 1.0, clip_range, 1 + clip_range, "1 + ε", above=True)
    _draw(right, -1.0, clip_range, 1 - clip_range, "1 − ε", above=False)
    return figure


def _draw(axes: Any, advantage: float, clip_range: float, edge: float, name: str, above: bool) -> None:
    ratio, value = term(advantage, clip_range)
    axes.plot(ratio, value, color="black", linewidth=1.8)
    axes.plot(1, advantage, "o", color="red", markersize=6, zorder=3)
    for at, reach in ((1.0, advantage), (edge, advantage * edge)):
        axes.plot([at, at], [0, reach], ":", color="black", linewidth=1)
    offset = -9 if above else 9
    for at, text in ((1.0, "1"), (edge, name), (0.0, "0")):
        where = (at, 0) if at else (0.0, 0)
        side = "left" if at > 1 else "right" if at < 1 else "center"
        axes.annotate(
            text, where, (0 if at else -4, offset), textcoords="offset points", ha=side, va="center", fontsize=10
        )
    axes.annotate(
        "r", (LARGEST_RATIO, 0), (0, offset), textcoords="offset points", ha="center", va="center", style="italic"
    )
    reach = 1.6 if above else -1.85
    axes.annotate("$L^{CLIP}$", (0, reach), (6, 0), textcoords="offset points", va="center")
    axes.text(0.5 * LARGEST_RATIO, 1.6 if above else 0.45, f"A {'>' if above else '<'} 0", ha="center", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines["bottom"].set_position("zero")
    axes.spines["left"].set_position("zero")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlim(0, LARGEST_RATIO + 0.05)
    axes.set_ylim(*((-0.25, 1.75) if above else (-2.0, 0.6)))
