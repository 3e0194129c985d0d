"""Runs the nodes in a real ComfyUI on tiny random models and prints what came out, as JSON.

A program of its own, started by test_comfyui_nodes.py: ComfyUI takes names such as `utils` and
`nodes` for itself. Arguments: the folder of ComfyUI and that of the nodes.
"""

import asyncio
import json
import logging
import re
import sys
from pathlib import Path

COMFYUI, NODES = sys.argv[1:3]
# the name under which ComfyUI loads the folder, dots replaced
OURS = NODES.replace(".", "_x_")
sys.argv = [sys.argv[0], "--cpu"]
sys.path.insert(0, COMFYUI)

import comfy.options

comfy.options.enable_args_parsing()

# before `nodes`, which makes `utils` mean another module
import utils.extra_config  # noqa: F401

import comfy.model_patcher
import comfy.patcher_extension
import comfy.sample
import comfy.supported_models
import execution
import nodes
import torch

from comfyui_workflow import to_api
from oracles import dense

HEADS, TEXT, HEIGHT, WIDTH = 2, 7, 52, 44
SMALL = (26, 22)
MODES = ("foveated", "local", "neighborhood", "window", "agent")
RADIUS = 2
CONTEXT = {"target": "torch.nn.Linear", "params": {"in_features": 32, "out_features": 128}}
FLUX = {
    "in_channels": 4, "out_channels": 4, "patch_size": 2, "context_in_dim": 32, "hidden_size": 64,
    "mlp_ratio": 2.0, "num_heads": HEADS, "depth": 2, "depth_single_blocks": 2,
    "axes_dim": [8, 12, 12], "theta": 10000, "qkv_bias": True,
}  # fmt: skip
UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32,
    "num_res_blocks": [1, 1], "transformer_depth": [1, 1], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1], "channel_mult": [1, 2], "num_heads": HEADS,
    "num_head_channels": -1, "use_spatial_transformer": True, "context_dim": 32, "legacy": False,
    "use_linear_in_transformer": False,
}  # fmt: skip
# class of the configuration, options of the model, shape of its latent
MODELS = {
    "SD15": ("SD15", UNET, (4,)),
    "SD3": (
        "SD3",
        {
            "in_channels": 4,
            "patch_size": 2,
            "depth": 2,
            "input_size": None,
            "num_patches": 1024,
            "adm_in_channels": 16,
            "context_embedder_config": CONTEXT,
            "qk_norm": "rms",
            "pos_embed_max_size": 32,
            "x_block_self_attn_layers": [0],
        },
        (4,),
    ),  # fmt: skip
    "Flux": (
        "Flux",
        FLUX | {"image_model": "flux", "vec_in_dim": 16, "guidance_embed": True},
        (4,),
    ),
    "Chroma": (
        "Chroma",
        FLUX
        | {
            "image_model": "chroma",
            "in_dim": 64,
            "out_dim": 64,
            "hidden_dim": 32,
            "n_layers": 1,
            "in_channels": 64,
            "out_channels": 64,
        },
        (16,),
    ),  # fmt: skip
    "QwenImage": (
        "QwenImage",
        {
            "image_model": "qwen_image",
            "num_layers": 2,
            "attention_head_dim": 32,
            "num_attention_heads": HEADS,
            "joint_attention_dim": 32,
            "pooled_projection_dim": 16,
            "axes_dims_rope": (8, 12, 12),
        },
        (16, 1),
    ),  # fmt: skip
    "Wan": (
        "WAN21_T2V",
        {
            "image_model": "wan2.1",
            "model_type": "t2v",
            "dim": 128,
            "ffn_dim": 128,
            "num_heads": HEADS,
            "num_layers": 2,
            "in_dim": 16,
            "out_dim": 16,
            "freq_dim": 64,
            "text_dim": 32,
            "patch_size": (1, 2, 2),
            "window_size": (-1, -1),
            "qk_norm": True,
            "cross_attn_norm": True,
            "eps": 1e-6,
        },
        (16, 3),
    ),  # fmt: skip
}


