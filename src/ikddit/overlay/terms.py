"""Linear overlay models: 6/10 parameters, intra-field k1..k20, grid orders; fitted to masked maps.

With X, Y the position of the *field centre* on the wafer and x, y the position *inside the field* (mm),

    dx = Tx + Mx*X - Rx*Y + mx*x - rx*y
    dy = Ty + My*Y + Ry*X + my*y + ry*x

Overlay is in nm, so that 1 ppm x 1 mm = 1 nm and 1 urad x 1 mm = 1 nm: translations come out in nm,
magnifications in ppm, rotations in urad, terms of order n in nm/mm^n, without a conversion. Much public
code uses the *mark's* position for X, Y, which changes the meaning of the field terms; `reference="mark"`
does the same where wanted, and says so.

High orders are collinear on a wafer. The fit therefore runs in a basis made orthonormal over the usable
pixels, where a ridge means the same for every term, and is turned back into physical units at the end.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Shaped

from ikddit.errors import InputError
from ikddit.overlay.grid import wafer_grid

_CHUNK = 256
_WORST_CONDITION = 1e10
"""Of the normal equations in the orthonormal basis; a fit beyond it is not determined by the marks."""


@dataclass(frozen=True)
class Basis:
    """Terms of both axes: `design[a, t]` is what one unit of term t does to axis a, in nm."""

    names: tuple[tuple[str, ...], tuple[str, ...]]
    """Term names of dx and of dy."""
    units: tuple[tuple[str, ...], tuple[str, ...]]
    design: Float[np.ndarray, "2 t 64 64"]

    def __post_init__(self) -> None:
        """Terms of an axis must have different names: two of a name are the same pattern twice."""
        for names in self.names:
            if len(set(names)) != len(names):
                raise ValueError(f"terms appear twice in one basis: {sorted(names)}")

    def __add__(self, other: "Basis") -> "Basis":
        """Terms of both; raises ValueError when they share one (say the translation)."""
        return Basis(
            (self.names[0] + other.names[0], self.names[1] + other.names[1]),
            (self.units[0] + other.units[0], self.units[1] + other.units[1]),
            np.concatenate([self.design, other.design], axis=1),
        )


def linear_basis(parameters: Literal[6, 10] = 10, reference: Literal["field", "mark"] = "field") -> Basis:
    """The 6-parameter (wafer) or 10-parameter (wafer and field) linear model.

    Args:
        parameters: 6 leaves out the field terms mx, rx, my, ry.
        reference: what X, Y mean: the field's centre, or the mark's own position.

    >>> linear_basis(10).names
    (('Tx', 'Mx', 'Rx', 'mx', 'rx'), ('Ty', 'My', 'Ry', 'my', 'ry'))
    >>> linear_basis(6).units[0]
    ('nm', 'ppm', 'urad')
    """
    g = wafer_grid()
    wx, wy = (g.field_x_mm, g.field_y_mm) if reference == "field" else (g.x_mm, g.y_mm)
    one = np.ones_like(wx)
    design = np.stack(
        [
            np.stack([one, wx, -wy, g.in_x_mm, -g.in_y_mm]),
            np.stack([one, wy, wx, g.in_y_mm, g.in_x_mm]),
        ]
    )
    names = ("Tx", "Mx", "Rx", "mx", "rx"), ("Ty", "My", "Ry", "my", "ry")
    units = ("nm", "ppm", "urad", "ppm", "urad")
    n = parameters // 2
    return Basis((names[0][:n], names[1][:n]), (units[:n], units[:n]), design[:, :n])


def _powers(order: int) -> list[tuple[int, int]]:
    """Exponents (i, j) up to `order`, in the order of the k-parameters of dx: 1, x, y, x2, xy, y2, x3 ..."""
    return [(d - j, j) for d in range(order + 1) for j in range(d + 1)]


def _polynomials(u: np.ndarray, v: np.ndarray, order: int) -> np.ndarray:
    """(2, t, 64, 64): powers of (u, v) for dx and, with the roles swapped as in k-notation, for dy."""
    return np.stack(
        [
            np.stack([u**i * v**j for i, j in _powers(order)]),
            np.stack([v**i * u**j for i, j in _powers(order)]),
        ]
    )


def _unit(degree: int) -> str:
    return ("nm", "ppm", "nm/mm2", "nm/mm3", "nm/mm4", "nm/mm5")[degree]


def intrafield_basis(order: Literal[1, 2, 3] = 3, translation: bool = True) -> Basis:
    """Intra-field k-parameters: k1..k6, k1..k12 or k1..k20 (order 1, 2, 3), odd k in dx, even k in dy.

    k1, k2 = 1; k3 = x, k4 = y; k5 = y, k6 = x (a pure rotation has k5 = -k6); k7 = x^2, k8 = y^2; ...;
    k19 = y^3, k20 = x^3, with x, y the position inside the field in mm.

    Args:
        order: highest power.
        translation: False leaves out k1 and k2, to be added to a grid model that has its own translation.

    >>> intrafield_basis(3).names[0][-1], intrafield_basis(3).names[1][-1]
    ('k19', 'k20')
    """
    g = wafer_grid()
    powers = _powers(order)
    names = [tuple(f"k{2 * t + 1 + axis}" for t in range(len(powers))) for axis in (0, 1)]
    units = tuple(_unit(i + j) for i, j in powers)
    first = 0 if translation else 1
    return Basis(
        (names[0][first:], names[1][first:]),
        (units[first:], units[first:]),
        _polynomials(g.in_x_mm, g.in_y_mm, order)[:, first:],
    )


def grid_basis(order: Literal[0, 1, 2, 3, 4, 5] = 3, reference: Literal["field", "mark"] = "field") -> Basis:
    """Wafer grid of full order n: (n+1)(n+2)/2 terms per axis, 2 / 6 / 12 / 20 / 30 / 42 parameters in all.

    Names are `X20`: dx term X^2 Y^0; `Y20`: dy term Y^2 X^0 (the same pairing as the k-parameters).

    Args:
        order: highest power.
        reference: what X, Y mean: the field's centre, or the mark's own position.
    """
    g = wafer_grid()
    wx, wy = (g.field_x_mm, g.field_y_mm) if reference == "field" else (g.x_mm, g.y_mm)
    powers = _powers(order)
    names = [tuple(f"{axis}{i}{j}" for i, j in powers) for axis in "XY"]
    units = tuple(_unit(i + j) for i, j in powers)
    return Basis((names[0], names[1]), (units, units), _polynomials(wx, wy, order))


def orthonormal(basis: Basis) -> tuple[Float[np.ndarray, "2 t 64 64"], Float[np.ndarray, "2 t t"]]:
    """Orthonormal patterns spanning the same maps, and the matrix that turns coefficients back.

    Over the usable pixels each pattern has a root mean square of 1 nm and no correlation with the others;
    `terms = back @ coefficients` per axis.

    Raises:
        ValueError: two terms are the same pattern on this grid.
    """
    usable = wafer_grid().usable
    patterns, back = np.empty_like(basis.design), []
    for axis, design in enumerate(basis.design):
        columns = design[:, usable].T
        scale = np.sqrt((columns**2).mean(axis=0))
        _, r = np.linalg.qr(columns / scale)
        if np.abs(np.diag(r)).min() < 1e-9 * np.abs(np.diag(r)).max():
            raise ValueError(f"terms are linearly dependent on the 64x64 grid: {basis.names[axis]}")
        # Signs of R follow the library; positive diagonals make the patterns the same everywhere.
        r = r * np.sign(np.diag(r))[:, None] / np.sqrt(len(columns))
        inverse = np.linalg.inv(r) / scale[:, None]
        patterns[axis] = np.tensordot(inverse.T, design, axes=1)
        back.append(inverse)
    return patterns, np.stack(back)


@dataclass(frozen=True)
class Fitter:
    """Least-squares fits of one model to many maps with the same n masks; the normal equations are built once."""

    basis: Basis
    patterns: Float[np.ndarray, "2 t p"]
    """Orthonormal patterns on the usable pixels."""
    back: Float[np.ndarray, "2 t t"]
    weight: Shaped[np.ndarray, "n p"]
    gram: Float[np.ndarray, "n 2 t t"]

    @classmethod
    def of(cls, basis: Basis, valid: Shaped[np.ndarray, "n 64 64"], ridge: float = 0.0) -> "Fitter":
        """Build the normal equations of each mask; arguments and errors as in `fit_terms`."""
        if ridge < 0:
            raise ValueError(f"ridge is {ridge}, expected 0 or more")
        usable = wafer_grid().usable
        patterns, back = orthonormal(basis)
        columns = patterns[:, :, usable]
        terms, marks = columns.shape[1:]
        products = [(c[:, None] * c[None]).reshape(terms * terms, -1).T for c in columns]
        weight = valid[:, usable] != 0
        gram = np.empty((len(valid), 2, terms, terms))
        for start in range(0, len(valid), _CHUNK):
            part = slice(start, start + _CHUNK)
            for axis in (0, 1):
                made = (weight[part].astype(np.float64) @ products[axis]).reshape(-1, terms, terms) / marks
                gram[part, axis] = made + ridge * np.eye(terms)
                _refuse_undetermined(gram[part, axis], weight[part], start)
        return cls(basis, columns, back, weight, gram)

    def coefficients(self, maps: Shaped[np.ndarray, "n 2 64 64"]) -> Float[np.ndarray, "n 2 t"]:
        """Coefficients of the orthonormal patterns: nm, each the RMS over the wafer of what it does to an axis."""
        usable = wafer_grid().usable
        out = np.empty(self.gram.shape[:3])
        for start in range(0, len(maps), _CHUNK):
            part = slice(start, start + _CHUNK)
            for axis in (0, 1):
                values = np.where(self.weight[part], maps[part, axis][:, usable], 0.0).astype(np.float64)
                right = values @ self.patterns[axis].T / usable.sum()
                out[part, axis] = np.linalg.solve(self.gram[part, axis], right[..., None])[..., 0]
        return out

    def terms(self, maps: Shaped[np.ndarray, "n 2 64 64"]) -> Float[np.ndarray, "n 2 t"]:
        """Terms in the units of `basis.units`."""
        return np.asarray(np.einsum("nak,atk->nat", self.coefficients(maps), self.back))


def fit_terms(
    basis: Basis,
    maps: Shaped[np.ndarray, "n 2 64 64"],
    valid: Shaped[np.ndarray, "n 64 64"],
    ridge: float = 0.0,
) -> Float[np.ndarray, "n 2 t"]:
    """Least-squares terms of each wafer over its valid usable marks.

    Args:
        basis: the model, `t` terms per axis.
        maps: nm; what lies under invalid marks is ignored.
        valid: non-zero where the mark counts.
        ridge: penalty on the mean square, in the orthonormal basis: 0 is plain least squares, 0.01 shrinks
            a well-measured pattern by 1 %.

    Returns:
        float64 coefficients in the units of `basis.units`.

    Raises:
        InputError: names the first wafer whose marks do not determine the terms.

    >>> shifted = np.zeros((1, 2, 64, 64)); shifted[0, 0] = 3.0
    >>> np.abs(fit_terms(linear_basis(6), shifted, np.ones((1, 64, 64)))).round(6).tolist()
    [[[3.0, 0.0, 0.0], [0.0, 0.0, 0.0]]]
    """
    return Fitter.of(basis, valid, ridge).terms(maps)


def _refuse_undetermined(gram: np.ndarray, weight: np.ndarray, start: int) -> None:
    eigenvalues = np.linalg.eigvalsh(gram)
    bad = np.flatnonzero(eigenvalues[:, 0] * _WORST_CONDITION <= np.maximum(eigenvalues[:, -1], 1e-12))
    if len(bad):
        i = int(bad[0])
        raise InputError(
            f"wafer {start + i}",
            "valid",
            f"{int(weight[i].sum())} valid marks do not determine {gram.shape[1]} terms per axis",
            "leave the wafer out, take a smaller model, or set ridge above 0",
        )
