"""What a student is trained on: recorded conditions, pictures by number, noise, prompts."""

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from foveate.attn_processors.fingerprint import fingerprint
from foveate.pipelines.distill import DistillConfig
from foveate.pipelines.distill.data import Pictures, data_folder, draw_pictures
from foveate.pipelines.distill.noising import Noising
from foveate.pipelines.distill.prompts import read_prompts, scene_prompts
from foveate.pipelines.distill.record import EMPTY, arguments_of, recorded
from foveate.pipelines.shapes.scene import parse_caption
from foveate.pipelines.shapes.training.data import is_held_out
from tiny_pipelines import Tiny

PROMPTS = ["a cat", "a dog", "a cow"]


def options(tmp_path, **changes):
    few = {"pictures": 3, "picture_steps": 1, "picture_batch": 2}
    return DistillConfig(model="m", out=str(tmp_path), student="linear", **few, **changes)


@pytest.mark.parametrize(
    ("name", "guidance"),
    [
        ("sd", {"guidance_scale": 6.0}),
        ("sd", {"guidance_scale": 1.0}),
        ("sdxl", {"guidance_scale": 5.0}),
        ("sd3", {"guidance_scale": 5.0}),
        ("flux", {"true_cfg_scale": 3.0, "negative_prompt": [""] * 2}),
        ("flux", {"true_cfg_scale": 1.0}),
    ],
    ids=str,
)
@torch.no_grad()
def test_recorded_conditions_are_what_the_pipeline_encodes(name, guidance):
    """Calling the denoiser with them gives the pipeline's own first prediction."""
    tiny = Tiny(name)
    height, width = tiny.sizes[0]
    seen = {}

    def keep_first(module, args, kwargs, out):
        seen.setdefault("first", (args, kwargs, out))

    hook = tiny.model.register_forward_hook(keep_first, with_kwargs=True)
    arguments = {**tiny.arguments, **guidance, "prompt": PROMPTS[:2]}
    with recorded(tiny.model) as recorder:
        tiny.pipe(**arguments, height=height, width=width, num_inference_steps=2)
    hook.remove()
    conditions = recorder.conditions(2)
    args, kwargs, (out,) = seen["first"]
    sample = args[0] if args else kwargs["hidden_states"]
    timestep = args[1] if len(args) > 1 else kwargs["timestep"]
    is_guided = any(key.startswith(EMPTY) for key in conditions)
    assert is_guided == (guidance.get("guidance_scale", guidance.get("true_cfg_scale")) > 1)
    own = {key: x for key, x in conditions.items() if not key.startswith(EMPTY)}
    again = tiny.model(
        sample[-2:],
        timestep=timestep[-2:] if timestep.dim() else timestep,
        **arguments_of(own),
        return_dict=False,
    )[0]
    torch.testing.assert_close(again, out[-2:], rtol=1e-4, atol=1e-5)


def test_drawn_pictures_are_the_pipelines_and_drawn_once(tmp_path):
    tiny = Tiny("flux")
    height, width = tiny.sizes[0]
    config = options(tmp_path, caption_dropout=0.0, seed=5)
    call = {"height": height, "width": width, "max_sequence_length": 16}
    folder = data_folder(tiny.model, PROMPTS, config, call)
    files = ["pictures-0000000.safetensors", "pictures-0000002.safetensors"]
    for rank in range(2):  # the second begins when the first has finished
        draw_pictures(tiny.pipe, tiny.model, PROMPTS, config, call, folder, rank=rank, world=2)
        assert sorted(path.name for path in folder.glob("pictures-*")) == files[: rank + 1]
    times = {path: path.stat().st_mtime_ns for path in folder.glob("pictures-*")}
    draw_pictures(tiny.pipe, tiny.model, PROMPTS, config, call, folder)
    assert times == {path: path.stat().st_mtime_ns for path in folder.glob("pictures-*")}
    want = tiny.pipe(
        "a cow",
        **call,
        num_inference_steps=1,
        generator=torch.Generator().manual_seed(5 + 2),
        output_type="latent",
    ).images[0]
    samples = Pictures(folder, config, 0, 40)
    latents = [samples[n]["latents"] for n in range(40)]
    distances = [float((x - want).abs().max()) for x in latents]
    assert min(distances) < 1e-5
    assert len({round(d, 4) for d in distances}) == 3


