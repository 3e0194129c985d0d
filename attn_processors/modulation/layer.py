"""One attention layer under `modulate`: rows and heads that are edited, and those that are not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

import torch
import torch.nn.functional as F

from ...kernels.layout import TokenLayout
from ..redirect import Attend
from ..special import BIASED
from .base import Modulation, Reader
from .call import Call, put_back, take
from .explain import Record
from .lowering import Lowered, lower
from .moment import Moment
from .plan import Plan, merge_plans
from .probe import Probe
from .site import Site

__all__ = ["ModulatedLayer"]


class ModulatedLayer:
    """Answers the redirected softmax call of one layer.

    modulations: those whose scope holds this layer. inner: the operator that `apply` put there.
    probe: how the layer projects other texts.
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
        self.probe: Probe | None = None
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
        step = self._step(q)
        flags = [self.moment.rows_of(m)[::step] for m in now]
        rows = _grouped(list(zip(*flags, strict=True)), now)
        if not any(rows):
            self.record.leave("no row is of the prompt" if now else "outside of its steps")
            return self._plain(q, k, v, scale, special)
        padding = self.moment.padding if special == BIASED and self.kind == "cross" else None
        reason = (special if padding is None else None) or self._why_not(q, k)
        if reason is not None:
            self.record.leave(reason)
            return self._plain(q, k, v, scale, special)
        whole = Call(q, k, v, padding, scale)
        size = q.shape[0] * step // len(self.moment.origins)
        parts = []
        for active, index in rows.items():
            own = [i * size + j for i in index for j in range(size)]
            parts.append((own, self._rows(whole, whole.rows(own), active)))
        return put_back(parts, 0)

    def _plain(self, q, k, v, scale, special):
        return None if self.inner is None else self.inner(q, k, v, scale=scale, special=special)

    def _why_not(self, q: torch.Tensor, k: torch.Tensor) -> str | None:
        moment = self.moment
        if self.kind != "temporal" and q.shape[0] != len(moment.origins):
            return f"{q.shape[0]} rows, but the text has {len(moment.origins)}"
        if self._layout(q) is None:
            what = "rows" if self.kind == "temporal" else "queries"
            return f"{self._num_tokens(q)} {what} fit no grid of this forward"
        expected = moment.text_length if self.kind == "cross" else q.shape[2]
        if k.shape[2] != expected:
            return f"{k.shape[2]} keys are not the {expected} of the prompt (an image prompt?)"
        return None

    def _step(self, q: torch.Tensor) -> int:
        """Rows of the text that belong to one row of the batch: frames, where these are tokens."""
        return q.shape[2] if self.kind == "temporal" else 1

    def _num_tokens(self, q: torch.Tensor) -> int | float:
        """Of the grid that the call is about; where frames attend, its tokens are rows."""
        if self.kind != "temporal":
            return q.shape[2]
        return q.shape[0] * q.shape[2] / len(self.moment.origins)

    def _layout(self, q: torch.Tensor) -> TokenLayout | None:
        return self.moment.tracker.layouts.get(self._num_tokens(q))

    def _rows(self, whole: Call, call: Call, active) -> torch.Tensor:
        """The output for rows of the batch that the same modulations act on."""
        if not active:
            return self._run(call)
        by_head = [
            [m.scope.heads is None or h in m.scope.heads for m in active]
            for h in range(call.q.shape[1])
        ]
        heads = _grouped(by_head, active)
        parts = [(index, self._heads(whole, call, index, some)) for some, index in heads.items()]
        return put_back(parts, 1)

    def _heads(self, whole: Call, rows: Call, heads: list[int], active) -> torch.Tensor:
        """The output for heads of these rows that the same modulations act on."""
        call = rows.heads(heads)
        site = self._site(whole, call, heads)
        plan = self._plan(site, [m for m in active if not isinstance(m, Reader)], call)
        if plan is None:
            if not all(isinstance(m, Reader) for m in active):
                self.record.leave("nothing to edit")
            plan, out = Plan(), self._run(call)
        else:
            out, lowered = self._lower(call, call.v, plan)
            self.record.note([m.name for m in active if not isinstance(m, Reader)], lowered)
        for reader in (m for m in active if isinstance(m, Reader)):
            self._read(reader, site, plan, call)
        return out

    def _run(self, call: Call) -> torch.Tensor:
        """The operator that lies underneath, or dense attention."""
        out = self._plain(call.q, call.k, call.v, call.scale, None)
        if out is not None:
            return out
        return F.scaled_dot_product_attention(
            call.q, call.k, call.v, attn_mask=call.mask, scale=call.scale
        )

    def _lower(self, call: Call, values: torch.Tensor, plan: Plan) -> tuple[torch.Tensor, Lowered]:
        def operator(q, k, v, scale):
            return self.inner(q, k, v, scale=scale, special=None)

        return lower(
            call.q,
            call.k,
            values,
            plan=plan,
            scale=call.scale,
            operator=None if self.inner is None else operator,
            padding=call.grouped_padding,
        )

    def _read(self, reader, site, plan, call):
        def mass(columns: torch.Tensor) -> torch.Tensor:
            return self._mass(call, columns, plan)

        reader.read(site, mass, self.moment.stores[reader])
        size = call.q.numel() * call.q.element_size()
        self.record.note([reader.name], Lowered("read", 1, size))

    def _mass(self, call: Call, columns: torch.Tensor, plan: Plan) -> torch.Tensor:
        """Attention [b, H, N, C] to columns [M, C] or [b, M, C]: the columns as values."""
        plan, dim, outs = plan.of_columns(), call.q.shape[-1], []
        columns = columns if columns.dim() == 3 else columns[None]
        for some in columns.split(dim, -1):
            values = F.pad(some, (0, dim - some.shape[-1]))[:, None].to(call.k)
            out, _ = self._lower(call, values.expand_as(call.k), plan)
            outs.append(out[..., : some.shape[-1]])
        return torch.cat(outs, -1)

    def _site(self, whole: Call, call: Call, heads: list[int]) -> Site:
        layout = self._layout(whole.q)
        text = {"self": None, "temporal": None, "cross": 0}.get(
            self.kind, 0 if layout.text_first else layout.num_grid
        )

        def project(embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            k, v = (take(x, heads, 1) for x in self.probe(embeddings))
            return k.to(call.k), v.to(call.v)

        def beside(prompt: str) -> Call:
            origins = self.moment.origins
            index = [i for i, origin in enumerate(origins) if origin.prompt == prompt]
            return whole.rows(index).heads(heads)

        return Site(
            layer=self.name,
            kind=self.kind,
            layout=layout,
            progress=self.moment.progress,
            num_keys=call.k.shape[2],
            text=text,
            text_length=self.moment.text_length,
            padding=call.grouped_padding,
            scale=call.q.shape[-1] ** -0.5 if call.scale is None else call.scale,
            device=call.q.device,
            dtype=torch.promote_types(call.q.dtype, torch.float32),
            tokens=self.moment.tokens,
            mass=lambda columns: self._mass(call, columns, Plan()),
            stores=self.moment.stores,
            texts=self.moment.text,
            project=project,
            beside=beside,
            align=self.moment.align,
            kept=self.moment.kept,
        )

    def _plan(self, site, active, call) -> Plan | None:
        """The merged plan, None where nothing is edited."""
        q, k, v = call.q, call.k, call.v
        static = tuple(m for m in active if m.is_static)
        where = (site.kind, site.layout, site.num_keys, site.text_length)
        key = (static, *where, site.device, site.dtype)
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
