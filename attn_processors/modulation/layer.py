"""One attention layer under `modulate`: rows and heads that are edited, and those that are not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

import torch
import torch.nn.functional as F

from ..redirect import Attend
from .base import Modulation, Reader
from .explain import Record
from .lowering import Lowered, lower
from .moment import Moment
from .plan import Plan, merge_plans
from .site import Site

__all__ = ["ModulatedLayer"]


class ModulatedLayer:
    """Answers the redirected softmax call of one layer.

    modulations: those whose scope holds this layer. inner: the operator that `apply` put there.
    plans: what static modulations planned, by all it depends on; layers of one run share it.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        modulations: Sequence[Modulation],
        moment: Moment,
        plans: dict[Hashable, Plan | None],
    ) -> None:
        self.name = name
        self.kind = kind
        self.modulations = tuple(modulations)
        self.moment = moment
        self.inner: Attend | None = None
        self.record = Record(name, kind)
        self._plans = plans

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        scale: float | None,
        special: str | None,
    ) -> torch.Tensor | None:
        """The edited output for q, k, v [B, H, N, D], or None for the stock softmax."""
        self.record.begin(self.moment.runs)
        now = [m for m in self.modulations if m.scope.is_now(self.moment.progress)]
        rows = _grouped(list(zip(*map(self.moment.rows_of, now), strict=True)), now)
        if not any(rows):
            self.record.leave("no row is of the prompt" if now else "outside of its steps")
            return self._plain(q, k, v, scale, special)
        reason = special or self._why_not(q, k)
        if reason is not None:
            self.record.leave(reason)
            return self._plain(q, k, v, scale, special)
        parts = [
            (index, self._rows(*_take((q, k, v), index, 0), active, scale))
            for active, index in rows.items()
        ]
        return _put_back(parts, 0)

    def _plain(self, q, k, v, scale, special):
        return None if self.inner is None else self.inner(q, k, v, scale=scale, special=special)

    def _why_not(self, q: torch.Tensor, k: torch.Tensor) -> str | None:
        moment = self.moment
        if q.shape[0] != len(moment.origins):
            return f"{q.shape[0]} rows, but the text has {len(moment.origins)}"
        if self.moment.tracker.layouts.get(q.shape[2]) is None:
            return f"{q.shape[2]} queries fit no grid of this forward"
        expected = moment.text_length if self.kind == "cross" else q.shape[2]
        if k.shape[2] != expected:
            return f"{k.shape[2]} keys are not the {expected} of the prompt (an image prompt?)"
        return None

    def _rows(self, q, k, v, active, scale):
        """The output for rows of the batch that the same modulations act on."""
        if not active:
            return self._run(q, k, v, scale)
        by_head = [
            [m.scope.heads is None or h in m.scope.heads for m in active] for h in range(q.shape[1])
        ]
        heads = _grouped(by_head, active)
        parts = [
            (index, self._heads(*_take((q, k, v), index, 1), some, scale))
            for some, index in heads.items()
        ]
        return _put_back(parts, 1)

    def _heads(self, q, k, v, active, scale):
        """The output for heads of these rows that the same modulations act on."""
        site = self._site(q, k, scale)
        plan = self._plan(site, [m for m in active if not isinstance(m, Reader)], q, k, v)
        if plan is None:
            if not all(isinstance(m, Reader) for m in active):
                self.record.leave("nothing to edit")
            plan, out = Plan(), self._run(q, k, v, scale)
        else:
            operator = None if self.inner is None else self._run
            out, lowered = lower(q, k, v, plan=plan, scale=site.scale, operator=operator)
            self.record.note([m.name for m in active if not isinstance(m, Reader)], lowered)
        for reader in (m for m in active if isinstance(m, Reader)):
            self._read(reader, site, plan, q, k)
        return out

    def _run(self, q, k, v, scale):
        """The operator that lies underneath, or dense attention."""
        out = self._plain(q, k, v, scale, None)
        return F.scaled_dot_product_attention(q, k, v, scale=scale) if out is None else out

    def _read(self, reader, site, plan, q, k):
        def mass(columns: torch.Tensor) -> torch.Tensor:
            return self._mass(q, k, columns, plan, site.scale)

        reader.read(site, mass, self.moment.stores[reader])
        self.record.note([reader.name], Lowered("read", 1, q.numel() * q.element_size()))

    def _mass(self, q, k, columns, plan, scale):
        """Attention mass [b, H, N, C] of each column of 0 and 1 [M, C]: the columns as values."""
        operator = None if self.inner is None else self._run
        outs = []
        for some in columns.split(q.shape[-1], 1):
            values = F.pad(some, (0, q.shape[-1] - some.shape[1])).to(k).expand_as(k)
            out, _ = lower(q, k, values, plan=plan, scale=scale, operator=operator)
            outs.append(out[..., : some.shape[1]])
        return torch.cat(outs, -1)

    def _site(self, q, k, scale) -> Site:
        layout = self.moment.tracker.layouts[q.shape[2]]
        text = {"self": None, "cross": 0}.get(
            self.kind, 0 if layout.text_first else layout.num_grid
        )
        return Site(
            layer=self.name,
            kind=self.kind,
            layout=layout,
            progress=self.moment.progress,
            num_keys=k.shape[2],
            text=text,
            scale=q.shape[-1] ** -0.5 if scale is None else scale,
            device=q.device,
            dtype=torch.promote_types(q.dtype, torch.float32),
            tokens=self.moment.tokens,
            mass=lambda columns: self._mass(q, k, columns, Plan(), scale),
        )

    def _plan(self, site, active, q, k, v) -> Plan | None:
        """The merged plan, None where nothing is edited."""
        static = tuple(m for m in active if m.is_static)
        key = (static, site.kind, site.layout, site.num_keys, site.device, site.dtype)
        if static and key not in self._plans:
            self._plans[key] = _merged([m.plan(site, q, k, v) for m in static])
        plans = [self._plans[key]] if static else []
        plans += [m.plan(site, q, k, v) for m in active if not m.is_static]
        return _merged(plans)


def _merged(plans: Sequence[Plan | None]) -> Plan | None:
    present = [plan for plan in plans if plan is not None]
    return merge_plans(present) if present else None


def _grouped(flags, modulations) -> dict[tuple[Modulation, ...], list[int]]:
    """Indices by the modulations that act on them; flags[i][j]: modulation j acts on index i."""
    groups = defaultdict(list)
    for i, row in enumerate(flags):
        groups[tuple(m for m, acts in zip(modulations, row, strict=True) if acts)].append(i)
    return dict(groups)


def _take(tensors, index: list[int], dim: int):
    """These indices of each tensor; a view where they follow each other."""
    if index == list(range(index[0], index[-1] + 1)):
        return [x.narrow(dim, index[0], len(index)) for x in tensors]
    return [x.index_select(dim, torch.tensor(index, device=x.device)) for x in tensors]


def _put_back(parts, dim: int) -> torch.Tensor:
    """Undoes `_take`: parts as (indices, tensor)."""
    if len(parts) == 1:
        return parts[0][1]
    order = torch.tensor([i for index, _ in parts for i in index])
    joined = torch.cat([part for _, part in parts], dim)
    return joined.index_select(dim, order.argsort().to(joined.device))