def make(name):
    """A ModelPatcher of a tiny model with random weights."""
    config, options, _ = MODELS[name]
    config = getattr(comfy.supported_models, config)(dict(options))
    config.unet_config["dtype"] = torch.float32
    config.manual_cast_dtype = None
    torch.manual_seed(0)
    model = config.get_model({}, device="cpu").eval()
    for parameter in model.parameters():
        scale = 0.2 if parameter.dim() > 1 else 0.1
        parameter.data = torch.randn_like(parameter) * scale
    if config.unet_config.get("pos_embed_max_size"):
        # comes with a checkpoint, and holds whatever was in memory until then
        model.diffusion_model.pos_embed.normal_(std=0.1)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, cpu, cpu)


def prompt(text, seed):
    """A conditioning with random embeddings; what belongs to the whole picture is the same."""
    generator = torch.Generator().manual_seed(7)
    extra = {"pooled_output": torch.randn(1, 16, generator=generator), "guidance": 3.0}
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(1, text, 32, generator=generator), extra]]


def sample(
    patcher, name, texts=(TEXT, TEXT), steps=2, sampler="euler", positive=None, size=(HEIGHT, WIDTH)
):
    """A few steps through ComfyUI's own sampler, with a prompt and a negative one."""
    torch.manual_seed(1)
    latent = torch.randn(1, *MODELS[name][2], *size) * 0.5
    positive = prompt(texts[0], 1) if positive is None else positive
    given = (4.0, sampler, "simple", positive, prompt(texts[1], 2), latent)
    noise = comfy.sample.prepare_noise(latent, 0)
    return comfy.sample.sample(patcher, noise, steps, *given, disable_pbar=True)


def run(node, **inputs):
    """What a node of ours gives."""
    return nodes.NODE_CLASS_MAPPINGS[node].execute(**inputs).args


def foveate(patcher, **options):
    """What Foveate Attention gives."""
    given = {
        "mode": "local", "radius": RADIUS, "pool": 2, "start_percent": 0.0, "end_percent": 1.0,
        "dense_layers": "", "min_tokens": 0, "verbose": False,
    }  # fmt: skip
    return run("FoveateAttention", model=patcher, **given | options)[0]


