"""A stand-in for ComfyUI's sampling: the contract that the nodes rely on, and nothing else.

Call shapes and arguments are those measured on the real thing, one tiny model a family. The test
against a real ComfyUI keeps this file honest.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from foveate.comfyui.settings import Settings

APPLY_MODEL, PREDICT_NOISE, OUTER_SAMPLE = "apply_model", "predict_noise", "outer_sample"
SLOT = "optimized_attention_override"


def stock(q, k, v, heads, mask=None, attn_precision=None, skip_reshape=False,
          skip_output_reshape=False, **kwargs):  # fmt: skip
    """Dense attention under the signature of ComfyUI's."""
    if not skip_reshape:
        q, k, v = (x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out if skip_output_reshape else out.transpose(1, 2).flatten(2)


def attention(*args, **kwargs):
    """What a model calls: the override in its options, or the stock function."""
    kwargs["_inside_attn_wrapper"] = True
    options = kwargs.get("transformer_options") or {}
    return options[SLOT](stock, *args, **kwargs) if SLOT in options else stock(*args, **kwargs)


class Executor:
    """Calls one wrapper after the other, then the function."""

    def __init__(self, original, class_obj, wrappers):
        self.original, self.class_obj, self.wrappers = original, class_obj, wrappers

    def __call__(self, *args, **kwargs):
        if not self.wrappers:
            return self.original(*args, **kwargs)
        rest = Executor(self.original, self.class_obj, self.wrappers[1:])
        return self.wrappers[0](rest, *args, **kwargs)


class Patcher:
    """ModelPatcher: a model, and lists of wrappers that a clone has for itself."""

    def __init__(self, model, wrappers=(), options=()):
        self.model, self.options = model, dict(options)
        self.wrappers = {kind: {k: [*w] for k, w in keyed.items()} for kind, keyed in wrappers}

    def clone(self):
        return Patcher(self.model, self.wrappers.items(), self.options)

    def get_wrappers(self, wrapper_type, key):
        return self.wrappers.get(wrapper_type, {}).get(key, [])

    def remove_wrappers_with_key(self, wrapper_type, key):
        self.wrappers.get(wrapper_type, {}).pop(key, None)

    def add_wrapper_with_key(self, wrapper_type, key, wrapper):
        self.wrappers.setdefault(wrapper_type, {}).setdefault(key, []).append(wrapper)

    def _all(self, wrapper_type):
        return [w for keyed in self.wrappers.get(wrapper_type, {}).values() for w in keyed]

    def sample(self, x, context, sigmas=(1.0,), prompts=None, sampler="euler", **conds):
        """One sampling, with an evaluation for each sigma; the outputs and what was in the options.

        prompts: what an evaluation runs, a forward for each: (contexts that share it, their names,
            whether each is the positive prompt's 0 or the negative's 1). The latent is then not x
            in every step, but x moved by the square of sigma.
        """
        seen, schedule = [], torch.tensor([*sigmas, 0.0])

        def forward(sigma, contexts, names, which):
            moved = x if prompts is None else x + 0.3 * sigma**2 * x.roll(1, -1)
            moved = torch.cat([moved] * len(names))
            options = dict(self.options)
            options |= {"uuids": names, "cond_or_uncond": which, "sample_sigmas": schedule}
            t = torch.full((len(moved),), sigma)
            run = Executor(self.model.apply, self.model, self._all(APPLY_MODEL))
            seen.append(run(moved, t, None, torch.cat(contexts), None, options, **conds))
            assert options.get(SLOT) is self.options.get(SLOT), "an override was left behind"

        def evaluate(sigma):
            for each in prompts or [([context], ["prompt"], [0])]:
                forward(sigma, *each)

        def inner(*_):
            for sigma in sigmas:
                Executor(evaluate, self, self._all(PREDICT_NOISE))(sigma)
            return seen if prompts else torch.stack(seen)

        function = SimpleNamespace(__name__=f"sample_{sampler}")
        given = (None, None, SimpleNamespace(sampler_function=function), schedule)
        return Executor(inner, self, self._all(OUTER_SAMPLE))(*given)


class Sampling:
    """Rectified flow without a shift."""

    def percent_to_sigma(self, percent):
        return 1.0 - percent

    def timestep(self, sigma):
        return 1000 * sigma


class Base:
    """BaseModel: hands the latent and the options to the diffusion model."""

    def __init__(self, diffusion_model):
        self.diffusion_model, self.model_sampling = diffusion_model, Sampling()

    def apply(self, x, t, c_concat, c_crossattn, control, transformer_options, **conds):
        return self.diffusion_model(x, c_crossattn, transformer_options, **conds)


class Tiny(nn.Module):
    """Two heads of 8 and fixed random projections of the tokens."""

    patch_size = 2
    layers = 2

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.weight = torch.randn(3, 16, 16, generator=generator).double() * 0.4
        self.calls = []

    def project(self, query, keys):
        return query @ self.weight[0], keys @ self.weight[1], keys @ self.weight[2]

    def call(self, *args, **kwargs):
        self.calls.append((args, kwargs))
        return attention(*args, **kwargs)

    def tokens(self, x):
        """One token for each patch of x [B, 4, h, w] or [B, 4, f, h, w]: [B, N, 16]."""
        p = self.patch_size if isinstance(self.patch_size, int) else self.patch_size[-1]
        x = x if x.dim() == 5 else x.unsqueeze(2)
        x = F.pad(x, (0, -x.shape[-1] % p, 0, -x.shape[-2] % p))
        # the CPU pools no half precision
        x = F.avg_pool3d(x.double(), (1, p, p)).to(x.dtype).flatten(2).mT  # [B, N, 4]
        return torch.cat([x, x.sin(), x.cos(), x.square()], -1)

    @staticmethod
    def split(x):
        return x.unflatten(-1, (2, 8)).transpose(1, 2)


def named(name):
    """Gives a class the place in comfy.ldm that the layout table knows."""

    def rename(cls):
        cls.__module__, _, cls.__qualname__ = f"comfy.ldm.{name}".rpartition(".")
        return cls

    return rename


@named("flux.model.Flux")
class Flux(Tiny):
    """Text, image, references in one sequence; [B, H, N, D]; heads by position."""

    def forward(self, x, context, transformer_options, ref_latents=None, **conds):
        image = [self.tokens(x), *(self.tokens(ref) for ref in ref_latents or [])]
        tokens = torch.cat([context, *image], 1)
        for _ in range(self.layers):
            q, k, v = (self.split(part) for part in self.project(tokens, tokens))
            tokens = tokens + self.call(
                q, k, v, 2, skip_reshape=True, mask=conds.get("attention_mask"),
                transformer_options=transformer_options,
            )  # fmt: skip
        return tokens[:, context.shape[1] :]


@named("modules.diffusionmodules.mmdit.MMDiT")
class SD3(Tiny):
    """Text and image in one sequence, then the image alone; values split; heads by keyword."""

    def forward(self, x, context, transformer_options, **conds):
        tokens = torch.cat([context, self.tokens(x)], 1)
        for _ in range(self.layers):
            q, k, v = self.project(tokens, tokens)
            v = v.unflatten(-1, (2, 8))
            out = self.call(q, k, v, heads=2, transformer_options=transformer_options)
            tokens = tokens + out
        image = tokens[:, context.shape[1] :]
        again = self.call(
            *self.project(image, image), heads=2, transformer_options=transformer_options
        )
        return image + again


@named("modules.diffusionmodules.openaimodel.UNetModel")
class UNet(Tiny):
    """Self- and cross-attention on two levels, and attention over the batch's frames."""

    patch_size = 1

    def forward(self, x, context, transformer_options, **conds):
        outs = []
        for level in range(self.layers):
            x = x[..., ::2, ::2] if level else x
            options = transformer_options
            options["activations_shape"] = [x.shape[0], 16, *x.shape[2:]]
            options["block"], options["block_index"] = ("input", level), 0
            tokens = self.tokens(x)
            given = {"transformer_options": options, "attn_precision": None}
            tokens = tokens + self.call(*self.project(tokens, tokens), 2, **given)
            tokens = tokens + self.call(*self.project(tokens, context), 2, **given)
            places = tokens.transpose(0, 1)  # [N, B, 16]
            tokens = tokens + self.call(*self.project(places, places), 2, **given).transpose(0, 1)
            outs.append(tokens)
        return torch.cat(outs, 1)


@named("wan.model.WanModel")
class Wan(Tiny):
    """Self-attention over frames, rows, columns; cross-attention; heads by keyword."""

    patch_size = (1, 2, 2)

    def forward(self, x, context, transformer_options, **conds):
        tokens = self.tokens(x)
        given = {"heads": 2, "transformer_options": transformer_options}
        for _ in range(self.layers):
            tokens = tokens + self.call(*self.project(tokens, tokens), **given)
            tokens = tokens + self.call(*self.project(tokens, context), **given)
        return tokens


@named("hunyuan_video.model.HunyuanVideo")
class Unknown(Tiny):
    """A model that is not in the layout table."""

    forward = Wan.forward


def attention_settings(**options):
    """Of the attention node: a small disc in every layer and step."""
    base = {
        "mode": "local",
        "radius": 2,
        "pool": 2,
        "start_percent": 0.0,
        "end_percent": 1.0,
        "dense_layers": "",
        "min_tokens": 0,
        "verbose": False,
    }
    return Settings(**base | options)
