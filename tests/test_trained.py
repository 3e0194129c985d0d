"""Trained parts under `apply`: adapters, devices, compilation, what is refused."""

import gc
import weakref

import accelerate
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch._dynamo.testing import CompileCounter

from foveate.attn_processors import (
    AgentAttnProcessor,
    AgentLayer,
    AgentWeights,
    LinearAttnProcessor,
    LinearLayer,
    LinearWeights,
    LocalAttnProcessor,
    LocalLayer,
    LocalWeights,
    apply,
)
from foveate.attn_processors.layouts import attention_layers
from probes import part_of
from published_files import clear_tensors, write_linfusion
from tiny_pipelines import Tiny


def tiny_flux(**options):
    return Tiny("flux", num_layers=2, num_single_layers=2, **options)


@pytest.fixture(scope="module")
def flux():
    return tiny_flux()


@pytest.fixture(scope="module")
def sd():
    return Tiny("sd")


@pytest.fixture
def clear(flux, tmp_path):
    """A CLEAR file of this model, and its tensors."""
    tensors = clear_tensors(flux.model)
    save_file(tensors, tmp_path / "clear_local_3.safetensors")
    return tmp_path / "clear_local_3.safetensors", tensors


def load(path, **options):
    return LocalAttnProcessor.from_pretrained(path, window=3, **options)


# adapters


def test_lora_stays_on_trained_projections(clear):
    peft = pytest.importorskip("peft")
    path, tensors = clear
    tiny, twin = tiny_flux(), tiny_flux()
    twin.model.load_state_dict(twin.model.state_dict() | tensors)
    config = {
        "r": 2,
        "target_modules": ["to_q", "to_k", "to_v", "to_out.0"],
        "init_lora_weights": False,
    }
    with apply(tiny.pipe, load(path)):
        plain = tiny()
    for model in (tiny.model, twin.model):
        torch.manual_seed(1)
        model.add_adapter(peft.LoraConfig(**config))
    with apply(twin.pipe, LocalAttnProcessor(radius=3)):
        want = twin()
    alone = tiny()
    with apply(tiny.pipe, load(path)):
        assert torch.equal(tiny(), want)
        tiny.model.disable_adapters()
        assert torch.equal(tiny(), plain)
        tiny.model.enable_adapters()
    assert not torch.equal(want, plain)
    assert torch.equal(tiny(), alone)


# devices


def test_frozen_parts_follow_the_model_and_the_file_stays(clear):
    tiny = tiny_flux()
    processor = load(clear[0])
    handle = apply(tiny.model, processor)
    attention = next(iter(attention_layers(tiny.model).values()))
    part = part_of(attention)
    tiny.model.double()
    assert {p.dtype for p in part.parameters()} == {torch.float64}
    tiny.model.to("meta")
    assert all(p.is_meta for p in part.parameters())
    handle.remove()
    assert all(
        p.device.type == "cpu" and p.dtype == torch.float32 for p in processor.weights.parameters()
    )


def test_parts_in_training_are_shared(sd):
    names = [name for name in attention_layers(sd.model) if name.endswith("attn1")]
    weights = AgentWeights({name: AgentLayer.zeros(2, 4) for name in names})
    attention = sd.model.get_submodule(names[0])
    with apply(sd.model, AgentAttnProcessor(weights=weights)):
        assert part_of(attention) is weights.of(names[0])
    weights.requires_grad_(False)
    with apply(sd.model, AgentAttnProcessor(weights=weights)):
        assert part_of(attention) is not weights.of(names[0])


@pytest.mark.parametrize("first", ["apply", "offload"])
def test_sequential_offloading(clear, first):
    tiny = tiny_flux()
    with apply(tiny.pipe, load(clear[0])):
        want = tiny()
    handle = None
    if first == "apply":
        handle = apply(tiny.pipe, load(clear[0]))
    accelerate.cpu_offload(tiny.model, execution_device="cpu")
    handle = handle or apply(tiny.pipe, load(clear[0]))
    assert attention_layers(tiny.model)["transformer_blocks.0.attn"].to_q.weight.is_meta
    assert torch.equal(tiny(), want)
    handle.remove()


def test_model_offloading(clear):
    tiny = tiny_flux()
    with apply(tiny.pipe, load(clear[0])):
        want = tiny()
        _, hook = accelerate.cpu_offload_with_hook(tiny.model, execution_device="cpu")
        assert torch.equal(tiny(), want)
        hook.offload()
        hook.remove()


def test_a_call_elsewhere_takes_the_part_along(sd, tmp_path):
    tiny = Tiny("sd")
    write_linfusion(tmp_path, tiny.model)
    with apply(tiny.model, LinearAttnProcessor.from_pretrained(tmp_path)):
        part = part_of(tiny.model.mid_block.attentions[0].transformer_blocks[0].attn1)
        # as offloading by hooks does: the weights change place, and nothing tells the part
        state = {key: value.to("meta") for key, value in tiny.model.state_dict().items()}
        tiny.model.load_state_dict(state, assign=True)
        sample, context = (
            torch.randn(1, 4, 12, 16, device="meta"),
            torch.randn(1, 7, 8, device="meta"),
        )
        tiny.model(sample, torch.tensor(5, device="meta"), context)
        assert all(p.is_meta for p in part.parameters())


