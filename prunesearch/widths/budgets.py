"""The number of weights that a search removes: from a target to a budget that whole levels make."""

import re
from collections.abc import Sequence

from prunesearch.errors import InputError
from prunesearch.units import parse_size
from prunesearch.widths.genes import Gene


def parse_target(text: str, total_params: int, bytes_per_param: int) -> float:
    """Convert the value of `target` to a number of parameters.

    Raises:
        InputError: the value cannot be read, or removes nothing or everything.
    """
    # A share, a number of parameters, or a size.
    words = text.strip()
    if percent := re.fullmatch(r"(\d{1,3}(?:\.\d+)?)%", words):
        wanted = float(percent[1]) / 100 * total_params
    elif count := re.fullmatch(r"(\d{1,12}(?:\.\d+)?)([KMB]?)", words):
        wanted = float(count[1]) * {"": 1, "K": 1e3, "M": 1e6, "B": 1e9}[count[2]]
    else:
        try:
            wanted = parse_size(words, "`target`") / bytes_per_param
        except InputError:
            raise InputError(
                f"`target` {text!r} cannot be read: give a share (20%), a number of parameters "
                f"(26M) or a size (100MiB)"
            ) from None
    if wanted <= 0:
        raise InputError(f"`target` {text} removes nothing: give more than 0")
    if wanted >= total_params:
        if percent:
            raise InputError(f"`target` {text} removes everything: give less than 100%")
        raise InputError(
            f"`target` {text} is {wanted:,.0f} of {total_params:,} parameters: give less than all"
        )
    return wanted


def nearest_budget(genes: Sequence[Gene], wanted: float) -> int:
    """Return a number of weights that whole levels make, at most half a level of an MLP away.

    If MLPs alone can make one, the nearest of these is taken. With it all attentions can stay
    whole, or all be alike. Of other numbers the nearest one is taken, and of two equally near ones
    the one that more totals of groups can make.
    """
    costs = sorted({gene.cost for gene in genes})
    if not costs:
        raise InputError("no layer can be narrowed: protect fewer")
    attention = sorted({gene.cost for gene in genes if gene.attention})
    main = next((gene.cost for gene in genes if not gene.attention), costs[0])
    # Can MLPs alone make a number of weights that is near?
    steps = round(wanted / main)
    if 0 < steps <= sum(gene.most for gene in genes if gene.cost == main and not gene.attention):
        return steps * main
    # Else combine groups and steps, and note in how many ways each total is reached.
    groups = sum(gene.most for gene in genes if gene.attention)
    reached: dict[int, int] = {}
    for cost in attention or [0]:
        for count in range(groups + 1):
            levels = max(0, round((wanted - cost * count) / main))
            total = cost * count + main * levels
            reached[total] = reached.get(total, 0) + 1
    return min(reached, key=lambda total: (abs(total - wanted), -reached[total]))
