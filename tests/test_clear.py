"""CLEAR's files: their keys, the output they give, and every way in which a file can be wrong."""

import copy
import pickle

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from foveate.attn_processors import FoveatedAttnProcessor, LocalAttnProcessor, apply
from foveate.kernels import TokenLayout
from oracles import dense
from published_files import clear_shapes, clear_tensors, write_sparse
from tiny_pipelines import Tiny

RADIUS = 3


@pytest.fixture(scope="module")
def flux():
    return Tiny("flux", num_layers=2, num_single_layers=2)


@pytest.fixture
def write(tmp_path):
    def write_file(tensors, name="clear_local_3.safetensors"):
        save_file(tensors, tmp_path / name)
        return tmp_path / name

    return write_file


def load(path, **options):
    return LocalAttnProcessor.from_pretrained(path, **{"window": RADIUS, **options})


# the formula, in float64, from the tensors of the file


def rotate(x, rotary):
    """Rotary embedding of x [B, H, N, D], pairs of neighbouring channels."""
    cos, sin = (table.double() for table in rotary)
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * cos + torch.stack((-b, a), -1).flatten(-2) * sin


def visible_tokens(layout, pool):
    """Who sees whom: [T + N, T + N + cells]."""
    text, tokens, (_, rows, columns) = layout.text, layout.num_tokens, layout.grid
    y, x = torch.arange(rows * columns).div(columns, rounding_mode="floor"), torch.arange(columns)
    x = x.repeat(rows)
    cells = 0 if pool is None else rows * columns // pool**2
    seen = torch.ones(tokens, tokens + cells, dtype=torch.bool)
    seen[text:, text:tokens] = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2 < RADIUS**2
    seen[:text, tokens:] = False  # text sees tokens, not cells
    return seen