def test_remove_frees_the_parts(flux, clear):
    handle = apply(flux.pipe, load(clear[0]))
    flux()
    parameter = weakref.ref(next(part_of(flux.model.transformer_blocks[0].attn).parameters()))
    assert parameter() is not None
    handle.remove()
    gc.collect()
    assert parameter() is None
    assert all(row.operator == "local" and row.keys.visited for row in handle.report().layers)


# what interacts


def test_fusing_after_apply_keeps_the_trained_projections(clear):
    tiny = tiny_flux()
    with apply(tiny.pipe, load(clear[0])) as handle:
        want = tiny()
        tiny.model.fuse_qkv_projections()
        assert torch.equal(tiny(), want)
    with apply(tiny.pipe, load(clear[0])) as handle:
        tiny()
    assert {row.reason for row in handle.report().layers} == {
        "the projections are fused; unfuse_qkv_projections() first"
    }


def test_one_graph_serves_the_parts_of_repeated_blocks(tmp_path):
    tiny = Tiny("flux", num_single_layers=4)
    save_file(clear_tensors(tiny.model), tmp_path / "clear_local_3.safetensors")
    with apply(tiny.pipe, load(tmp_path)):
        want = tiny(steps=1)
        torch._dynamo.reset()
        counter = CompileCounter()
        tiny.model.compile_repeated_blocks(backend=counter, fullgraph=True)
        assert torch.allclose(tiny(steps=1), want, atol=1e-6)
    assert (
        counter.frame_count == 3
    )  # as stock blocks: the joint one, the first single one, the rest


# refusals


class Packed(nn.Parameter):
    """A weight that only its own library can read."""


def quantise(attention, how):
    weight = attention.to_k.weight
    if how == "class":
        attention.to_k.weight = Packed(weight.detach())
    elif how == "integers":
        attention.to_k.weight = nn.Parameter(weight.detach().to(torch.uint8), requires_grad=False)
    elif how == "float8":
        attention.to_k.to(torch.float8_e4m3fn)
    else:
        attention.to_k = nn.Identity()


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ("class", r"Linear \(Packed, torch.float32\)"),
        ("integers", r"Linear \(Parameter, torch.uint8\)"),
        ("float8", r"Linear \(Parameter, torch.float8_e4m3fn\)"),
        ("other", r"Identity \(no weight\)"),
    ],
    ids=lambda value: value if value.isalnum() else "",
)
def test_a_quantised_base_is_refused_by_name(clear, how, named):
    model = tiny_flux().model
    quantise(model.single_transformer_blocks[1].attn, how)
    before = dict(model.attn_processors)
    message = rf"is quantised: single_transformer_blocks.1.attn.to_k is {named}"
    with pytest.raises(ValueError, match=message):
        apply(model, load(clear[0]))
    assert all(model.attn_processors[n] is p for n, p in before.items())
    apply(model, LocalAttnProcessor(radius=3)).remove()


def test_parts_without_projections_serve_a_quantised_base():
    model = tiny_flux().model
    attention = model.single_transformer_blocks[1].attn
    for part in (attention.to_q, attention.to_k, attention.to_v):
        part.weight = nn.Parameter(part.weight.detach().to(torch.uint8), requires_grad=False)
    weights = LinearWeights({"single_transformer_blocks.1.attn": LinearLayer.hybrid(2, 16)})
    weights.requires_grad_(False)
    with apply(model, LinearAttnProcessor(radius=2, weights=weights)):
        assert part_of(attention).gate.dtype == torch.float32


def test_set_attn_processor_has_no_layers_to_train(flux, clear):
    processors = dict(flux.model.attn_processors)
    flux.model.set_attn_processor(load(clear[0]))
    with pytest.raises(NotImplementedError, match=r"use foveate.apply"):
        flux()
    flux.model.set_attn_processor(processors)


def test_an_output_projection_needs_one_in_the_model(flux):
    out = nn.ModuleList([nn.Linear(32, 32), nn.Identity()])
    weights = LocalWeights({"single_transformer_blocks.0.attn": LocalLayer(to_out=out)})
    with pytest.raises(ValueError, match=r"to_out is None in this model and \(32, 32\)"):
        apply(flux.pipe, LocalAttnProcessor(weights=weights))


def test_layers_that_the_model_has_not_are_refused(sd):
    weights = LinearWeights({"elsewhere": LinearLayer()})
    with pytest.raises(
        ValueError, match=r"LinearWeights\(1 layers\) is of another base model: else"
    ):
        apply(sd.pipe, LinearAttnProcessor(weights=weights))
