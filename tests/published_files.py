"""Files in the formats that CLEAR and LinFusion have published, for models of any size."""

import json
import struct

import torch
from safetensors.torch import save_file


def clear_shapes(joint, single, width, pool=None):
    """Key -> shape of a CLEAR file: 8 tensors a joint layer, 6 a single one, 1 more if pooled."""
    stacks = [("transformer_blocks", joint, ("to_q", "to_k", "to_v", "to_out.0"))]
    stacks += [("single_transformer_blocks", single, ("to_q", "to_k", "to_v"))]
    shapes = {}
    for stack, count, parts in stacks:
        for i in range(count):
            for part in parts:
                shapes[f"{stack}.{i}.attn.{part}.weight"] = (width, width)
                shapes[f"{stack}.{i}.attn.{part}.bias"] = (width,)
            if pool is not None:
                key = f"{stack}.{i}.attn.processor.spatial_weight"
                shapes[key] = (1, 1, 1, pool, 1, pool, 1)
    return shapes


def clear_tensors(model, pool=None, shift=0.1):
    """What a CLEAR file for this Flux model may hold: its own projections, moved by `shift`."""
    joint, single = len(model.transformer_blocks), len(model.single_transformer_blocks)
    own = model.state_dict()
    tensors = {}
    for key, shape in clear_shapes(joint, single, model.inner_dim, pool).items():
        start = own[key] if key in own else torch.full(shape, pool**-2.0)
        tensors[key] = start + shift * torch.randn_like(start)
    return tensors


def linfusion_modules(model, mid_dim=None):
    """`modules_list` of a LinFusion configuration for this UNet."""
    return [
        {
            "module_name": name,
            "dim_n": module.to_q.in_features,
            "heads": module.heads,
            "projection_mid_dim": mid_dim,
        }
        for name, module in model.named_modules()
        if name.endswith("attn1")
    ]


def linfusion_shapes(modules):
    """Key -> shape of a LinFusion file: 17 tensors a layer, 5 where the middle dimension is -1."""
    shapes = {}
    for i, module in enumerate(modules):
        width, middle = module["dim_n"], module["projection_mid_dim"]
        shapes |= {f"{i}.to_{x}.weight": (width, width) for x in "qkv"}
        shapes |= {f"{i}.to_out.0.weight": (width, width), f"{i}.to_out.0.bias": (width,)}
        if middle == -1:
            continue
        middle = width if middle is None else middle
        for inner in (f"{i}.to_q_", f"{i}.to_k_"):
            shapes |= {f"{inner}.0.weight": (middle, width), f"{inner}.0.bias": (middle,)}
            shapes |= {f"{inner}.1.weight": (middle,), f"{inner}.1.bias": (middle,)}
            shapes |= {f"{inner}.3.weight": (width, middle), f"{inner}.3.bias": (width,)}
    return shapes


def write_linfusion(folder, model, mid_dim=None):
    """A LinFusion folder for this UNet; its tensors."""
    modules = linfusion_modules(model, mid_dim)
    tensors = {key: 0.3 * torch.randn(shape) for key, shape in linfusion_shapes(modules).items()}
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    config = {"_class_name": "GeneralizedLinearAttention", "modules_list": modules}
    (folder / "config.json").write_text(json.dumps(config))
    return tensors


def write_sparse(path, shapes):
    """A bfloat16 safetensors file of any size that takes no room: all zeros, a hole on the disk."""
    header, end = {}, 0
    for key, shape in shapes.items():
        begin, end = end, end + 2 * torch.Size(shape).numel()
        header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
