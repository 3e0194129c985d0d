"""LinFusion's folders: configuration and keys, the output they give, what can be wrong in them."""

import json

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import elu, layer_norm, leaky_relu

from foveate.attn_processors import LinearAttnProcessor, apply
from published_files import linfusion_modules, linfusion_shapes, write_linfusion, write_sparse
from tiny_pipelines import Tiny

TENSORS, CONFIG = "diffusion_pytorch_model.safetensors", "config.json"


@pytest.fixture(scope="module")
def sd():
    return Tiny("sd")


def linfusion_formula(tensors, index, heads, x):
    """LinFusion's attention of x [B, N, C] in float64, from the tensors `index` of its file."""
    own = {
        k.removeprefix(f"{index}."): v.double()
        for k, v in tensors.items()
        if k.startswith(f"{index}.")
    }
    x = x.double()

    def inner(name):
        if f"{name}.0.weight" not in own:
            return x
        y = x @ own[f"{name}.0.weight"].mT + own[f"{name}.0.bias"]
        y = layer_norm(y, y.shape[-1:], own[f"{name}.1.weight"], own[f"{name}.1.bias"])
        return leaky_relu(y, 0.01) @ own[f"{name}.3.weight"].mT + own[f"{name}.3.bias"]

    def split(y):
        return y.unflatten(-1, (heads, -1)).transpose(1, 2)

    q = elu(split((x + inner("to_q_")) @ own["to_q.weight"].mT)) + 1
    k = elu(split((x + inner("to_k_")) @ own["to_k.weight"].mT)) + 1
    v = split(x @ own["to_v.weight"].mT)
    state, mean = k.mT @ v / x.shape[1], k.mean(2, keepdim=True)
    out = q @ state / ((q * mean).sum(-1, keepdim=True) + 1e-4)
    return out.transpose(1, 2).flatten(2) @ own["to_out.0.weight"].mT + own["to_out.0.bias"]


@pytest.mark.parametrize("mid_dim", [None, -1, 3])
def test_every_layer_computes_linfusions_formula(sd, tmp_path, mid_dim):
    tensors = write_linfusion(tmp_path, sd.model, mid_dim)
    seen = {}

    def watch(module, args, out):
        seen.setdefault(module, (args[0], out))

    modules = linfusion_modules(sd.model)
    layers = [sd.model.get_submodule(module["module_name"]) for module in modules]
    hooks = [layer.register_forward_hook(watch) for layer in layers]
    want = sd()
    seen.clear()
    with apply(sd.pipe, LinearAttnProcessor.from_pretrained(tmp_path), strict=True):
        assert not torch.equal(sd(), want)
    for hook in hooks:
        hook.remove()
    for i, layer in enumerate(layers):
        x, got = seen[layer]
        expected = linfusion_formula(tensors, i, layer.heads, x)
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(sd(), want)


def test_the_file_may_be_named(sd, tmp_path):
    write_linfusion(tmp_path, sd.model, 3)
    named = LinearAttnProcessor.from_pretrained(tmp_path / TENSORS).weights.state_dict()
    found = LinearAttnProcessor.from_pretrained(str(tmp_path)).weights.state_dict()
    assert all(torch.equal(value, named[key]) for key, value in found.items())


SD15 = {"cross_attention_dim": 768, "attention_head_dim": 8}
SD21 = {
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}


def on_meta(options):
    with torch.device("meta"):
        return diffusers.UNet2DConditionModel(**options).to(torch.bfloat16)


@pytest.mark.parametrize(
    ("options", "layers", "mid_dim", "other", "message"),
    [
        (SD15, 16, None, SD21, r"has 5 heads in this model and 8 in the weights"),
        (SD21, 16, -1, SD15, r"has 8 heads in this model and 5 in the weights"),
        (SDXL, 70, 40, SD15, r"is not in this model"),
    ],
    ids=["1-5", "2-1", "XL"],
)
def test_the_true_layers_fit(tmp_path, options, layers, mid_dim, other, message):
    model = on_meta(options)
    modules = linfusion_modules(model, mid_dim)
    shapes = linfusion_shapes(modules)
    assert len(modules) == layers
    assert len(shapes) == layers * (5 if mid_dim == -1 else 17)
    (tmp_path / CONFIG).write_text(json.dumps({"modules_list": modules}))
    write_sparse(tmp_path / TENSORS, shapes)
    processor = LinearAttnProcessor.from_pretrained(tmp_path)
    with apply(model, processor) as handle:
        rows = [row for row in handle.report().layers if row.kind == "self"]
    assert [row.operator for row in rows] == ["-"] * layers
    with pytest.raises(ValueError, match=message):
        apply(on_meta(other), processor)


# what can be wrong


def test_missing_and_unexpected_keys_are_listed(sd, tmp_path):
    write_linfusion(tmp_path, sd.model, 3)
    tensors = load_file(tmp_path / TENSORS)
    tensors["5.to_q.bias"] = tensors.pop("5.to_k_.3.bias")
    tensors["6.to_out.0.bias"] = torch.zeros(2)
    save_file(tensors, tmp_path / TENSORS)
    with pytest.raises(ValueError, match=r"1 missing keys: 5.to_k_.3.bias; ") as raised:
        LinearAttnProcessor.from_pretrained(tmp_path)
    text = "1 unexpected keys: 5.to_q.bias; 1 other shapes: 6.to_out.0.bias (2,), expected (16,)"
    assert text in str(raised.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "is not readable JSON"),
        ("[]", "must hold a JSON object, got list"),
        ("{}", "has no modules_list"),
        (
            '{"modules_list": [{"module_name": "a.attn1"}]}',
            r"modules_list\[0\] must give module_name",
        ),
        ('{"modules_list": ["a.attn1"]}', r"got 'a.attn1'"),
    ],
    ids=["cut", "list", "empty", "short", "names"],
)
def test_a_broken_configuration(sd, tmp_path, config, message):
    write_linfusion(tmp_path, sd.model)
    (tmp_path / CONFIG).write_text(config)
    with pytest.raises(ValueError, match=message):
        LinearAttnProcessor.from_pretrained(tmp_path)


def test_a_part_of_a_folder(sd, tmp_path):
    write_linfusion(tmp_path, sd.model)
    (tmp_path / CONFIG).unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config.json; there is diffusion_pytorch"):
        LinearAttnProcessor.from_pretrained(tmp_path)
