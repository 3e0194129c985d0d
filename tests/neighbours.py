"""What else people do to a pipeline, before and after `apply`, and how the two get on.

A neighbour changes a tiny pipeline; `check` runs it in one order and says how that ended. A broken
promise raises AssertionError.
"""

import copy
import dataclasses
import functools
import pickle
import tempfile

import accelerate
import diffusers
import torch

from conformance import is_close
from foveate.attn_processors import LocalAttnProcessor, SoftmaxAttnProcessor, apply, status
from tiny_families import TinyFamily

WORKS = "works"
BROKEN = "stock diffusers itself fails here"


@dataclasses.dataclass(frozen=True)
class Neighbour:
    """One thing that people do.

    do: changes the pipeline of a TinyFamily.
    families: those it exists for.
    is_same: the picture stays what it was.
    note: what a CPU cannot show, and the like.
    broken: families on which stock diffusers itself raises AttributeError then.
    """

    do: object
    families: tuple[str, ...]
    is_same: bool = True
    note: str = ""
    broken: tuple[str, ...] = ()


def fuse(tiny):
    tiny.model.fuse_qkv_projections()


def slice_attention(tiny):
    tiny.pipe.enable_attention_slicing(1)


def offload_model(tiny):
    accelerate.cpu_offload_with_hook(tiny.model, execution_device="cpu")


def offload_group(tiny):
    tiny.model.enable_group_offload(
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type="leaf_level",
    )


def checkpoint(tiny):
    tiny.model.enable_gradient_checkpointing()


def set_backend(tiny):
    tiny.model.set_attention_backend("native")


def half(tiny):
    tiny.pipe.to(torch.bfloat16)
    tiny.arguments = {
        name: value.bfloat16()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
        else value
        for name, value in tiny.arguments.items()
    }


def set_default_processors(tiny):
    """What `unet.set_default_attn_processor` and friends come down to."""
    stock = diffusers.models.attention_processor.AttnProcessor2_0
    tiny.model.set_attn_processor(stock())


def copy_deep(tiny):
    tiny.pipe = copy.deepcopy(tiny.pipe)


def copy_pickle(tiny):
    name = "unet" if hasattr(tiny.pipe, "unet") else "transformer"
    setattr(tiny.pipe, name, pickle.loads(pickle.dumps(tiny.model)))


def save_and_load(tiny):
    """A saved model is the stock one: operators are not weights."""
    name = "unet" if hasattr(tiny.pipe, "unet") else "transformer"
    with tempfile.TemporaryDirectory() as folder:
        tiny.model.save_pretrained(folder)
        loaded = type(tiny.model).from_pretrained(folder)
    setattr(tiny.pipe, name, loaded.eval())


def cache(tiny, config):
    tiny.model.enable_cache(config(tiny))


def broadcast_config(tiny):
    return diffusers.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(100, 800),
        current_timestep_callback=lambda: tiny.pipe.current_timestep,
    )


def first_block_config(tiny):
    return diffusers.FirstBlockCacheConfig(threshold=0.01)


def compile_blocks(tiny):
    torch._dynamo.reset()
    tiny.model.compile_repeated_blocks(backend="eager", fullgraph=True)


