"""What else people do to a pipeline, in every order with `apply`, and how the two get on.

`check` runs one neighbour in one order and says how that ended. A broken promise raises
AssertionError.
"""

import dataclasses
import functools

import torch

import neighbour_steps as steps
from conformance import is_close
from foveate.attn_processors import LocalAttnProcessor, SoftmaxAttnProcessor, apply, status
from tiny_families import TinyFamily

WORKS = "works"
BROKEN = "stock diffusers itself fails here"
NOT_UNDONE = "-"


@dataclasses.dataclass(frozen=True)
class Neighbour:
    """One thing that people do.

    do: changes the pipeline of a TinyFamily; undo takes it back, None where nobody does.
    families: those it exists for.
    is_same: the picture stays what it was.
    is_copy: the pipeline is another one afterwards, which no handle knows.
    num_steps: of a picture.
    note: what a CPU cannot show, and the like.
    broken: families on which stock diffusers itself raises `error` then.
    """

    do: object
    families: tuple[str, ...]
    undo: object = None
    is_same: bool = True
    is_copy: bool = False
    num_steps: int = 2
    note: str = ""
    broken: tuple[str, ...] = ()
    error: type[Exception] = AttributeError


def caching(config, families, **options):
    do = functools.partial(steps.cache, config=config)
    return Neighbour(do, families, steps.uncache, is_same=False, **options)


MIXED = ("sd", "flux", "sd3", "qwen", "wan")
HOOKS = "hooks only: nothing moves on a CPU"
NEIGHBOURS = {
    "`fuse_qkv_projections`": Neighbour(
        steps.fuse, ("sd", "flux", "sd3", "wan", "cogvideox"), steps.unfuse, broken=("sd3",)
    ),
    "attention slicing": Neighbour(steps.slice_attention, ("sd", "flux"), steps.unslice_attention),
    "model offload": Neighbour(steps.offload_model, MIXED, steps.remove_offload, note=HOOKS),
    "sequential offload": Neighbour(
        steps.offload_layers, MIXED, steps.remove_offload, note="weights are meta between calls"
    ),
    "group offload": Neighbour(steps.offload_group, ("sd", "flux", "wan"), note=HOOKS),
    "gradient checkpointing": Neighbour(
        steps.checkpoint,
        MIXED,
        steps.uncheckpoint,
        note="pictures; gradients: tests/test_apply.py",
    ),
    "`set_attention_backend`": Neighbour(
        steps.set_backend,
        ("sd", "flux", "qwen", "wan"),
        steps.unset_backend,
        note="native, the one a CPU has",
    ),
    "bfloat16": Neighbour(
        functools.partial(steps.cast, dtype=torch.bfloat16), MIXED, is_same=False
    ),
    "float16": Neighbour(functools.partial(steps.cast, dtype=torch.float16), MIXED, is_same=False),
    "text mask": Neighbour(
        steps.shorten_text, ("chroma", "qwen", "pixart", "chroma_bias"), is_same=False
    ),
    "`set_attn_processor`": Neighbour(steps.set_default_processors, ("sd",)),
    "deepcopy": Neighbour(steps.copy_deep, MIXED, is_copy=True),
    "pickle": Neighbour(steps.copy_pickle, MIXED, is_copy=True),
    "save and load": Neighbour(steps.save_and_load, ("sd", "flux", "wan"), is_copy=True),
    "pyramid attention broadcast": caching(steps.broadcast_config, ("flux", "cogvideox")),
    "first block cache": caching(steps.first_block_config, ("flux", "qwen", "wan")),
    "FasterCache": caching(steps.faster_config, ("latte", "cogvideox"), num_steps=4),
    "TaylorSeer": caching(steps.taylor_config, ("flux", "qwen", "wan"), num_steps=4),
    "MagCache": caching(steps.mag_config, ("flux", "qwen", "wan"), num_steps=4),
    "compiled model": Neighbour(
        steps.compile_model, ("sd", *MIXED[1:]), note="backend eager, full graph"
    ),
    "compiled blocks": Neighbour(
        steps.compile_blocks, ("flux", "qwen", "wan"), note="backend eager, full graph"
    ),
    "`add_adapter`": Neighbour(steps.add_adapter, MIXED, steps.delete_adapter, is_same=False),
    "LoRA file": Neighbour(steps.load_lora, MIXED, steps.unload_lora, is_same=False),
    "LoRA file, fused": Neighbour(steps.fuse_lora, MIXED, steps.unfuse_lora, is_same=False),
    "LoRA file, fused and unloaded": Neighbour(steps.fuse_and_unload_lora, MIXED, is_same=False),
    "IP-Adapter": Neighbour(
        steps.adapt_image_prompt, ("sd",), steps.forget_image_prompt, is_same=False
    ),
    "ControlNet": Neighbour(steps.control, ("sd",), is_same=False),
}
LOCAL = LocalAttnProcessor(radius=2)


