"""Deviations from float64, and the candidates: every one computes the attention it says."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from foveate.pipelines.bench import operators, tables
from foveate.pipelines.bench.blocks import raster_block_keys
from foveate.pipelines.bench.candidate import Candidate, Prepared, exact_dense
from foveate.pipelines.bench.case import Case
from foveate.pipelines.bench.flex import _coordinates, _order, flex_candidates
from foveate.pipelines.bench.numerics import deviations, failures
from foveate.pipelines.bench.own import dense, own_candidates
from foveate.pipelines.bench.peers import peer_candidates

TILES = "flex 8x8 tiles, radius 4"


@pytest.mark.parametrize("width", [16, 24])
@pytest.mark.parametrize("tile", [1, 8])
def test_flex_order_and_coordinates_agree(width, tile):
    case = Case(grid=(16, width), text=3)
    places = torch.arange(16 * width)
    row, column = _coordinates(places, width, tile)
    order = _order(case, tile)
    assert order[:3].tolist() == [0, 1, 2]
    assert (order[3:] == 3 + row * width + column).all()


def test_flex_refuses_what_is_not_tiles():
    case = Case(grid=(12, 16))
    raster, tiles = flex_candidates(case, 3)
    assert raster.visited == raster_block_keys((12, 16), 3, 64)
    assert tiles.visited is None
    with pytest.raises(ValueError, match="12x16 is not made of 8x8 tiles"):
        tiles.prepare(*case.qkv())


@pytest.mark.parametrize("text", [0, 5])
def test_flex_sees_the_disc(monkeypatch, text):
    """FlexAttention uncompiled, which is the same function."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    case = Case(grid=(8, 16), text=text, head_dim=16)
    rows, refused = deviations(case, [dense(case), *flex_candidates(case, 4)], show=False)
    assert refused == []
    assert {row.method for row in rows} == {"dense", "flex raster, radius 4", TILES}
    assert max(row.relative_rms for row in rows) < 2e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("text", [0, 7])
def test_own_operators_are_as_exact_as_dense(dtype, text):
    case = Case(grid=(13, 17), text=text, head_dim=16, dtype=dtype)
    entries = [dense(case), *own_candidates(case, [4])]
    rows, refused = deviations(case, entries, show=False)
    assert refused == []
    assert failures(rows, refused) == []
    assert [row.scale for row in rows] == [1.0, 4.0, 16.0] * len(entries)
    worst = 1e-2 if dtype == torch.bfloat16 else 5e-6
    for row in rows:
        assert 0 < row.relative_rms < worst
        assert row.relative_rms < row.worst


def test_the_scale_is_the_deviation_of_the_logits():
    q, k, _ = Case(grid=(16, 16), head_dim=64).qkv(scale=4.0)
    assert (q @ k.mT / 8).std().item() == pytest.approx(4.0, rel=0.05)


def test_deviations_tell_a_wrong_operator():
    case = Case(grid=(8, 8), head_dim=16)
    zeros = _stand_in("local, radius 2", "torch", lambda q, k, v: torch.zeros_like(q))
    nan = _stand_in("foveated", "torch", lambda q, k, v: torch.full_like(q, torch.nan))
    foreign = _stand_in("dense", "sageattention", lambda q, k, v: torch.zeros_like(q))
    broken = _stand_in("local, radius 3", "triton", lambda q, k, v: q.no_such_method())
    missing = _stand_in("local, radius 4", "triton", _not_implemented)
    entries = [dense(case), zeros, nan, foreign, broken, missing]
    rows, refused = deviations(case, entries, scales=[1.0], show=False)
    assert rows[1].relative_rms == pytest.approx(1.0)
    found = failures(rows, refused)
    assert [line.partition(" at ")[0] for line in found] == [broken.name, zeros.name, nan.name]
    assert "AttributeError" in found[0]


def test_a_formula_of_its_own_is_measured_by_itself_in_plain_pytorch():
    case = Case(grid=(8, 8), head_dim=16)
    rough = replace(
        _stand_in("agent", "torch", lambda q, k, v: 1.01 * exact_dense(q, k, v)),
        plain=lambda q, k, v: 1.006 * exact_dense(q, k, v),
    )
    wrong = replace(rough, method="agent too", plain=lambda q, k, v: 1.004 * exact_dense(q, k, v))
    rows, _ = deviations(case, [dense(case), rough, wrong], scales=[1.0], show=False)
    (line,) = failures(rows, [])
    assert line.startswith("agent too (torch)")


def _not_implemented(q, k, v):
    raise NotImplementedError("no kernel")


def _stand_in(method, impl, attend):
    return Candidate(
        method=method,
        impl=impl,
        needed=1.0,
        visited=None,
        prepare=lambda q, k, v: Prepared(attend),
        exact=exact_dense,
    )


def test_peers_that_are_not_installed_are_named(monkeypatch):
    for package in ("natten", "comfy_kitchen", "sageattention", "flash_attn"):
        monkeypatch.setitem(sys.modules, package, None)
    case = Case(grid=(8, 8), head_dim=16)
    entries = [dense(case), *peer_candidates(case, [2, 3])]
    timed, refused = operators.time_operators(case, entries, 1, show=False)
    assert [row.impl for row in timed] == ["sdpa"]
    assert len(refused) == 2 + 2 * 2
    listed = tables.refused_list(refused)
    assert "- natten (neighbourhood 3x3; neighbourhood 5x5; 8x8): " in listed
    assert listed.count("\n") == 3


def test_peers_are_called_in_their_own_order(monkeypatch):
    """Stand-ins with the packages' signatures; the border rule comes from an oracle of its own."""
    monkeypatch.setitem(sys.modules, "natten", SimpleNamespace(na2d=_na2d))
    monkeypatch.setitem(sys.modules, "comfy_kitchen", SimpleNamespace(na2d=_na2d))
    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_func=_flash))
    monkeypatch.setitem(sys.modules, "sageattention", SimpleNamespace(sageattn=_sage))
    case = Case(grid=(7, 10), head_dim=16)
    entries = [dense(case), *peer_candidates(case, [2, 5])]
    rows, refused = deviations(case, entries, scales=[4.0], show=False)
    assert refused == []
    assert [e.needed for e in entries[3:]] == [9, 9, 63, 63]
    assert max(row.relative_rms for row in rows) < 2e-6
    text = Case(grid=(7, 10), text=3, head_dim=16)
    _, refused = deviations(text, [dense(text), *peer_candidates(text, [2])], show=False)
    assert {one.reason for one in refused} == {"ValueError: takes no text tokens"}


def _flash(q, k, v):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _sage(q, k, v, tensor_layout):
    assert tensor_layout == "HND"
    return torch.nn.functional.scaled_dot_product_attention(q, k, v)


def _na2d(q, k, v, kernel_size):
    """[B, rows, columns, heads, D]: the window nearest to each token that lies in the grid."""
    out = torch.empty_like(q)
    for y in range(q.shape[1]):
        for x in range(q.shape[2]):
            rows, columns = (
                slice(s := max(0, min(i - n // 2, size - n)), s + n)
                for i, n, size in zip((y, x), kernel_size, q.shape[1:3], strict=True)
            )
            keys, values = (z[:, rows, columns].flatten(1, 2) for z in (k, v))
            weights = torch.einsum("bhd,bnhd->bhn", q[:, y, x], keys) / q.shape[-1] ** 0.5
            out[:, y, x] = torch.einsum("bhn,bnhd->bhd", weights.softmax(-1), values)
    return out
