"""MotionBoost equals the published steps, with every attention weight and frequency written out."""

import copy

import pytest
import torch

import foveate
from foveate.attn_processors.modulation.lowering import lower
from foveate.attn_processors.modulation.motion_boost import high_band, mean_energy, resized
from oracles import FLOAT32, FLOAT64
from tiny_images import embeds
from tiny_pipelines import clip_tokenizer
from tiny_videos import motion_pipe

FRAMES, GRIDS = 8, ((3, 4), (6, 8))
PATHS = ("up_blocks.0", "up_blocks.1")


def published(own, early, alpha, beta, tau):
    """Weights [b, pixels, H, F, F] after self-guidance and enhancement; loops and DFTs."""
    frames = own.shape[-1]
    high = [abs(k - frames / 2) <= tau for k in range(frames)]
    results = []
    for a, u in zip(own, early, strict=True):
        e1 = a.square().sum(-1).mean()
        a = (1 - alpha) * a + alpha * u
        spectrum = torch.fft.fft(a)
        power = spectrum.abs().square() / frames  # Parseval
        e2_high = power[..., high].sum(-1).mean()
        e2_low = power[..., [not one for one in high]].sum(-1).mean()
        factor = max(beta, float((max(e1 - e2_low, 0) / e2_high).sqrt()))
        spectrum[..., high] *= factor
        a = torch.fft.ifft(spectrum).real
        results.append(a / a.sum(-1, keepdim=True))
    return torch.stack(results)


class Published:
    """An attention processor that does it, for a batch of `rows` videos."""

    def __init__(self, name, kept, options, rows):
        self.block, self.place = name[:11], name[11:]
        self.kept, self.options, self.rows = kept, options, rows

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
        q, k, v = (
            f(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for f in (attn.to_q, attn.to_k, attn.to_v)
        )
        own = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1).unflatten(0, (self.rows, -1))
        if self.block == PATHS[0]:
            self.kept[self.place] = early = own
        else:
            early = self.enlarged(self.kept[self.place])
        weights = published(own, early, *self.options).flatten(0, 1)
        return attn.to_out[0]((weights @ v).transpose(1, 2).flatten(2))

    def enlarged(self, early):
        maps = early.flatten(2).mT.unflatten(-1, GRIDS[0])
        maps = torch.nn.functional.interpolate(maps, size=GRIDS[1], mode="bilinear")
        return maps.flatten(2).mT.unflatten(-1, early.shape[2:])


@pytest.fixture(scope="module")
def pipe():
    """Two decoder blocks with attention to text; random motion modules, in float64."""
    torch.manual_seed(0)
    pipe = motion_pipe("CrossAttn", ["proj_out", "to_q", "to_k"], 0.5, tokenizer=clip_tokenizer())
    pipe.unet.double()
    pipe.set_progress_bar_config(disable=True)
    return pipe


PROMPT = {"prompt_embeds": embeds(7, 8).double(), "negative_prompt_embeds": embeds(7, 8).double()}


def film(pipe, steps=3, **call):
    height, width = (8 * n for n in GRIDS[1])
    return pipe(
        **{**PROMPT, **call},
        num_frames=FRAMES,
        height=height,
        width=width,
        num_inference_steps=steps,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).frames


def weights(*shape):
    return (3 * torch.randn(*shape, dtype=torch.float64)).softmax(-1)


@pytest.mark.parametrize("frames", [7, 8, 16])
@pytest.mark.parametrize("tau", [0, 2, 3])
def test_the_high_band_is_that_of_the_fourier_transform(frames, tau):
    high, rows = high_band(frames, tau), torch.randn(5, frames, dtype=torch.float64)
    spectrum = torch.fft.fft(rows)
    spectrum[:, [abs(k - frames / 2) > tau for k in range(frames)]] = 0
    torch.testing.assert_close(rows @ high, torch.fft.ifft(spectrum).real, **FLOAT64)
    torch.testing.assert_close(high.sum(0), torch.zeros(frames).double(), **FLOAT64)


def test_all_but_the_mean_is_high_in_sixteen_frames():
    want = torch.eye(16, dtype=torch.float64) - 1 / 16
    torch.testing.assert_close(high_band(16, 7), want, **FLOAT64)


def test_energies_are_those_of_each_video():
    a = weights(2 * 12, 3, 8, 8)
    want = torch.stack([(a[:12] ** 2).sum(-1).mean(), (a[12:] ** 2).sum(-1).mean()])
    torch.testing.assert_close(mean_energy(a, 12), want, **FLOAT64)


def test_resized_weights_still_sum_to_one():
    got = resized(weights(2 * 12, 3, 8, 8), *GRIDS)
    assert got.shape == (2 * 48, 3, 8, 8)
    torch.testing.assert_close(got.sum(-1), torch.ones(96, 3, 8).double(), **FLOAT64)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("beta", [1.0, 1.5])
def test_a_pipeline_with_it_equals_the_published_steps(pipe, alpha, beta):
    options = (alpha, beta, 2)
    stock = film(pipe)
    boost = foveate.MotionBoost(*options).where(steps=(0, 1))
    with foveate.modulate(pipe, [boost]):
        got = film(pipe)
    before, kept = pipe.unet.attn_processors, {}
    named = {
        name: Published(name, kept, options, rows=2)
        if name.startswith(PATHS) and "motion_modules" in name
        else one
        for name, one in before.items()
    }
    pipe.unet.set_attn_processor(named)
    want = film(pipe)
    pipe.unet.set_attn_processor(before)
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-9)
    assert torch.allclose(want, stock, rtol=0, atol=1e-3) == (options[:2] == (0, 1))