def put(tiny):
    return apply(tiny.pipe, LOCAL)


def put_softmax(tiny):
    return apply(tiny.pipe, SoftmaxAttnProcessor())


def picture(family, *done, num_steps=2):
    """Picture, handle, status and pipeline after what is done to a fresh one, in this order."""
    tiny = TinyFamily(family)
    handles = [do(tiny) for do in done]
    got = tiny(steps=num_steps)
    handle = next((handle for handle in handles if handle is not None), None)
    return got, handle, status(tiny.pipe), tiny


@functools.lru_cache(maxsize=16)
def plain(family, *done, num_steps=2):
    """The picture alone."""
    return picture(family, *done, num_steps=num_steps)[0]


def orders(neighbour):
    """{order: what is done}."""
    do, undo = neighbour.do, neighbour.undo
    undone = {
        "before, then undone": (do, put, undo),
        "after, then undone": (put, do, undo),
    }
    return {"before": (do, put), "after": (put, do), **(undone if undo is not None else {})}


ORDERS = ("before", "after", "before, then undone", "after, then undone")


def check(family, neighbour, order):
    """How one order ends."""
    if order not in orders(neighbour):
        return NOT_UNDONE
    if is_broken(family, neighbour):
        return BROKEN
    return (check_before if order == "before" else check_other)(family, neighbour, order)


def is_broken(family, neighbour):
    """Whether the neighbour breaks the stock pipeline, as was foretold."""
    if family not in neighbour.broken:
        return False
    try:
        picture(family, neighbour.do)
    except neighbour.error:
        return True
    raise AssertionError("stock diffusers was expected to fail here")


def check_before(family, neighbour, order):
    """The neighbour first, then `apply`."""
    n = neighbour.num_steps
    alone = plain(family, neighbour.do, num_steps=n)
    same = plain(family, neighbour.do, put_softmax, num_steps=n)
    assert torch.equal(same, alone), "identity next to the neighbour"
    got, handle, state, tiny = picture(family, neighbour.do, put, num_steps=n)
    assert not state.lost, "nothing is lost"
    ran, total, end = what_ran(handle)
    handle.remove()
    assert torch.equal(tiny(steps=n), alone), "remove gives back the neighbour's picture"
    if ran == 0:
        assert is_close(got, alone), "dense"
        return end
    assert ran == total, "every layer"
    assert not is_close(got, alone), "the operator shows"
    if neighbour.is_same:
        assert is_close(got, plain(family, put)), "the operator's picture"
    return end


def what_ran(handle):
    """Layers in which the operator ran, of those it is meant for, and what that comes to."""
    rows = [row for row in handle.report().layers if row.kind in ("self", "joint")]
    ran = sum(row.forwards > 0 for row in rows)
    reasons = dict.fromkeys(row.reason.partition(" (")[0] for row in rows)
    return ran, len(rows), WORKS if ran else f"dense: {'; '.join(reasons)}"


def check_other(family, neighbour, order):
    """Any other order is as good as `apply` last, or status says what to call for that."""
    n = neighbour.num_steps
    done = orders(neighbour)[order]
    others = [one for one in done if one is not put]
    alone, want = plain(family, *others, num_steps=n), plain(family, *others, put, num_steps=n)
    got, handle, state, tiny = picture(family, *done, num_steps=n)
    if is_close(got, want) and not state.lost:
        if neighbour.is_copy:
            return WORKS
        *_, end = what_ran(handle)
        handle.remove()
        assert is_close(tiny(steps=n), alone), "the picture after remove"
        return end
    said = str(state)
    assert "foveate.apply" in said, f"status tells: {said}"
    handle.remove()
    assert neighbour.is_copy or is_close(tiny(steps=n), alone), "the picture after remove"
    apply(tiny.pipe, LOCAL)
    assert is_close(tiny(steps=n), want), "remove and apply again is as good as apply last"
    return f"lost; `status`: {said.splitlines()[-1].rpartition(': ')[2]}"
