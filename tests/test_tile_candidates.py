"""Every candidate that `foveate tune` may pick gives the right numbers, and compiles."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from triton_interpreter import DEVICE  # isort: skip, before triton
from foveate.kernels import TokenLayout, local_attention
from foveate.kernels.triton import (
    flash_backward,
    flash_forward,
    flash_tiles,
    linear_backward,
    linear_forward,
    linear_tiles,
    local_launch,
    local_tiles,
)
from foveate.kernels.triton.foveated_rings import NO_RINGS
from foveate.kernels.triton.near import disc

KERNELS = {
    "local": ("forward", "queries", "keys"),
    "flash": ("forward", "queries", "keys"),
    "linear": ("state", "output", "backward"),
}
TABLES = {"local": local_tiles, "flash": flash_tiles, "linear": linear_tiles}


def qkv(tokens, dim=16):
    return [torch.randn(1, 1, tokens, dim, device=DEVICE) for _ in range(3)]


def shapes(family, kernel, dim=16):
    """All candidates of a kernel that differ by more than how they are compiled."""
    kinds = [(name, dtype) for name in ("sm_90", "gfx942") for dtype in (torch.half, torch.float)]
    more = {"local": (disc([2]), 0), "flash": (), "linear": (dim, "plain")}[family]
    slots = [TABLES[family].slot_of(kernel, *kind, dim, *more) for kind in kinds]
    tiles = [x for slot in slots for x in TABLES[family].candidates(slot)]
    return list(dict.fromkeys(replace(x, num_warps=4, num_stages=1) for x in tiles))


def assert_near(found, exact):
    for x, y in zip(found, exact, strict=True):
        assert (x.double() - y).norm() <= 1e-6 * y.norm()


def gradients(function, leaves, grads):
    """What a function gives in float64, and the gradients of its leaves."""
    leaves = [x.double().requires_grad_() for x in leaves]
    results = function(*leaves)
    return results, torch.autograd.grad(results, leaves, [grad.double() for grad in grads])


@pytest.mark.parametrize("kernel", KERNELS["local"])
def test_every_candidate_of_local_attention_is_right(kernel):
    layout = TokenLayout(text=19, grid=(1, 5, 11))
    inputs = qkv(layout.num_tokens)
    grads = torch.randn_like(inputs[0]), torch.randn(inputs[0].shape[:3], device=DEVICE)

    def attend(q, k, v):
        return local_attention(q, k, v, layout=layout, radius=3, impl="reference", return_lse=True)

    exact, exact_grads = gradients(attend, inputs, grads)
    where = (19, layout.grid, disc([3]), 0.25, NO_RINGS)
    for tiles in shapes("local", kernel):
        if kernel == "forward":
            assert_near(local_launch.forward(*inputs, *where, tiles), exact)
            continue
        saved = (*grads, *inputs, *(x.detach().float() for x in exact), *where)
        option = {"queries": "query_tiles", "keys": "key_tiles"}[kernel]
        assert_near(local_launch.backward(*saved, **{option: tiles}), exact_grads)


def test_every_candidate_of_flash_attention_is_right():
    q, k, v = (torch.randn(1, 1, n, 16, device=DEVICE) for n in (70, 140, 140))
    grads = torch.randn_like(q), torch.randn(q.shape[:3], device=DEVICE)

    def attend(q, k, v):
        scores = q @ k.mT / 4
        return scores.softmax(-1) @ v, scores.logsumexp(-1)

    exact, exact_grads = gradients(attend, (q, k, v), grads)
    saved = (*grads, q, k, v, None, *(x.detach().float() for x in exact), 0.25)
    for tiles in shapes("flash", "forward"):
        assert_near(flash_forward.forward(q, k, v, None, 0.25, tiles), exact)
    for kernel, option in (("queries", "query_tiles"), ("keys", "key_tiles")):
        for tiles in shapes("flash", kernel):
            assert_near(flash_backward.backward(*saved, **{option: tiles}), exact_grads)


def test_every_candidate_of_linear_attention_is_right():
    q, k, v = qkv(70)
    grad = torch.randn_like(q)

    def attend(q, k, v):
        phi_q, phi_k = (torch.nn.functional.elu(x) + 1 for x in (q, k))
        s, z = phi_k.mT @ v / 70, phi_k.mean(2)
        return (phi_q @ s / ((phi_q * z.unsqueeze(2)).sum(-1, keepdim=True) + 1e-4),)

    (exact,), exact_grads = gradients(attend, (q, k, v), (grad,))
    state = linear_forward.state(k, v, "elu")
    for tiles in shapes("linear", "state"):
        assert_near(linear_forward.state(k, v, "elu", tiles=tiles), [x.double() for x in state])
    for tiles in shapes("linear", "output"):
        assert_near([linear_forward.output(q, *state, "elu", 1e-4, tiles)], [exact])
    for tiles in shapes("linear", "backward"):
        dq, *dstate = linear_backward.output_backward(grad, q, *state, "elu", 1e-4, tiles)
        found = dq, *linear_backward.state_backward(*dstate, k, v, "elu", tiles)
        assert_near(found, exact_grads)


COMPILE = """
import sys
import torch
from foveate.kernels.triton import (
    flash_backward, flash_forward, flash_tiles, linear_backward, linear_forward, linear_tiles,
    local_tiles, local_variants,
)
from foveate.kernels.triton.near import disc
from foveate.kernels.triton.offline.build import build
from foveate.kernels.triton.offline.rules import SHARED_LIMIT