def clear_formula(attn, name, tensors, inputs, layout, pool=None):
    """CLEAR's attention layer; `attn` gives text projections and norms, which are not trained."""
    weights = {f"{name}.{key}": value for key, value in attn.state_dict().items()} | tensors

    def weight(key):
        return weights[f"{name}.{key}"].double()

    def linear(part, x):
        return x @ weight(f"{part}.weight").mT + weight(f"{part}.bias")

    def heads(part, x, norm=None):
        x = linear(part, x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        if norm is None:
            return x
        mean_square = x.square().mean(-1, keepdim=True)
        return x / (mean_square + attn.norm_q.eps).sqrt() * weight(f"{norm}.weight")

    x, text = inputs["hidden_states"].double(), inputs.get("encoder_hidden_states")
    q, k, v = heads("to_q", x, "norm_q"), heads("to_k", x, "norm_k"), heads("to_v", x)
    if text is not None:
        text = text.double()
        q = torch.cat((heads("add_q_proj", text, "norm_added_q"), q), 2)
        k = torch.cat((heads("add_k_proj", text, "norm_added_k"), k), 2)
        v = torch.cat((heads("add_v_proj", text), v), 2)
    q, k = rotate(q, inputs["image_rotary_emb"]), rotate(k, inputs["image_rotary_emb"])
    if pool is not None:
        cell = weight("processor.spatial_weight")
        k, v = pooled_last(k, cell, layout, pool), pooled_last(v, cell, layout, pool)
    out = dense(q, k, v, visible_tokens(layout, pool)).transpose(1, 2).flatten(2)
    if text is None:
        return (out,)
    return linear("to_out.0", out[:, layout.text :]), linear("to_add_out", out[:, : layout.text])


def pooled_last(x, weight, layout, pool):
    """x [B, H, T + N, D] with the weighted sums of its cells behind."""
    _, rows, columns = layout.grid
    image = x[:, :, layout.text :].unflatten(2, (rows // pool, pool, columns // pool, pool))
    cells = (image * weight.reshape(1, 1, 1, pool, 1, pool, 1)).sum((3, 5)).flatten(2, 3)
    return torch.cat((x, cells), 2)


@pytest.mark.parametrize("pool", [None, 2], ids=["local", "pooled"])
def test_a_layer_computes_clears_formula(flux, write, pool):
    tensors = clear_tensors(flux.model, pool)
    seen = {}

    def watch(module, args, kwargs, out):
        seen.setdefault(module, (kwargs, out))

    attentions = {n: m for n, m in flux.model.named_modules() if n.endswith(".attn")}
    hooks = [m.register_forward_hook(watch, with_kwargs=True) for m in attentions.values()]
    with apply(flux.pipe, load(write(tensors)), strict=True) as handle:
        flux()
    for hook in hooks:
        hook.remove()
    operator = "local" if pool is None else "foveated"
    assert [row.operator for row in handle.report().layers] == [operator] * 4
    layout = TokenLayout(text=16, grid=(1, *flux.grid()))
    for name, module in attentions.items():
        inputs, got = seen[module]
        want = clear_formula(module, name, tensors, inputs, layout, pool)
        for a, b in zip(got if isinstance(got, tuple) else (got,), want, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pool", [None, 2], ids=["local", "pooled"])
def test_a_loaded_file_equals_a_model_with_its_weights(flux, write, pool):
    tensors = clear_tensors(flux.model, pool)
    twin = Tiny("flux", num_layers=2, num_single_layers=2)
    trained = {k: v for k, v in tensors.items() if not k.endswith("spatial_weight")}
    twin.model.load_state_dict(flux.model.state_dict() | trained)
    processor = LocalAttnProcessor(radius=RADIUS)
    if pool is not None:
        options = {"radius": RADIUS, "pool": pool, "mass": False, "partition": False}
        processor = {
            f"{name}.processor": FoveatedAttnProcessor(
                pool_weight=tensors[f"{name}.processor.spatial_weight"], **options
            )
            for name in (key.removesuffix(".processor") for key in twin.model.attn_processors)
        }
    with apply(twin.pipe, processor):
        want = twin()
    untouched = flux()
    with apply(flux.pipe, load(write(tensors))):
        assert torch.equal(flux(), want)
    assert not torch.equal(untouched, want)


# undo


def test_the_models_own_weights_are_never_touched(flux, write):
    before = {key: value.clone() for key, value in flux.model.state_dict().items()}
    pointers = [p.data_ptr() for p in flux.model.parameters()]
    modules = [name for name, _ in flux.model.named_modules()]
    want = flux()
    processor = load(write(clear_tensors(flux.model)))

    def fail(*args):
        raise RuntimeError("cut short")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="cut short"), apply(flux.pipe, processor):  # noqa: PT012
            assert not torch.equal(flux(), want)
            assert list(flux.model.state_dict()) == list(before)
            flux(callback_on_step_end=fail)
        assert all(torch.equal(v, before[k]) for k, v in flux.model.state_dict().items())
        assert [p.data_ptr() for p in flux.model.parameters()] == pointers
        assert [name for name, _ in flux.model.named_modules()] == modules
        assert torch.equal(flux(), want)


def test_dense_calls_keep_the_models_own_weights(flux, write):
    want = flux()
    processor = load(write(clear_tensors(flux.model, 8)))
    with apply(flux.pipe, processor, min_tokens=10_000):
        assert torch.equal(flux(), want)
    with apply(flux.pipe, processor) as handle:  # a grid of 8 x 12 has no cells of 8 x 8
        assert torch.equal(flux(), want)
    reason = "cell weights need sides divisible by pool=8, not 8 x 12"
    assert all(reason in row.reason for row in handle.report().layers)
    with apply(flux.pipe, processor, strict=True), pytest.raises(NotImplementedError, match=reason):
        flux()
    with apply(flux.pipe, load(write(clear_tensors(flux.model))), steps=(0, 0.5)) as handle:
        assert not torch.equal(flux(), want)
    assert all((row.forwards, row.dense_forwards) == (1, 1) for row in handle.report().layers)


def test_copies(flux, write):
    processor = load(write(clear_tensors(flux.model)))
    with apply(flux.pipe, processor):
        want = flux()
        twin = Tiny("flux")
        twin.pipe = copy.deepcopy(flux.pipe)
    assert torch.equal(twin(), want)
    for duplicate in (copy.deepcopy(processor), pickle.loads(pickle.dumps(processor))):
        with apply(flux.pipe, duplicate):
            assert torch.equal(flux(), want)
    assert repr(processor) == "LocalAttnProcessor(radius=3, weights=LocalWeights(4 layers))"


# the true files, without their 3.6 GB


def on_meta(**options):
    """FLUX.1-dev without memory."""
    with torch.device("meta"):
        model = diffusers.FluxTransformer2DModel(guidance_embeds=True, **options)
    return model.to(torch.bfloat16)


@pytest.mark.parametrize(("pool", "tensors"), [(None, 380), (4, 437)])
def test_the_true_keys_fit_flux(tmp_path, pool, tensors):
    shapes = clear_shapes(19, 38, 3072, pool)
    assert len(shapes) == tensors
    assert shapes.keys() >= {"single_transformer_blocks.37.attn.to_v.bias"}
    path = tmp_path / "clear_local_8.safetensors"
    write_sparse(path, shapes)
    processor = load(path, window=8)
    assert (len(processor.weights), len(processor.weights.state_dict())) == (57, tensors)
    model = on_meta()
    assert set(shapes) >= {k for k in model.state_dict() if ".attn.to_" in k and "add" not in k}
    with apply(model, processor) as handle:
        assert len(handle.report().layers) == 57
    with pytest.raises(
        ValueError, match=r"has 48 heads in this model and 24 in the.*; and 53 more"
    ):
        apply(on_meta(attention_head_dim=64, num_attention_heads=48), processor)


# what can be wrong


def test_the_window_must_be_given(write, flux):
    path = write(clear_tensors(flux.model))
    for source, hint in ((path, "window=3 by its name"), ("Huage001/CLEAR", "as the file was")):
        with pytest.raises(ValueError, match=f"must be given: {hint}"):
            LocalAttnProcessor.from_pretrained(source)


def test_another_window_than_the_name_says_is_logged(write, flux, caplog):
    path = write(clear_tensors(flux.model))
    assert load(path, window=5).radius == 5
    assert "was trained with window=3, not 5" in caplog.text


def test_missing_and_unexpected_keys_are_listed(write, flux):
    tensors = clear_tensors(flux.model, 2)
    tensors["extra.weight"] = tensors.pop("transformer_blocks.1.attn.to_k.bias")
    tensors["transformer_blocks.0.attn.to_q.bias"] = torch.zeros(3)
    del tensors["single_transformer_blocks.0.attn.processor.spatial_weight"]
    with pytest.raises(ValueError, match="2 missing keys: ") as raised:
        load(write(tensors))
    text = str(raised.value)
    assert "transformer_blocks.1.attn.to_k.bias, single_transformer_blocks.0.attn.proc" in text
    assert "1 unexpected keys: extra.weight" in text
    assert r"1 other shapes: transformer_blocks.0.attn.to_q.bias (3,), expected (32,)" in text
    with pytest.raises(ValueError, match=r"is no CLEAR file.*such as extra"):
        load(write({"extra": torch.zeros(3)}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 3}, r"transformer_blocks.2.attn is not in the weights"),
        ({"num_layers": 1}, r"transformer_blocks.1.attn is not in this model"),
    ],
    ids=["more", "fewer"],
)
def test_another_base_is_refused(write, flux, options, message):
    processor = load(write(clear_tensors(flux.model)))
    other = Tiny("flux", **{"num_single_layers": 2, **options})
    before = dict(other.model.attn_processors)
    with pytest.raises(ValueError, match=f"is of another base model: {message}"):
        apply(other.pipe, processor)
    assert all(other.model.attn_processors[n] is p for n, p in before.items())


def test_another_family_is_refused(write, flux):
    with pytest.raises(ValueError, match=r"attn is not in this model; .* more"):
        apply(Tiny("sd").pipe, load(write(clear_tensors(flux.model))))


def test_pooled_weights_are_for_foveated_attention(write, flux):
    weights = load(write(clear_tensors(flux.model, 2))).weights
    with pytest.raises(ValueError, match="FoveatedAttnProcessor takes them"):
        LocalAttnProcessor(weights=weights)
    with pytest.raises(
        ValueError, match=r"must be \(4, 4\) for pool=4, got \(1, 1, 1, 2, 1, 2, 1\)"
    ):
        FoveatedAttnProcessor(weights=weights)
    with pytest.raises(ValueError, match="take levels=1"):
        FoveatedAttnProcessor(pool=2, levels=2, pool_weight=torch.ones(2, 2))