def masked(patcher, name):
    """The same picture by an override of our own that masks dense attention by the disc."""
    frames = (*MODELS[name][2], 1)[1]
    grids = {(height, width) for height, width in ((HEIGHT, WIDTH), (HEIGHT // 2, WIDTH // 2))}
    text = {"SD15": (0,), "Wan": (0,), "SD3": (0, TEXT)}.get(name, (TEXT,))
    table = {t + frames * h * w: (t, h, w) for t in text for h, w in grids}

    def override(func, q, k, v, heads, *args, **kwargs):
        tokens = q.shape[-2]
        if k.shape[-2] != tokens or tokens not in table:
            return func(q, k, v, heads, *args, **kwargs)
        if not kwargs.get("skip_reshape"):
            q, k, v = (x.flatten(2).unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        text, height, width = table[tokens]
        axes = (torch.arange(size).double() for size in (frames, height, width))
        where = torch.cartesian_prod(*axes)
        visible = torch.ones(tokens, tokens, dtype=torch.bool)
        visible[text:, text:] = torch.cdist(where, where) < RADIUS - 1e-4
        out = dense(*(x.double() for x in (q, k, v)), visible).float()
        return out.transpose(1, 2).flatten(2)

    clone = patcher.clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = override
    return sample(clone, name)


@torch.inference_mode()  # ComfyUI runs its nodes in it
def facts_of(name):
    """Everything a test asks of one model."""
    model = make(name)
    plain = sample(model, name)
    outs = {mode: sample(foveate(model, mode=mode), name) for mode in MODES}
    local, oracle = foveate(model), masked(model, name)
    ours = sample(local, name)
    report = run("FoveateReport", model=local, after=ours)[0]
    later = local.clone()
    calls = []

    def count(func, *args, **kwargs):
        calls.append(func)
        return func(*args, **kwargs)

    later.model_options["transformer_options"]["optimized_attention_override"] = count
    try:
        foveate(local)
    except ValueError as error:
        refused = str(error)
    scale = plain.abs().max()
    return {
        "finite": all(out.isfinite().all().item() for out in outs.values()),
        "differs": {mode: not torch.equal(out, plain) for mode, out in outs.items()},
        "wide_is_dense": torch.equal(sample(foveate(model, radius=99), name), plain),
        "oracle_error": ((ours - oracle).abs().max() / scale).item(),
        "oracle_effect": ((plain - oracle).abs().max() / scale).item(),
        "later_override_kept": torch.equal(sample(later, name), ours),
        "later_override_calls": len(calls),
        "other_lengths": sample(local, name, (TEXT, 11)).isfinite().all().item(),
        "second_node": refused,
        "restored": torch.equal(sample(model, name), plain),
        "report": report,
        "broadcast": broadcast_facts(model, name),
        "regions": region_facts(model, name),
        "maps": map_facts(model, name),
    }


def broadcast(patcher, **options):
    """What Foveate Broadcast gives."""
    given = {
        "mode": "forecast", "every": 2, "start_percent": 0.1, "end_percent": 0.85,
        "kinds": "all", "store": "native",
    }  # fmt: skip
    return run("FoveateBroadcast", model=patcher, **given | options)[0]


def replayed(patcher, name, row, **options):
    """The same picture by an override of our own that forecasts where the row says so."""
    kept, state = {}, {"now": None, "number": 0}
    clone = patcher.clone()

    def override(func, *args, **kwargs):
        now = kwargs["transformer_options"]
        sigma = now["sigmas"].max().item()
        step = now["sample_sigmas"].tolist().index(sigma)
        branch = (*now["uuids"],)
        if state["now"] != (step, branch):
            state.update(now=(step, branch), number=0)
        key = (branch, state["number"])
        state["number"] += 1
        t = patcher.model.model_sampling.timestep(now["sigmas"]).max().item()
        if row[step] == "#":
            out = func(*args, **kwargs)
            kept[key] = [*kept.get(key, [])[-1:], (t, out)]
            return out
        (t2, two), (t1, one) = kept[key]
        return one + (one - two) * (t - t1) / (t1 - t2)

    clone.model_options["transformer_options"]["optimized_attention_override"] = override
    return sample(clone, name, **options)


def broadcast_facts(model, name):
    """Eight steps, with attention forecast in some of them."""
    ours, given = broadcast(model), {"steps": 8, "size": SMALL}
    plain, out = (sample(each, name, **given) for each in (model, ours))
    report = run("FoveateReport", model=ours, after=out)[0]
    row = re.search("; steps ([#~]+);", report)[1]
    one, two = (
        sample(each, name, **given)
        for each in (foveate(broadcast(model)), broadcast(foveate(model)))
    )
    apart = given | {"texts": (TEXT, 11)}  # two forwards a step
    scale = plain.abs().max()
    errors = [
        (ours_out - replayed(model, name, row, **each)).abs().max() / scale
        for ours_out, each in ((out, given), (sample(ours, name, **apart), apart))
    ]
    return {
        "row": row,
        "effect": ((out - plain).abs().max() / scale).item(),
        "error": max(errors).item(),
        "orders": torch.equal(one, two) and not torch.equal(one, out),
        "finite": sample(ours, name, **given, sampler="heun").isfinite().all().item(),
        "restored": torch.equal(sample(model, name, **given), plain),
    }


def region_facts(model, name):
    """A region that is everything is its prompt alone; two halves are neither."""
    base, own = prompt(TEXT, 1), prompt(5, 3)
    half = torch.zeros(1, 26, 22)
    half[..., :11] = 1

    def regions(mask):
        return run("FoveateRegions", model=model, conditioning=base, region=own, mask=mask)

    def picture(patcher, positive):
        return sample(patcher, name, positive=positive, size=SMALL)

    (patched, everywhere), (_, halves) = regions(torch.ones(1, 26, 22)), regions(half)
    alone, without = picture(model, own), picture(model, base)
    out = picture(patched, halves)
    report = run("FoveateReport", model=patched, after=out)[0]
    local = picture(foveate(patched), halves)
    try:
        picture(model, halves)
    except ValueError as error:
        refused = str(error)
    scale = alone.abs().max()
    return {
        "limit": ((picture(patched, everywhere) - alone).abs().max() / scale).item(),
        "effect": ((without - alone).abs().max() / scale).item(),
        "halves": min((out - x).abs().max().item() for x in (alone, without)),
        "with_operator": local.isfinite().all().item() and not torch.equal(local, out),
        "refused": refused,
        "report": report,
    }


class Words:
    """Stands for CLIP: one token a word."""

    def tokenize(self, text, return_word_ids=False):
        return {"t5xxl": [[(word, 1.0, 1) for word in map(int, text.split())]]}


def map_facts(model, name):
    """Phrases of two tokens and of all; the picture stays."""
    text = " ".join(map(str, range(TEXT)))
    given = {"text": text, "phrases": f"2 3\n{text}", "start_percent": 0.0, "end_percent": 1.0}
    reader = run("FoveateReadMaps", model=model, clip=Words(), **given)[0]
    out = sample(reader, name, size=SMALL)
    images, masks, legend = run(
        "FoveateAttentionMaps", model=reader, image=torch.rand(1, *SMALL, 3)
    )
    highest = [float(line.rpartition(" ")[2]) for line in legend.splitlines()]
    return {
        "unchanged": torch.equal(out, sample(model, name, size=SMALL)),
        "shapes": [list(images.shape), list(masks.shape)],
        "highest": highest,
        "least_of_all": masks[1].min().item() * highest[1],
        "varies": (masks[0].max() - masks[0].min()).item(),
    }


def token_facts():
    """Phrases as the tokenizers that come with ComfyUI cut them, read back."""
    from comfy.sd1_clip import SD1Tokenizer
    from comfy.sdxl_clip import SDXLTokenizer
    from comfy.text_encoders.flux import FluxTokenizer
    from comfy.text_encoders.sd3_clip import SD3Tokenizer

    find = sys.modules[f"{OURS}.comfyui.phrases"].find_phrases
    text = "an oil painting of a (Persian cat:1.3) beside a red umbrella, by night"
    phrases = ["Persian cat", "red umbrella", "night"]
    facts = {}
    for kind in (SD1Tokenizer, SDXLTokenizer, SD3Tokenizer, FluxTokenizer):
        tokenizer = kind()
        found, length = find(tokenizer.tokenize_with_weights, text, phrases)
        tokens = tokenizer.tokenize_with_weights(text)
        names = ["t5xxl"] if kind is FluxTokenizer else [n for n in ("l", "t5xxl") if n in tokens]
        line = [pair for name in names for chunk in tokens[name] for pair in chunk]
        inner = {"l": "clip_l", "t5xxl": "t5xxl"}
        words = {}
        for phrase, places in found.items():
            name = names[-1]
            start = len(line) - sum(map(len, tokens[name]))
            pairs = [line[place] for place in places if place >= start]
            cut = getattr(tokenizer, inner[name]).untokenize(pairs)
            words[phrase] = "".join(word for _, word in cut)
        facts[kind.__name__] = {"length": length == len(line), "words": words}
    return facts


def check(path):
    """What ComfyUI finds wrong with a workflow before it queues it; models are not here to find."""
    kinds = nodes.NODE_CLASS_MAPPINGS
    prompt = to_api(json.loads(path.read_text()), lambda kind: kinds[kind].INPUT_TYPES())
    valid, *_, errors = asyncio.run(execution.validate_prompt("test", prompt, None))
    kinds_of_error = {error["type"] for node in errors.values() for error in node["errors"]}
    return {"valid": valid, "errors": sorted(kinds_of_error)}


def main():
    """Loads the nodes as ComfyUI does and prints the facts on the last line."""
    logging.disable(logging.INFO)
    loaded = asyncio.run(nodes.load_custom_node(NODES))
    asyncio.run(nodes.init_extra_nodes(init_api_nodes=False))
    wrappers = comfy.patcher_extension.WrappersMP
    facts = {
        "loaded": loaded,
        "web": nodes.EXTENSION_WEB_DIRS.get(Path(NODES).name),
        "modules": [name for name in ("foveate", "diffusers") if name in sys.modules],
        "wrappers": [wrappers.APPLY_MODEL, wrappers.PREDICT_NOISE, wrappers.OUTER_SAMPLE],
        "workflows": {
            path.name: check(path) for path in Path(NODES).glob("example_workflows/*.json")
        },
        "tokens": token_facts(),
        "models": {name: facts_of(name) for name in MODELS},
    }
    print("\n" + json.dumps(facts))  # noqa: T201


if __name__ == "__main__":
    main()