def test_without_effect_it_is_bit_equal_and_it_leaves_nothing(pipe):
    stock, before = film(pipe), dict(pipe.unet.attn_processors)
    for none in (foveate.MotionBoost(0, 1), foveate.MotionBoost(tau=3).where(steps=(0.5, 0.5))):
        with foveate.modulate(pipe, [none]):
            assert torch.equal(film(pipe), stock)
    with foveate.modulate(pipe, [foveate.MotionBoost(tau=3)]):
        assert not torch.allclose(film(pipe), stock, atol=1e-3)
    assert all(before[name] is one for name, one in pipe.unet.attn_processors.items())
    assert torch.equal(film(pipe), stock)


def test_it_acts_early_and_in_all_rows_unless_told_otherwise(pipe):
    def edited(boost, steps):
        with foveate.modulate(pipe, [boost]) as run:
            frames = film(pipe, steps)
            rows = [row for row in run.explain().layers if row.did]
        return frames, {sum(row.did.values()) for row in rows}, len(rows)

    boost = foveate.MotionBoost(tau=3)
    both, count, layers = edited(boost, 10)
    assert count == {2}
    assert layers == 2 * 2 * 2  # blocks, modules, attentions
    cond, *_ = edited(boost.where(branch="cond"), 10)
    assert not torch.allclose(both, cond, atol=1e-4)


def test_one_video_comes_out_as_in_a_batch(pipe):
    with foveate.modulate(pipe, [foveate.MotionBoost(tau=3)]):
        two = {name: torch.cat([rows, rows.flip(-1)]) for name, rows in PROMPT.items()}
        noise = torch.randn(2, 4, FRAMES, *GRIDS[1], dtype=torch.float64)
        together = film(pipe, **two, latents=noise)
        for i in range(2):
            alone = {name: rows[i : i + 1] for name, rows in two.items()}
            one = film(pipe, **alone, latents=noise[i : i + 1])
            torch.testing.assert_close(one, together[i : i + 1], rtol=1e-8, atol=1e-9)


def test_under_autocast_it_rounds_as_the_stock_pipeline_does(pipe):
    low, prompt = copy.deepcopy(pipe), {name: rows.float() for name, rows in PROMPT.items()}
    low.unet.float()

    def rounding():
        with torch.autocast("cpu", torch.bfloat16):
            rounded = film(low, steps=1, **prompt)
        return (rounded - film(low, steps=1, **prompt)).norm()

    stock = rounding()
    with foveate.modulate(low, [foveate.MotionBoost(0.3, 1.5, tau=2)]):
        assert 0 < rounding() < 2 * stock


def test_a_blend_in_float32_is_near():
    boost, q, k, v = foveate.MotionBoost(tau=3), *torch.randn(3, 48, 2, FRAMES, 4).double()
    early = weights(48, 2, FRAMES, FRAMES)

    class Site:
        layer, grid, scale, dtype, device = "up_blocks.1.x", GRIDS[1], 0.5, torch.float64, "cpu"
        kept = {boost: "up_blocks.0", (boost, ".x"): (early, GRIDS[1])}

    plan = boost.plan(Site, q, k, v)
    own = (q @ k.mT * 0.5).softmax(-1)
    want = published(own[None], early[None], 0.6, 1.5, 3)[0] @ v
    got, lowered = lower(q, k, v, plan=plan)
    torch.testing.assert_close(got, want, **FLOAT64)
    assert lowered.extra_bytes == early.numel() * 8
    got, _ = lower(q.float(), k.float(), v.float(), plan=plan)
    torch.testing.assert_close(got, want.float(), **FLOAT32)


def test_bad_options_are_refused(pipe):
    for options, message in (
        ({"alpha": 1.5}, "alpha must be in 0..1, got 1.5"),
        ({"beta": 0.5}, "beta must be a number >= 1, got 0.5"),
        ({"tau": -1}, "tau must be an integer >= 0, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            foveate.MotionBoost(**options)
    few = pytest.raises(ValueError, match="more than 14 frames, got 8; give it tau=3 or less")
    with foveate.modulate(pipe, [foveate.MotionBoost()]), few:
        film(pipe)
    with pytest.raises(ValueError, match="MotionBoost and MotionBoost conflict"):
        foveate.modulate(pipe, [foveate.MotionBoost(), foveate.MotionBoost(0.1)])
    still = foveate.load_shapes("sd")
    with pytest.raises(ValueError, match="MotionBoost matches no layer"):
        foveate.modulate(still, [foveate.MotionBoost()])


def test_it_acts_in_decoder_blocks_that_read_text():
    kinds = {f"up_blocks.{i}.motion_modules.0.attn1": "temporal" for i in range(3)}
    kinds |= {f"up_blocks.{i}.attentions.0.attn2": "cross" for i in (1, 2)}
    kinds |= {"down_blocks.0.attn2": "cross", "mid_block.motion_modules.0.attn1": "temporal"}
    assert foveate.MotionBoost().targets(kinds) == list(kinds)[1:3]


def test_a_module_that_the_early_block_lacks_is_named(pipe):
    layers = ["up_blocks.0.motion_modules.0.*", "up_blocks.1.*"]
    boost = foveate.MotionBoost(tau=3).where(layers=layers)
    missing = pytest.raises(ValueError, match=r"up_blocks.0 has no motion_modules.1.*attn1")
    with foveate.modulate(pipe, [boost]), missing:
        film(pipe)
