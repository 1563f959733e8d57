"""Laws of growth fitted to a few points, by least squares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the straight line through the points."""
    return float(np.polyfit(x, y, 1)[0])


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """b of y = a xᵇ: the slope between the logarithms. All values must be above 0."""
    if min(*x, *y) <= 0:
        raise ValueError(f"x = {list(x)} and y = {list(y)} have no exponent; expected values above 0")
    return slope(np.log(x).tolist(), np.log(y).tolist())


def product_term(x: Sequence[float], y: Sequence[float], z: Sequence[float]) -> float:
    """d of z = a + b x + c y + d x y: what of z grows with both at once."""
    first, second = np.array(x, np.float64), np.array(y, np.float64)
    # Columns of like size: the fit must not drown in the product's magnitude.
    scales = np.abs(first).max(), np.abs(second).max()
    first, second = first / scales[0], second / scales[1]
    columns = np.stack([np.ones_like(first), first, second, first * second], axis=1)
    return float(np.linalg.lstsq(columns, np.array(z), rcond=None)[0][3] / (scales[0] * scales[1]))
