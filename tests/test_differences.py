"""Trained weights put on a fine-tune as a difference to the base that they were trained from."""

import accelerate
import pytest
import torch
from safetensors.torch import save_file

from foveate.attn_processors import LinearAttnProcessor, LocalAttnProcessor, apply
from foveate.attn_processors.layouts import attention_layers
from probes import part_of
from published_files import clear_tensors, write_linfusion
from tiny_pipelines import Tiny


def tiny_flux():
    return Tiny("flux", num_layers=2, num_single_layers=2)


@pytest.fixture(scope="module")
def flux():
    return tiny_flux()


@pytest.fixture
def clear(flux, tmp_path):
    """A CLEAR file of this model, and its tensors."""
    tensors = clear_tensors(flux.model)
    save_file(tensors, tmp_path / "clear_local_3.safetensors")
    return tmp_path / "clear_local_3.safetensors", tensors


@pytest.fixture(scope="module")
def sd():
    return Tiny("sd")


def load(path, **options):
    return LocalAttnProcessor.from_pretrained(path, window=3, **options)


def fine_tuned(tiny, size=0.05):
    """The model with other weights, as a community fine-tune has them."""
    twin = tiny_flux() if tiny.name == "flux" else Tiny("sd")
    with torch.no_grad():
        for parameter, own in zip(twin.model.parameters(), tiny.model.parameters(), strict=True):
            parameter.copy_(own + size * torch.randn_like(own))
    return twin


@pytest.mark.parametrize("shard", [None, "20KB"], ids=["one-file", "shards"])
@pytest.mark.parametrize("place", ["model", "pipeline"])
def test_a_file_goes_on_a_fine_tune_as_a_difference(flux, clear, tmp_path, shard, place):
    path, tensors = clear
    base = tmp_path / "base"
    options = {} if shard is None else {"max_shard_size": shard}
    flux.model.save_pretrained(base / "transformer" if place == "pipeline" else base, **options)
    tuned = fine_tuned(flux)
    own, official = tuned.model.state_dict(), flux.model.state_dict()
    expected = {k: (own[k].double() + v.double() - official[k]).float() for k, v in tensors.items()}
    twin = tiny_flux()
    twin.model.load_state_dict(own | expected)
    with apply(twin.pipe, LocalAttnProcessor(radius=3)):
        want = twin()
    with apply(tuned.pipe, load(path, base=base)):
        got = tuned()
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    with apply(tuned.pipe, load(path)):  # without the base they replace
        assert (tuned() - want).abs().max() > 1e-3


def test_a_difference_on_the_base_itself_is_the_file(flux, clear, tmp_path):
    path, tensors = clear
    save_file({key: value.bfloat16() for key, value in tensors.items()}, path)
    model = tiny_flux().model.bfloat16()
    model.save_pretrained(tmp_path / "base")
    with apply(model, load(path, base=tmp_path / "base")):
        for name, attention in attention_layers(model).items():
            for part, value in part_of(attention).state_dict().items():
                assert torch.equal(value, tensors[f"{name}.{part}"].bfloat16())


def test_linfusion_as_a_difference(sd, tmp_path):
    tensors = write_linfusion(tmp_path / "file", sd.model, 3)
    sd.model.save_pretrained(tmp_path / "base")
    tuned = fine_tuned(sd)
    processor = LinearAttnProcessor.from_pretrained(tmp_path / "file", base=tmp_path / "base")
    own, official = tuned.model.state_dict(), sd.model.state_dict()
    with apply(tuned.model, processor):
        for i, name in enumerate(processor.weights.names):
            for part, value in part_of(tuned.model.get_submodule(name)).state_dict().items():
                key, want = f"{name}.{part}", tensors[f"{i}.{part}"]
                if "_." not in part:
                    want = own[key] + want - official[key]
                torch.testing.assert_close(value, want)


def test_a_base_that_lacks_a_layer_is_refused(flux, clear, tmp_path):
    Tiny("flux").model.save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match=r"14 missing keys: transformer_blocks.1.attn.to_q.weight"):
        load(clear[0], base=tmp_path / "base")


def test_weights_in_training_are_no_differences(flux, clear, tmp_path):
    flux.model.save_pretrained(tmp_path / "base")
    processor = load(clear[0], base=tmp_path / "base")
    processor.weights.requires_grad_()
    with pytest.raises(ValueError, match="require gradients cannot be applied as differences"):
        apply(flux.pipe, processor)
    with pytest.raises(ValueError, match="base must have the layers of weights"):
        LocalAttnProcessor(base=processor.weights)


def test_no_difference_to_offloaded_weights(flux, clear, tmp_path):
    flux.model.save_pretrained(tmp_path / "base")
    tiny = tiny_flux()
    accelerate.cpu_offload(tiny.model, execution_device="cpu")
    before = dict(tiny.model.attn_processors)
    with pytest.raises(ValueError, match=r"blocks.0.attn.to_q is offloaded, .* apply first"):
        apply(tiny.model, load(clear[0], base=tmp_path / "base"))
    assert all(tiny.model.attn_processors[n] is p for n, p in before.items())
