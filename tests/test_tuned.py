"""Tuned tiles: the file they are kept in, and who looks them up."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import triton

from triton_interpreter import DEVICE  # isort: skip, before triton
from foveate.kernels import TokenLayout, local_attention
from foveate.kernels.triton import (
    flash_forward,
    flash_tiles,
    linear_forward,
    linear_tiles,
    local_launch,
    local_tiles,
    slots,
    tuned,
)
from foveate.kernels.triton.device import target, tile_class
from foveate.kernels.triton.flash import flash_attention
from foveate.kernels.triton.linear import linear_attention
from foveate.kernels.triton.local_tiles import LocalTiles
from foveate.kernels.triton.near import boxes, disc
from foveate.kernels.triton.variants import ARCHITECTURES

HERE = target(torch.device(DEVICE))
KERNELS = {
    "local": ("forward", "queries", "keys"),
    "flash": ("forward", "queries", "keys"),
    "linear": ("state", "output", "backward"),
}
TABLES = {"local": local_tiles, "flash": flash_tiles, "linear": linear_tiles}


def slot_of(family, kernel, architecture=HERE, dtype=torch.float32, dim=16):
    """The slot of a disc of radius 2, of flash attention, or of the plain call."""
    more = {"local": (disc([2]), 0), "flash": (), "linear": (dim, "plain")}[family]
    return TABLES[family].slot_of(kernel, architecture, dtype, dim, *more)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A file of tuned tiles that does not exist yet."""
    path = tmp_path / "deep" / "tiles.json"
    monkeypatch.setenv("FOVEATE_TUNE_CACHE", str(path))
    return path


@pytest.fixture
def launched(monkeypatch):
    """Keyword arguments of every launch, by the name of the kernel's attribute."""
    found = {}

    class Spy:
        def __init__(self, name, kernel):
            self.name, self.kernel = name, kernel

        def __getitem__(self, grid):
            def launch(*arguments, **options):
                found[self.name] = options
                return self.kernel[grid](*arguments, **options)

            return launch

    for module, name in (
        (local_launch, "local_forward_kernel"),
        (local_launch, "local_backward_queries_kernel"),
        (local_launch, "local_backward_keys_kernel"),
        (flash_forward, "_flash_forward_kernel"),
        (linear_forward, "_linear_state_kernel"),
    ):
        monkeypatch.setattr(module, name, Spy(name, getattr(module, name)))
    return found


def qkv(tokens, dim=16):
    return [torch.randn(1, 1, tokens, dim, device=DEVICE) for _ in range(3)]


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "sm_103", "sm_120", "gfx1100"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_tiles_are_the_shipped_ones_until_some_are_tuned(cache, architecture, dtype):
    for family, kernels in KERNELS.items():
        for kernel in kernels:
            for dim in (40, 64, 96, 128, 160):
                slot = slot_of(family, kernel, architecture, dtype, dim)
                assert slot.tiles is slot.shipped
                assert TABLES[family].candidates(slot)[0] is slot.shipped
    assert not cache.parent.exists()


def test_classes_of_architectures():
    classes = {"sm_86": "sm_80", "sm_120": "sm_80", "interpreter": "sm_80", "sm_103": "sm_100"}
    classes |= {"sm_90": "sm_90", "gfx950": "gfx942"}
    assert {name: tile_class(name) for name in classes} == classes


def test_what_is_saved_is_looked_up(cache):
    slot = slot_of("flash", "forward")
    other = slot_of("flash", "keys")
    tiles = replace(slot.shipped, queries=16)
    tuned.save(cache, slot.key, asdict(tiles), {"milliseconds": 1.0})
    assert slot.tiles == tiles
    assert other.tiles is other.shipped
    half = slot_of("flash", "forward", dtype=torch.bfloat16)
    assert half.tiles is half.shipped


def test_a_process_reads_the_file_once(cache):
    slot = slot_of("linear", "state")
    assert slot.tiles is slot.shipped
    tuned.save(cache, slot.key, asdict(replace(slot.shipped, tokens=16)), {})
    assert slot.tiles is slot.shipped


@pytest.mark.skipif(DEVICE != "cpu", reason="tiles chosen for the interpreter")
def test_launches_take_tuned_tiles(cache, launched):
    layout = TokenLayout(text=3, grid=(1, 5, 6))
    line = TokenLayout(grid=(1, 1, 20))
    wanted = {
        "forward": LocalTiles(2, 8, 2, 8, context=16, num_warps=4, num_stages=3),
        "queries": LocalTiles(4, 4, 2, 8, context=16, num_warps=8, num_stages=1),
        "keys": LocalTiles(2, 8, 4, 4, context=32, num_warps=4, num_stages=1),
    }
    for kernel, tiles in wanted.items():
        tuned.save(cache, slot_of("local", kernel).key, asdict(tiles), {})
    tuned.save(cache, slot_of("flash", "forward").key, asdict(flash_tiles.Tiles(16, 64, 4, 1)), {})
    tuned.save(cache, slot_of("linear", "state").key, asdict(linear_tiles.Tiles(16, 16, 8, 3)), {})

    leaves = [x.requires_grad_() for x in qkv(layout.num_tokens)]
    local_attention(*leaves, layout=layout, radius=2, impl="triton").sum().backward()
    for kernel, tiles in wanted.items():
        name = "forward" if kernel == "forward" else f"backward_{kernel}"
        options = launched[f"local_{name}_kernel"]
        shape = tuple(options[x] for x in ("TH", "TW", "KH", "KW", "BC"))
        assert shape == tuple(asdict(tiles).values())[:5]
        assert (options["num_warps"], options["num_stages"]) == (tiles.num_warps, tiles.num_stages)
    local_attention(*qkv(20), layout=line, radius=2, impl="triton")
    assert [launched["local_forward_kernel"][x] for x in ("TH", "TW", "KH")] == [1, 16, 1]
    flash_attention(*qkv(9))
    assert (launched["_flash_forward_kernel"]["BM"], launched["_flash_forward_kernel"]["BN"]) == (
        16,
        64,
    )
    linear_attention(*qkv(9))
    options = launched["_linear_state_kernel"]
    assert [options[x] for x in ("BN", "BV", "num_warps", "num_stages")] == [16, 16, 8, 3]


