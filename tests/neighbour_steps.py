"""What else people do to a pipeline, and how they undo it: each changes a TinyFamily in place."""

import copy
import pickle
import tempfile

import accelerate
import diffusers
import torch
from peft import LoraConfig, get_peft_model_state_dict

from tiny_families import TinyFamily


def fuse(tiny):
    tiny.model.fuse_qkv_projections()


def unfuse(tiny):
    tiny.model.unfuse_qkv_projections()


def slice_attention(tiny):
    tiny.pipe.enable_attention_slicing(1)


def unslice_attention(tiny):
    tiny.pipe.disable_attention_slicing()


def offload_model(tiny):
    accelerate.cpu_offload_with_hook(tiny.model, execution_device="cpu")


def offload_layers(tiny):
    """What `enable_sequential_cpu_offload` does to each model: weights are meta between calls."""
    accelerate.cpu_offload(tiny.model, execution_device=torch.device("cpu"))


def remove_offload(tiny):
    accelerate.hooks.remove_hook_from_module(tiny.model, recurse=True)


def offload_group(tiny):
    tiny.model.enable_group_offload(
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type="leaf_level",
    )


def checkpoint(tiny):
    tiny.model.enable_gradient_checkpointing()


def uncheckpoint(tiny):
    tiny.model.disable_gradient_checkpointing()


def set_backend(tiny):
    tiny.model.set_attention_backend("native")


def unset_backend(tiny):
    tiny.model.reset_attention_backend()


def cast(tiny, dtype):
    tiny.pipe.to(dtype)
    tiny.arguments = {
        name: value.to(dtype)
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


def uncache(tiny):
    tiny.model.disable_cache()


def broadcast_config(tiny):
    return diffusers.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(100, 800),
        current_timestep_callback=lambda: tiny.pipe.current_timestep,
    )


def first_block_config(tiny):
    return diffusers.FirstBlockCacheConfig(threshold=0.01)


def faster_config(tiny):
    return diffusers.FasterCacheConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 901),
        unconditional_batch_skip_range=2,
        unconditional_batch_timestep_skip_range=(-1, 901),
        attention_weight_callback=lambda _: 0.3,
        current_timestep_callback=lambda: tiny.pipe.current_timestep,
        tensor_format="BFCHW",
    )


def taylor_config(tiny):
    return diffusers.TaylorSeerCacheConfig(
        cache_interval=2, disable_cache_before_step=1, taylor_factors_dtype=torch.float32
    )


def mag_config(tiny):
    return diffusers.MagCacheConfig(
        mag_ratios=[1.0] * 4, num_inference_steps=4, retention_ratio=0.25
    )


def compile_model(tiny):
    torch._dynamo.reset()
    tiny.model.compile(backend="eager", fullgraph=True, dynamic=False)


def compile_blocks(tiny):
    torch._dynamo.reset()
    tiny.model.compile_repeated_blocks(backend="eager", fullgraph=True)


def shorten_text(tiny):
    """More of the prompt is padding, which the model masks."""
    masks = {name: value for name, value in tiny.arguments.items() if "prompt" in name}
    masks = {name: value for name, value in masks.items() if name.endswith("mask")}
    shorter = {
        name: (torch.arange(value.shape[1]) < 2).to(value)[None] for name, value in masks.items()
    }
    tiny.arguments = {**tiny.arguments, **shorter}


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


def forget_image_prompt(tiny):
    tiny.pipe.unload_ip_adapter()
    given = {name: v for name, v in tiny.arguments.items() if name != "ip_adapter_image_embeds"}
    tiny.arguments = given


def add_adapter(tiny):
    """Weights on every projection of attention, put there by peft."""
    torch.manual_seed(1)
    names = ["to_q", "to_k", "to_v", "to_out.0"]
    tiny.model.add_adapter(LoraConfig(r=2, target_modules=names, init_lora_weights=False))


def delete_adapter(tiny):
    tiny.model.delete_adapters("default")


def save_lora(family, folder):
    """A LoRA file of the family, as diffusers' training scripts write it."""
    tiny = TinyFamily(family)
    add_adapter(tiny)
    name = "unet_lora_layers" if hasattr(tiny.pipe, "unet") else "transformer_lora_layers"
    type(tiny.pipe).save_lora_weights(folder, **{name: get_peft_model_state_dict(tiny.model)})


def load_lora(tiny):
    with tempfile.TemporaryDirectory() as folder:
        save_lora(tiny.name, folder)
        tiny.pipe.load_lora_weights(folder, weight_name="pytorch_lora_weights.safetensors")


def unload_lora(tiny):
    tiny.pipe.unload_lora_weights()


def fuse_lora(tiny):
    load_lora(tiny)
    tiny.pipe.fuse_lora()


def unfuse_lora(tiny):
    tiny.pipe.unfuse_lora()
    unload_lora(tiny)


def fuse_and_unload_lora(tiny):
    fuse_lora(tiny)
    unload_lora(tiny)
