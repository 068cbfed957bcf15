"""Greedy forward selection of the channels from which a layer's outputs are best reconstructed, by pivoted Cholesky.

With Sigma the covariance of a layer's inputs, S the columns chosen so far and T those of one more channel,

    R = Sigma - Sigma_{*S} Sigma_SS^-1 Sigma_{S*}        D = W R        gain(t|S) = tr(D_T R_TT^-1 D_T^T)

is by how much the loss left after the best correction sinks when t joins. The blocks R_TT, D and G_T = D_T^T D_T are
brought up to date with each choice, R itself, of what is left, once in `_BLOCK` columns: between, its rows are made as
they are asked for. The factor L of Sigma in the order of the choices is what corrections for any number of them are
then made of.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from secateur._protocols import BoolArray, FloatArray, IntArray

Part = tuple[IntArray, IntArray]


class ForwardSelection:
    """One layer's inputs, some of them chosen. Memory: 8 columns^2 bytes besides what is given, 24 while they join."""

    def __init__(
        self,
        weight: torch.Tensor,
        sigma: torch.Tensor,
        parts: Sequence[Part],
        fixed: IntArray | None = None,
        *,
        ridge: float = 0.0,
    ) -> None:
        """Choose nothing yet but the fixed columns.

        weight: [outputs, columns]. sigma: [columns, columns]; both float64. parts: channels [width] and their columns
        [width, k]. ridge: added to every variance, relative to it.
        """
        variance = sigma.diagonal()
        self.deviation = variance.clamp_min(0).sqrt()
        self.constant = self.deviation == 0
        self._scale = torch.where(self.constant, 0.0, 1.0 / torch.where(self.constant, 1.0, self.deviation))
        self._sigma, self.weight, self.ridge = sigma, weight, ridge
        scaled = weight * self.deviation
        if len(scaled) > scaled.shape[1]:  # only W^T W matters
            scaled = torch.linalg.qr(scaled, mode="r").R
        self.parts = [(channels, torch.from_numpy(columns).to(sigma.device)) for channels, columns in parts]
        self._d = scaled @ self._unit_rows(None)
        self.total = float((self._d * scaled).sum())  # tr(W Sigma W^T)
        self._space = sigma.new_zeros(len(sigma), len(sigma))
        self.order: list[int] = []  # columns as they were chosen
        self.ends: list[int] = []  # how many there were before and after every channel
        self._rest: torch.Tensor | None = None  # R of the columns `_left`, once `_done` were chosen; None: Sigma
        self._left = self._place = torch.arange(len(sigma), device=sigma.device)
        self._open = self.total  # of it, what no choice has won
        self._noise = ridge  # a variance, of 1, in which rounding has a part as large
        self._done = 0
        self._r = [self._unit_blocks(columns) for _, columns in self.parts]
        self._g = [self._d[:, c].permute(1, 2, 0) @ self._d[:, c].permute(1, 0, 2) for _, c in self.parts]
        if fixed is not None and len(fixed):
            self._choose(torch.from_numpy(fixed).to(sigma.device))
        self.ends.append(len(self.order))

    def _unit_rows(self, rows: torch.Tensor | None) -> torch.Tensor:
        """Rows of Sigma at variance 1."""
        if rows is None:
            return self._sigma * self._scale[:, None] * self._scale
        return self._sigma[rows] * self._scale[rows][:, None] * self._scale

    def _unit_blocks(self, columns: torch.Tensor) -> torch.Tensor:
        """Blocks [width, k, k] on the diagonal, with what makes them definite."""
        scale = self._scale[columns]
        blocks = self._sigma[columns[:, :, None], columns[:, None, :]] * scale[:, :, None] * scale[:, None, :]
        ones = torch.where(self.constant, 1.0, self.ridge)[columns]
        return blocks + torch.diag_embed(ones)

    def gains(self, width: int) -> FloatArray:
        """gain(t|S) of every channel [width] as a share of tr(W Sigma W^T); of chosen ones without meaning."""
        result = np.zeros(width)
        for (channels, _), r, g in zip(self.parts, self._r, self._g, strict=True):
            if self._noise > self.ridge:
                r = r + (self._noise - self.ridge) * torch.eye(r.shape[1], dtype=r.dtype, device=r.device)
            if r.shape[1] == 1:
                gain = torch.where(r > _TINY, g / r.clamp_min(_TINY), 0.0)[:, 0, 0]
            else:
                factor, failed = torch.linalg.cholesky_ex(r)
                factor[failed > 0] = torch.eye(r.shape[1], dtype=r.dtype, device=r.device)
                solved = torch.cholesky_solve(g, factor).diagonal(dim1=1, dim2=2).sum(1)
                gain = torch.where(failed > 0, 0.0, solved)
            result[channels] += gain.clamp(0, self._open).cpu().numpy()
        return result / self.total if self.total > 0 else result

    def choose(self, channel: int) -> None:
        """Let a channel join."""
        for channels, columns in self.parts:
            at = np.flatnonzero(channels == channel)
            if len(at):
                self._choose(columns[int(at[0])])
        self.ends.append(len(self.order))

    def _choose(self, columns: torch.Tensor) -> None:
        done, count = len(self.order), len(columns)
        rows, theirs = self._residual(columns), self._d[:, columns]
        own = rows[:, columns]
        own.diagonal().add_(torch.where(self.constant, 1.0, self.ridge)[columns])
        factor, failed = torch.linalg.cholesky_ex(own)
        if int(failed) or float(factor.diagonal().min()) < _NARROW:
            factor, known = self._told_apart(own)
            rows, theirs = known @ rows, theirs @ known
        k = torch.linalg.solve_triangular(factor, rows, upper=False)  # L_T*^-1 R_T*
        k[:, columns] = factor.T  # with the ridge
        if self.order:
            k[:, torch.tensor(self.order, device=k.device)] = 0.0  # only rounding errors are there
        e = torch.linalg.solve_triangular(factor, theirs.T, upper=False).T
        won = float(e.square().sum())  # gain(T|S), which is no more than what is left to win
        e *= min(1.0, self._open / won) ** 0.5 if won > 0 else 1.0
        self._open = max(self._open - won, 0.0)
        self._space[:, done : done + count] = k.T
        self.order += columns.tolist()
        cross, square = e.T @ self._d, e.T @ e
        self._d.addmm_(e, k, alpha=-1.0)
        for number, (_, places) in enumerate(self.parts):
            mine = k[:, places].permute(1, 0, 2)  # [width, chosen, k]
            seen = mine.mT @ cross[:, places].permute(1, 0, 2)
            self._r[number] -= mine.mT @ mine
            self._g[number] += mine.mT @ square @ mine - seen - seen.mT

    def _told_apart(self, own: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """L of R_TT, and the projection on what of T is not given by those chosen: the rest of its rows is rounding.

        A true R_TT has no eigenvalue below the ridge; by how much one falls below tells how large rounding is.
        """
        values, vectors = torch.linalg.eigh(own)
        self._noise = max(self._noise, _MARGIN * (self.ridge - float(values[0])))
        known = vectors[:, values - self.ridge > self._noise]
        # what noise is left must not be divided by less than its own size, or it would grow from choice to choice
        definite = (vectors * values.clamp_min(max(self._noise, _TINY))) @ vectors.T
        return torch.linalg.cholesky(definite), known @ known.T

    def close(self) -> None:
        """Forget what only further choices would need."""
        self._rest = None

    def _residual(self, columns: torch.Tensor) -> torch.Tensor:
        """Rows of R; of columns that are chosen without meaning."""
        if len(self.order) - self._done >= _BLOCK:
            self._settle()
        if self._rest is None:
            rows = self._unit_rows(columns)
        else:
            rows = self._space.new_zeros(len(columns), len(self._space))
            rows[:, self._left] = self._rest[self._place[columns]]
        recent = slice(self._done, len(self.order))
        return rows.addmm_(self._space[columns, recent], self._space[:, recent].T, alpha=-1.0)

    def _settle(self) -> None:
        """Bring R of the columns that are left up to date: one product where every choice would be a thin one."""
        stays = torch.ones(len(self._space), dtype=torch.bool, device=self._space.device)
        stays[torch.tensor(self.order, device=stays.device)] = False
        left = stays.nonzero().squeeze(1)
        if self._rest is None:
            scale = self._scale[left]
            rest = self._sigma[left][:, left].mul_(scale[:, None]).mul_(scale)
        else:
            among = self._place[left]
            rest = self._rest[among][:, among]
        recent = self._space[left, self._done : len(self.order)]
        self._rest = rest.addmm_(recent, recent.T, alpha=-1.0)
        self._left, self._place = left, stays.cumsum(0) - 1
        self._done = len(self.order)

    # --------------------------------------------------------------------------------------- what a choice comes to

    def corrected(self, columns: int) -> torch.Tensor:
        """W' [outputs, all columns] if only the first so many chosen columns stay; zeros elsewhere."""
        chosen = torch.tensor(self.order[:columns], device=self.weight.device, dtype=torch.long)
        lost = torch.ones(self.weight.shape[1], dtype=torch.bool, device=self.weight.device)
        lost[chosen] = False
        result = torch.where(lost, 0.0, self.weight)
        if not columns or not bool(lost.any()):
            return result
        scaled = (self.weight * self.deviation)[:, lost] @ self._space[lost, :columns]
        change = torch.linalg.solve_triangular(self._space[chosen, :columns], scaled, upper=False, left=False)
        result[:, chosen] += change * self._scale[chosen]
        return result

    def outputs(self, weight: torch.Tensor, columns: int | None = None) -> torch.Tensor:
        """(W Sigma W^T)_nn of weights, zero but for the first so many chosen columns."""
        found: torch.Tensor = ((weight * self.deviation) @ self._space[:, :columns]).square().sum(1)
        return found


#: Columns that join before R is brought up to date.
_BLOCK = 256
#: A variance, of 1, below which a direction is given by those chosen.
_TINY = 1e-13
#: A pivot, of 1, from which on a choice is looked at closely; and how far above rounding a variance has to be.
_NARROW, _MARGIN = 0.03, 4.0


def forward_order(
    selections: Sequence[ForwardSelection], width: int, first: BoolArray | None = None
) -> tuple[IntArray, FloatArray]:
    """Channels, the most important first, and their gains in that order, summed over layers as shares.

    first: channels that are chosen before all others. Channels that never change in any layer come last.
    """
    idle = np.ones(width, dtype=np.bool_)
    for selection in selections:
        still = selection.constant.cpu().numpy()
        for channels, columns in selection.parts:
            idle[channels] &= still[columns.cpu().numpy()].all(1)
    tier = np.where(idle, 0, 1) if first is None else np.where(first, 2, np.where(idle, 0, 1))
    left, order, gains = np.ones(width, dtype=np.bool_), np.zeros(width, dtype=np.int64), np.zeros(width)
    for place in range(width):
        found = sum((selection.gains(width) for selection in selections), np.zeros(width))
        candidates = np.flatnonzero(left & (tier == tier[left].max()))
        best = int(candidates[np.argmax(found[candidates])])
        order[place], gains[place], left[best] = best, found[best], False
        for selection in selections:
            selection.choose(best)
    for selection in selections:
        selection.close()
    return order, gains