@pytest.mark.skipif(DEVICE != "cpu", reason="tiles chosen for the interpreter")
def test_tuned_tiles_inside_one_graph(cache, launched):
    tiles = LocalTiles(2, 8, 2, 8, context=16)
    tuned.save(cache, slot_of("local", "forward").key, asdict(tiles), {})
    layout = TokenLayout(text=3, grid=(1, 5, 4))
    inputs = qkv(layout.num_tokens)

    def attend(q, k, v):
        return local_attention(q, k, v, layout=layout, radius=2, impl="triton") + 1

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")(*inputs)
    assert launched["local_forward_kernel"]["TH"] == 2
    torch.testing.assert_close(compiled, attend(*inputs))


def test_keys_do_not_hold_a_length(monkeypatch):
    asked = []
    monkeypatch.setattr(slots, "tuned_tiles", lambda key, shipped: asked.append(key) or shipped)
    keys = []
    for size in (5, 9):
        layout = TokenLayout(text=size, grid=(1, size, 6))
        local_attention(*qkv(layout.num_tokens), layout=layout, radius=2, impl="triton")
        linear_attention(*qkv(size))
        keys.append([*asked])
        asked.clear()
    assert keys[0] == keys[1]
    assert keys[0][0] == f"{HERE}/local_forward/16/float32/disc-near"


def test_keys_differ_where_tiles_may():
    def key(near, levels=0, dim=64, architecture="sm_90", dtype=torch.float16):
        return local_tiles.slot_of("forward", architecture, dtype, dim, near, levels).key

    found = [
        key(disc([8])),
        key(disc([9])),
        key(disc([8, 4])),
        key(disc([8]), levels=1),
        key(disc([8]), dim=72),
        key(disc([8]), architecture="sm_86"),
        key(disc([8]), dtype=torch.float32),
        key(boxes((1, 7, 7), (1, 1, 1), (False,) * 3)),
        key(boxes((1, 7, 7), (1, 2, 2), (False,) * 3)),
    ]
    assert len({*found}) == len(found)
    assert key(disc([3]), dtype=torch.bfloat16) == found[0]


def test_another_triton_is_ignored_and_kept(cache, monkeypatch):
    slot = slot_of("flash", "forward")
    with monkeypatch.context() as patch:
        patch.setattr(triton, "__version__", "3.0.0")
        tuned.save(cache, slot.key, asdict(replace(slot.shipped, queries=16)), {})
    assert slot.tiles is slot.shipped
    assert "none is tuned" in tuned.summary(HERE)
    tuned.save(cache, slot.key, asdict(slot.shipped), {})
    assert {*json.loads(cache.read_text())} == {"3.0.0", triton.__version__}
    assert f"1 tuned for {HERE}" in tuned.summary(HERE)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"VERSION": [1]}',
        '{"VERSION": {"KEY": {}}}',
        '{"VERSION": {"KEY": {"tiles": {"queries": "16"}}}}',
        '{"VERSION": {"KEY": {"tiles": {"queries": 16}}}}',
    ],
)
def test_a_broken_file_is_told(cache, text):
    slot = slot_of("flash", "forward")
    cache.parent.mkdir()
    cache.write_text(text.replace("VERSION", triton.__version__).replace("KEY", slot.key))
    with pytest.raises(ValueError, match=r"tiles\.json must hold .* remove it"):
        _ = slot.tiles


def test_a_file_is_replaced_as_a_whole(cache, monkeypatch):
    slot = slot_of("flash", "forward")
    tuned.save(cache, slot.key, asdict(slot.shipped), {})
    before = cache.read_text()

    def full(path, other):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="no space"):
            tuned.save(cache, "another", asdict(slot.shipped), {})
    assert cache.read_text() == before
    assert [*cache.parent.iterdir()] == [cache]


def test_where_the_file_is(monkeypatch, tmp_path):
    monkeypatch.delenv("FOVEATE_TUNE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tuned.cache_path() == tmp_path / ".cache" / "foveate" / "tiles.json"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert tuned.cache_path() == tmp_path / "caches" / "foveate" / "tiles.json"
    monkeypatch.setenv("FOVEATE_TUNE_CACHE", "mine.json")
    assert tuned.cache_path() == Path("mine.json")