def test_other_settings_are_other_folders(tmp_path):
    model = Tiny("sd").model
    config = options(tmp_path)
    base = data_folder(model, PROMPTS, config, {"height": 8})
    assert data_folder(model, PROMPTS, config, {"height": 8}) == base
    other = options(tmp_path, seed=1)
    assert data_folder(model, PROMPTS, other, {"height": 8}) != base
    assert data_folder(model, PROMPTS[:2], config, {"height": 8}) != base
    assert data_folder(model, PROMPTS, config, {"height": 16}) != base
    assert data_folder(Tiny("sd", seed=1).model, PROMPTS, config, {"height": 8}) != base


def test_the_fingerprint_knows_weights_not_precision():
    model = Tiny("sd").model
    known = fingerprint(model)
    assert fingerprint(Tiny("sd", seed=1).model) != known
    assert fingerprint(model.to(torch.bfloat16)) == known


def test_samples_go_by_number_and_drop_captions(tmp_path):
    tiny = Tiny("sd")
    height, width = tiny.sizes[0]
    call = {"height": height, "width": width, "guidance_scale": 6.0}
    config = options(tmp_path, caption_dropout=0.5)
    folder = data_folder(tiny.model, PROMPTS, config, call)
    draw_pictures(tiny.pipe, tiny.model, PROMPTS, config, call, folder)
    whole, later = Pictures(folder, config, 0, 30), Pictures(folder, config, 20, 30)
    assert len(later) == 10
    for name, tensor in later[3].items():
        assert torch.equal(tensor, whole[23][name])
    texts = [sample["encoder_hidden_states"] for sample in (whole[n] for n in range(30))]
    empty = tiny.pipe.encode_prompt("", "cpu", 1, False)[0][0]
    dropped = sum(torch.allclose(text, empty, atol=1e-5) for text in texts)
    assert 5 < dropped < 25
    assert 0 <= min(whole[n]["u"] for n in range(30)) < 0.3
    assert len({float(whole[n]["noise"].sum()) for n in range(30)}) == 30


def test_dropped_captions_need_the_empty_prompt(tmp_path):
    tiny = Tiny("sd")
    height, width = tiny.sizes[0]
    call = {"height": height, "width": width, "guidance_scale": 1.0}
    config = options(tmp_path)
    draw_pictures(tiny.pipe, tiny.model, PROMPTS, config, call, tmp_path / "x")
    with pytest.raises(ValueError, match="caption_dropout needs the empty prompt"):
        Pictures(tmp_path / "x", config, 0, 1)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("kind", [DDIMScheduler, EulerDiscreteScheduler])
def test_noise_of_diffusion_schedulers(kind, prediction):
    scheduler = kind(beta_schedule="scaled_linear", prediction_type=prediction)
    scheduler.set_timesteps(7)
    x, noise = torch.randn(2, 3, 4, 5, 6)
    u = torch.tensor([0.0, 0.5, 0.999])
    noisy, timesteps, target = Noising(scheduler)(x, noise, u)
    assert timesteps.tolist() == [999, 499, 0]
    betas = torch.linspace(0.0001**0.5, 0.02**0.5, 1000) ** 2
    a = (1 - betas).cumprod(0)[[999, 499, 0]].view(3, 1, 1, 1)
    wanted = {"epsilon": noise, "sample": x}
    wanted["v_prediction"] = a.sqrt() * noise - (1 - a).sqrt() * x
    torch.testing.assert_close(noisy, a.sqrt() * x + (1 - a).sqrt() * noise)
    torch.testing.assert_close(target, wanted[prediction])


def test_noise_of_flow_matching():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(5)
    scheduler.set_begin_index(0)
    x, noise = torch.randn(2, 3, 7, 4)
    noisy, timesteps, target = Noising(scheduler)(x, noise, torch.tensor([0.0, 0.5, 1.0]))
    sigma = torch.tensor([1.0, 3 * 0.5 / (1 + 2 * 0.5), 3 * 0.001 / (1 + 2 * 0.001)])
    torch.testing.assert_close(timesteps, 1000 * sigma)
    sigma = sigma.view(3, 1, 1)
    torch.testing.assert_close(noisy, (1 - sigma) * x + sigma * noise)
    torch.testing.assert_close(target, noise - x)


def test_prompts(tmp_path):
    prompts = scene_prompts(50, seed=3)
    assert prompts == scene_prompts(50, seed=3) != scene_prompts(50, seed=4)
    assert not any(is_held_out(parse_caption(prompt)) for prompt in prompts)
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\n\n  a dog \n")
    assert read_prompts(path, 3) == ["a cat", "a dog", "a cat"]
    path.write_text("\n")
    with pytest.raises(ValueError, match="holds no prompts"):
        read_prompts(path, 3)