def adapt_image_prompt(tiny):
    """An IP-Adapter of random weights, and the embeddings it asks for."""
    unet, width = tiny.model, tiny.model.config.cross_attention_dim
    layers = [name for name in unet.attn_processors if not name.endswith("attn1.processor")]
    weights = {}
    for index, name in enumerate(layers):
        hidden = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        weights[f"{2 * index + 1}.to_k_ip.weight"] = torch.randn(hidden, width)
        weights[f"{2 * index + 1}.to_v_ip.weight"] = torch.randn(hidden, width)
    projection = {
        "proj.weight": torch.randn(4 * width, 32),
        "proj.bias": torch.randn(4 * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    torch.manual_seed(1)
    unet._load_ip_adapter_weights([{"ip_adapter": weights, "image_proj": projection}])
    tiny.arguments = {**tiny.arguments, "ip_adapter_image_embeds": [torch.ones(2, 1, 32)]}


def control(tiny):
    """A ControlNet, which is a second model and stays stock."""
    torch.manual_seed(1)
    net = diffusers.ControlNetModel.from_unet(
        tiny.model, conditioning_embedding_out_channels=(8, 8, 8)
    ).eval()
    for name, weight in net.named_parameters():
        if "controlnet_" in name:
            torch.nn.init.normal_(weight, std=0.1)
    parts = tiny.pipe.components
    tiny.pipe = diffusers.StableDiffusionControlNetPipeline(
        **{name: parts[name] for name in parts if name != "image_encoder"},
        controlnet=net,
        requires_safety_checker=False,
    )
    tiny.pipe.set_progress_bar_config(disable=True)
    tiny.arguments = {**tiny.arguments, "image": torch.full((1, 3, 48, 64), 0.5)}


def add_lora(tiny):
    """Weights of a LoRA on every projection of attention; needs peft."""
    from peft import LoraConfig

    torch.manual_seed(1)
    names = ["to_q", "to_k", "to_v", "to_out.0"]
    tiny.model.add_adapter(LoraConfig(r=2, target_modules=names, init_lora_weights=False))


MIXED = ("sd", "flux", "sd3", "qwen", "wan")
NEIGHBOURS = {
    "`fuse_qkv_projections`": Neighbour(
        fuse, ("sd", "flux", "sd3", "wan", "cogvideox"), broken=("sd3",)
    ),
    "attention slicing": Neighbour(slice_attention, ("sd", "flux")),
    "model offload": Neighbour(offload_model, MIXED, note="hooks only: nothing moves on a CPU"),
    "group offload": Neighbour(
        offload_group, ("sd", "flux", "wan"), note="hooks only: nothing moves on a CPU"
    ),
    "gradient checkpointing": Neighbour(
        checkpoint, MIXED, note="pictures; gradients: tests/test_apply.py"
    ),
    "`set_attention_backend`": Neighbour(
        set_backend, ("sd", "flux", "qwen", "wan"), note="native, the one a CPU has"
    ),
    "bfloat16": Neighbour(half, ("sd", "flux", "sd3", "qwen", "wan"), is_same=False),
    "`set_attn_processor`": Neighbour(set_default_processors, ("sd",)),
    "deepcopy": Neighbour(copy_deep, MIXED),
    "pickle": Neighbour(copy_pickle, MIXED),
    "save and load": Neighbour(save_and_load, ("sd", "flux", "wan")),
    "pyramid attention broadcast": Neighbour(
        functools.partial(cache, config=broadcast_config), ("flux", "cogvideox"), is_same=False
    ),
    "first block cache": Neighbour(
        functools.partial(cache, config=first_block_config), ("flux", "qwen", "wan"), is_same=False
    ),
    "compiled blocks": Neighbour(compile_blocks, ("flux", "wan"), note="backend eager, full graph"),
    "LoRA": Neighbour(add_lora, MIXED, is_same=False),
    "IP-Adapter": Neighbour(adapt_image_prompt, ("sd",), is_same=False),
    "ControlNet": Neighbour(control, ("sd",), is_same=False),
}


def picture(family, *steps):
    """Picture, report and status after what `steps` do to a fresh pipeline, in this order."""
    tiny = TinyFamily(family)
    handles = [step(tiny) for step in steps]
    got = tiny()
    handle = next((handle for handle in handles if handle is not None), None)
    return got, handle, status(tiny.pipe), tiny


def put(processor):
    return lambda tiny: apply(tiny.pipe, processor)


LOCAL = LocalAttnProcessor(radius=2)


def is_broken(family, neighbour):
    """Whether the neighbour breaks the stock pipeline, as was foretold."""
    if family not in neighbour.broken:
        return False
    try:
        picture(family, neighbour.do)
    except AttributeError:
        return True
    raise AssertionError("stock diffusers was expected to fail here")


def check_before(family, neighbour):
    """The neighbour first, then `apply`."""
    if is_broken(family, neighbour):
        return BROKEN
    alone = picture(family, neighbour.do)[0]
    same, *_ = picture(family, neighbour.do, put(SoftmaxAttnProcessor()))
    assert torch.equal(same, alone), "identity next to the neighbour"
    got, handle, state, _ = picture(family, neighbour.do, put(LOCAL))
    assert not state.lost, "nothing is lost"
    rows = [row for row in handle.report().layers if row.kind in ("self", "joint")]
    ran = sum(row.forwards > 0 for row in rows)
    if ran == 0:
        reasons = dict.fromkeys(row.reason for row in rows)
        assert is_close(got, alone), "dense"
        return f"dense: {'; '.join(reasons)}"
    assert ran == len(rows), "every layer"
    assert not is_close(got, alone), "the operator shows"
    if neighbour.is_same:
        assert is_close(got, picture(family, put(LOCAL))[0]), "the operator's picture"
    return WORKS


def check_after(family, neighbour):
    """`apply` first, then the neighbour; where that loses layers, status must say what to do."""
    if is_broken(family, neighbour):
        return BROKEN
    want = picture(family, neighbour.do, put(LOCAL))[0]
    got, handle, state, tiny = picture(family, put(LOCAL), neighbour.do)
    if is_close(got, want) and not state.lost:
        return WORKS
    said = str(state)
    assert "foveate.apply" in said, f"status tells: {said}"
    handle.remove()
    apply(tiny.pipe, LOCAL)
    assert is_close(tiny(), want), "remove and apply again is as good as apply last"
    return f"lost; `status`: {said.splitlines()[-1].rpartition(': ')[2]}"