NO_WEIGHTS = {"WEIGHT_S": None, "WEIGHT_Z": None}
FLASH = {
    "forward": flash_forward._flash_forward_kernel,
    "queries": flash_backward._flash_backward_queries_kernel,
    "keys": flash_backward._flash_backward_keys_kernel,
}
LINEAR = {
    "state": (linear_forward._linear_state_kernel, NO_WEIGHTS | {"WEIGHTED": False}),
    "output": (linear_forward._linear_output_kernel, {}),
    "backward": (linear_backward._linear_backward_kernel, NO_WEIGHTS | {"OUTPUT": False}),
}


def variants(family, kernel, arch, dim=64):
    kind = (kernel, arch, torch.bfloat16, dim)
    if family == "local":
        slot = local_tiles.slot_of(*kind, disc([8]), 0)
        return [local_variants.variant_of("local", kernel, arch, dim, 8, tiles)
                for tiles in local_tiles.candidates(slot)]
    if family == "flash":
        return [flash_tiles.variant_of("flash", FLASH[kernel], (arch,), dim, tiles)
                for tiles in flash_tiles.candidates(flash_tiles.slot_of(*kind))]
    slot = linear_tiles.slot_of(*kind, dim, "plain")
    return [linear_tiles.variant_of("linear", kernel, *LINEAR[kernel], dim, tiles)
            for tiles in linear_tiles.candidates(slot)]


arch, chosen, *names = sys.argv[1:]
for name in names:
    found = variants(*name.split("_"), arch)
    for variant in found[-1:] if chosen == "last" else found:
        shared = build(variant, arch).shared
        assert shared <= SHARED_LIMIT[arch], (name, variant.constexprs, shared)
        print(name)
"""


def compiled(tmp_path, architecture, chosen, names):
    """Names of kernels, once for each candidate that compiled within the limits."""
    (tmp_path / "compile.py").write_text(COMPILE)
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "compile.py", architecture, chosen, *names]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_candidates_compile_without_a_gpu(tmp_path):
    names = ["local_forward", "flash_keys", "linear_output"]
    assert compiled(tmp_path, "sm_90", "last", names) == names


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "gfx942"])
def test_every_candidate_compiles_without_a_gpu(tmp_path, architecture):
    names = [f"{family}_{kernel}" for family, kernels in KERNELS.items() for kernel in kernels]
    found = compiled(tmp_path, architecture, "all", names)
    assert {*found} == {*names}
    assert len(found) > 3 * len(names)
