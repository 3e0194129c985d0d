"""How cached outputs are held, for how long, and what the report says of it."""

import gc

import pytest
import torch

from broadcast_pipelines import Latents
from foveate.attn_processors.broadcast import FractionPlan, broadcast
from foveate.kernels.broadcast import STORES, last_read, num_bytes

STEPS = 10
# root mean square error over that of the input, of Gaussian values: (largest, smallest)
BOUNDS = {"native": (0, 0), "bf16": (0.003, 0.0005), "int8": (0.0075, 0.002), "fp8": (0.03, 0.01)}
BYTES = {"native": 4, "bf16": 2, "int8": 1 + 2 / 64, "fp8": 1 + 4 / 320}


@pytest.fixture(scope="module")
def pixart():
    return Latents("pixart")


@pytest.mark.parametrize("name", STORES)
def test_t10_round_trip(name):
    x = torch.randn(2, 50, 320)
    store = STORES[name]
    packed = store.pack(x)
    back = store.unpack(packed)
    assert (back.dtype, back.shape) == (x.dtype, x.shape)
    error = float((back - x).square().mean().sqrt() / x.square().mean().sqrt())
    most, least = BOUNDS[name]
    assert least <= error <= most
    assert num_bytes(packed) == x.numel() * BYTES[name]


@pytest.mark.parametrize("name", ["int8", "fp8"])
@pytest.mark.parametrize("channels", [1, 24, 96, 97, 128])
def test_t10_any_channels_any_scale(name, channels):
    x = torch.randn(3, 7, channels) * torch.logspace(-6, 4, 7)[:, None]
    x[0, 0] = 0
    store = STORES[name]
    back = store.unpack(store.pack(x))
    largest = x.abs().amax(-1, keepdim=True)
    # a step of int8 is 1 / 127 of the largest of its group; fp8 has 3 bits of mantissa
    bound = {"int8": largest / 250, "fp8": x.abs() / 15 + largest / 448}[name]
    assert ((back - x).abs() <= bound).all()


def test_t10_an_outlier_channel_coarsens_its_own_group():
    x = torch.randn(1, 20, 128)
    x[..., 0] *= 1000
    back = STORES["int8"].unpack(STORES["int8"].pack(x))
    assert (back - x)[..., 64:].abs().max() < 0.02


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("arm", ["reuse", "forecast"])
def test_t10_stores_in_a_model(pixart, store, arm):
    plan = FractionPlan(every=2, arm=arm)
    with broadcast(pixart.pipe, plan):
        native = pixart(STEPS)
    with broadcast(pixart.pipe, plan, store=store) as handle:
        got = pixart(STEPS)
        assert torch.equal(pixart(STEPS), got)
        report = handle.report()
    assert torch.equal(got, native) == (store == "native")
    assert report.held_bytes == 0
    assert (
        report.predicted_bytes
        == report.peak_bytes
        == report.freed_bytes / ({"reuse": 3, "forecast": 2}[arm])
    )
    # 4 layers of [2, 48, 24] outputs, of a pair for guidance; groups of 24 channels
    share = {"native": 4, "bf16": 2, "int8": 1 + 2 / 24, "fp8": 1 + 4 / 24}[store]
    depth = {"reuse": 1, "forecast": 2}[arm]
    assert report.peak_bytes == depth * 4 * 2 * 24 * 24 * share


def test_t10_bytes_reported_are_those_of_the_tensors(pixart):
    with broadcast(pixart.pipe, FractionPlan(every=2), store="int8") as handle:
        (part,) = handle._parts
        seen = []

        def count(i, t, latents):
            entries = part.controller.cache._entries.values()
            parts = [p for held in entries for e in held for leaf in e.kept for p in leaf.parts]
            total = sum(p.numel() * p.element_size() for p in parts)
            seen.append((handle.report().held_bytes, total))

        pixart(STEPS, callback=count)
    assert all(told == total for told, total in seen)
    assert max(seen)[0] > 0
    assert seen[-1] == (0, 0)


def test_t10_no_tensor_outlives_the_run(pixart):
    def alive():
        gc.collect()
        return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())

    with broadcast(pixart.pipe, FractionPlan(every=2)):
        pixart(STEPS)
        before = alive()
        pixart(STEPS)
        assert alive() == before


@pytest.mark.parametrize("store", ["native", "int8"])
@pytest.mark.parametrize("arm", ["reuse", "forecast"])
def test_offload_changes_nothing(pixart, store, arm):
    plan = FractionPlan(every=3, arm=arm)
    with broadcast(pixart.pipe, plan, store=store):
        want = pixart(STEPS)
    with broadcast(pixart.pipe, plan, store=store, offload=True) as handle:
        assert torch.equal(pixart(STEPS), want)
        assert handle.report().held_bytes == 0


@pytest.mark.gpu
@pytest.mark.parametrize("store", STORES)
def test_offload_on_a_gpu(store):
    pixart = Latents("pixart")
    pixart.pipe.to("cuda")
    plan = FractionPlan(every=3)
    with broadcast(pixart.pipe, plan, store=store):
        want = pixart(STEPS)
    with broadcast(pixart.pipe, plan, store=store, offload=True):
        assert torch.equal(pixart(STEPS), want)


@pytest.mark.parametrize(
    ("row", "index", "last"),
    [
        ("##==##", 1, 3),
        ("##==##", 0, 0),
        ("##~~##", 0, 3),
        ("##~~##", 1, 3),
        ("#=#~##", 0, 3),
        ("#=#=##", 0, 1),
        ("####", 1, 1),
        ("#==", 0, 2),
        ("##==##", 2, 3),
    ],
)
def test_what_is_kept_for_how_long(row, index, last):
    assert last_read(row, index) == last
