"""Foveate Broadcast on doubles of ComfyUI's models, against a plain replay of its rule."""

from collections import Counter, defaultdict

import pytest
import torch

from comfyui_double import (
    SD3,
    SLOT,
    Base,
    Flux,
    Patcher,
    UNet,
    Unknown,
    Wan,
    attention_settings,
)
from foveate.comfyui.broadcast import BroadcastSettings
from foveate.comfyui.patch import find_patch, install
from foveate.comfyui.steps import Steps, read_steps
from oracles import FLOAT64

FAMILIES = {"flux": Flux, "sd3": SD3, "unet": UNet, "wan": Wan, "unknown": Unknown}
each_family = pytest.mark.parametrize("family", FAMILIES)
SIGMAS = (1.0, 0.93, 0.86, 0.75, 0.61, 0.52, 0.4, 0.29, 0.2, 0.1)
ROW = "##=#=#=###"  # every second one inside of 10 % to 80 %


def _settings(**options):
    base = {
        "mode": "reuse",
        "every": 2,
        "start_percent": 0.1,
        "end_percent": 0.8,
        "kinds": "all",
        "store": "native",
    }
    return BroadcastSettings(**base | options)


def _model(family):
    return Patcher(Base(FAMILIES[family]()))


def _latent(family, batch=1):
    shape = (batch, 4, 2, 10, 8) if family in ("wan", "unknown") else (batch, 4, 10, 8)
    return torch.randn(shape).double()


def _context(text=7):
    return torch.randn(1, text, 16).double()


TOGETHER = [([_context(), _context()], ["yes", "no"], [0, 1])]
APART = [([_context()], ["yes"], [0]), ([_context(11)], ["no"], [1])]
TILES = [([_context()], ["yes"], [0]), ([_context()], ["yes"], [0])]


def _replay(row, kinds=("self", "cross")):
    """An override that does what the row says, by counting; written without the package."""
    kept, calls = defaultdict(list), Counter()

    def override(func, q, k, *args, **kwargs):
        options = kwargs["transformer_options"]
        sigma = options["sigma"]
        step = [round(s, 6) for s in SIGMAS].index(round(sigma, 6))
        kind = "cross" if k.shape[-2] != q.shape[-2] or len(k) != len(q) else "self"
        branch = options["forward"]
        number = calls[branch, step]
        calls[branch, step] += 1
        if kind not in kinds or row[step] == "#":
            out = func(q, k, *args, **kwargs)
            kept[branch, number].append((options["timestep"], out))
            return out
        t, (t1, one) = options["timestep"], kept[branch, number][-1]
        if row[step] == "=" or len(kept[branch, number]) == 1:
            return one
        t2, two = kept[branch, number][-2]
        return one + (one - two) * (t - t1) / (t1 - t2)

    return override


class _Told(Base):
    """Tells the replay what it needs to know: the noise level and which forward this is."""

    def __init__(self, diffusion_model, forwards):
        super().__init__(diffusion_model)
        self.forwards, self.seen = forwards, 0

    def apply(self, x, t, c_concat, context, control, options, **conds):
        options["sigma"], options["timestep"] = float(t[0]), float(1000 * t[0])
        options["forward"] = self.seen % self.forwards
        self.seen += 1
        return super().apply(x, t, c_concat, context, control, options, **conds)


@each_family
@pytest.mark.parametrize("prompts", [TOGETHER, APART, TILES], ids=["together", "apart", "tiles"])
@pytest.mark.parametrize("mode", ["reuse", "forecast"])
def test_equals_a_replay(family, prompts, mode):
    model, x = _model(family), _latent(family)
    ours = install(model, _settings(mode=mode)).sample(x, None, SIGMAS, prompts)
    row = ROW.replace("=", "~") if mode == "forecast" else ROW
    told = Patcher(_Told(model.model.diffusion_model, len(prompts)), options={SLOT: _replay(row)})
    expected = told.sample(x, None, SIGMAS, prompts)
    plain = model.sample(x, None, SIGMAS, prompts)
    changed = []
    for out, wanted, dense in zip(ours, expected, plain, strict=True):
        torch.testing.assert_close(out, wanted, **FLOAT64)
        changed.append(not torch.equal(out, dense))
    assert changed == [arm != "#" for arm in ROW for _ in prompts]


@pytest.mark.parametrize("kinds", ["self", "cross"])
def test_kinds(kinds):
    model, x = _model("wan"), _latent("wan")
    ours = install(model, _settings(kinds=kinds)).sample(x, None, SIGMAS, APART)
    override = _replay(ROW, (kinds,))
    told = Patcher(_Told(model.model.diffusion_model, 2), options={SLOT: override})
    expected = told.sample(x, None, SIGMAS, APART)
    torch.testing.assert_close(ours, expected, **FLOAT64)


def test_a_prompt_that_is_new_computes():
    model, x = _model("flux"), _latent("flux")
    patch = find_patch(ours := install(model, _settings()))
    other = [(TOGETHER[0][0], ["later", "no"], [0, 1])]
    outs = []

    def sampling():
        for sigma in SIGMAS[:4]:
            prompts = other if sigma == SIGMAS[2] else TOGETHER
            outs.append(_evaluate(ours, patch, x, sigma, prompts)[0])

    patch.outer_sample(sampling)
    assert torch.equal(outs[2], model.sample(x, None, SIGMAS[2:3], other)[0])
    assert patch.broadcast.arms["="] == 0


def test_batches_that_change_never_mix():
    """Where memory runs short ComfyUI splits a forward in two; nothing fits, so all compute."""
    model, x = _model("flux"), _latent("flux")
    ours = install(model, _settings())
    (contexts, names, which), patch = TOGETHER[0], find_patch(ours)
    apart = [([c], [name], [i]) for c, name, i in zip(contexts, names, which, strict=True)]
    outs = {}

    def sampling():
        for sigma in SIGMAS:
            prompts = apart if sigma == SIGMAS[2] else TOGETHER
            outs[sigma] = _evaluate(ours, patch, x, sigma, prompts)

    patch.outer_sample(sampling)
    plain = model.sample(x, None, SIGMAS[2:3], apart)
    torch.testing.assert_close(outs[SIGMAS[2]], plain, **FLOAT64)
    assert patch.broadcast.arms["="] == 4


def _evaluate(ours, patch, x, sigma, prompts):
    """One evaluation of a sampling that is under way."""
    bare = Patcher(ours.model, options=ours.options)
    bare.add_wrapper_with_key("apply_model", "foveate", patch.apply_model)
    schedule = torch.tensor([*SIGMAS, 0.0])
    patch.predict_noise(lambda: None)
    outs = []
    for contexts, names, which in prompts:
        moved = torch.cat([x + 0.3 * sigma**2 * x.roll(1, -1)] * len(names))
        options = {"uuids": names, "cond_or_uncond": which, "sample_sigmas": schedule}
        t = torch.full((len(moved),), sigma)
        executor = _Direct(ours.model)
        outs.append(patch.apply_model(executor, moved, t, None, torch.cat(contexts), None, options))
    return outs


class _Direct:
    """The end of a chain of wrappers."""

    def __init__(self, base):
        self.class_obj = base

    def __call__(self, *args, **kwargs):
        return self.class_obj.apply(*args, **kwargs)


def test_noise_added_again_forgets():
    model, x = _model("flux"), _latent("flux")
    patch = find_patch(ours := install(model, _settings()))
    outs = []
    patch.outer_sample(
        lambda: outs.extend(
            _evaluate(ours, patch, x, sigma, TOGETHER)[0] for sigma in (0.93, 0.86, 0.4, 0.86)
        )
    )
    plain = model.sample(x, None, (0.86,), TOGETHER)[0]
    assert not torch.equal(outs[1], plain)
    assert torch.equal(outs[3], plain)


def test_skipped_layers_are_another_branch():
    model, x = _model("flux"), _latent("flux")
    patch = find_patch(ours := install(model, _settings()))
    executor, schedule = _Direct(ours.model), torch.tensor([*SIGMAS, 0.0])

    def forward(sigma, replaced):
        options = {"uuids": ["yes"], "cond_or_uncond": [0], "sample_sigmas": schedule}
        options["patches_replace"] = replaced
        t = torch.full((1,), sigma)
        return patch.apply_model(executor, x, t, None, _context(), None, options)

    def sampling():
        for sigma in SIGMAS[:3]:
            patch.predict_noise(lambda: None)
            forward(sigma, {} if sigma == SIGMAS[2] else {"dit": {("double_block", 7): None}})

    patch.outer_sample(sampling)
    assert patch.broadcast.arms["="] == 0


def test_nothing_is_left_behind():
    model, x = _model("unet"), _latent("unet")
    before = model.sample(x, None, SIGMAS, APART)
    ours = install(model, _settings())
    first, second = (ours.sample(x, None, SIGMAS, APART) for _ in range(2))
    assert find_patch(ours).broadcast.cache.held == 0
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    after = model.sample(x, None, SIGMAS, APART)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_an_error_frees_what_was_kept(monkeypatch):
    model, x = _model("flux"), _latent("flux")
    ours, held = install(model, _settings()), []
    cache, call = find_patch(ours).broadcast.cache, Flux.call

    def fail(self, *args, **kwargs):
        held.append(cache.held)
        if len(held) == 6:
            raise RuntimeError("interrupted")
        return call(self, *args, **kwargs)

    monkeypatch.setattr(Flux, "call", fail)
    with pytest.raises(RuntimeError, match="interrupted"):
        ours.sample(x, None, SIGMAS, TOGETHER)
    assert held[-1] > 0
    assert cache.held == 0


@each_family
def test_combines_with_an_operator_in_either_order(family):
    model, x = _model(family), _latent(family)
    one = install(install(model, _settings()), attention_settings())
    two = install(install(model, attention_settings()), _settings())
    ours = [each.sample(x, None, SIGMAS, APART) for each in (one, two)]
    told = _Told(model.model.diffusion_model, 2)
    local = install(Patcher(told, options={SLOT: _replay("#" * 10)}), attention_settings())
    dense = local.sample(x, None, SIGMAS, APART)
    for a, b, c, arm in zip(*ours, dense, [arm for arm in ROW for _ in APART], strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c) == (arm == "#")


def test_short_runs_compute_and_say_so():
    model, x = _model("flux"), _latent("flux")
    ours = install(model, _settings())
    few = SIGMAS[:7]
    outs = ours.sample(x, None, few, TOGETHER)
    assert all(map(torch.equal, outs, model.sample(x, None, few, TOGETHER)))
    assert "useless in 7 steps" in find_patch(ours).report()


@pytest.mark.parametrize(
    "sampler", ["euler_ancestral", "dpmpp_2m_sde_gpu", "lcm", "seeds_2", "sa_solver"]
)
def test_noisy_samplers_reuse(sampler):
    model, x = _model("flux"), _latent("flux")
    ours = install(model, _settings(mode="forecast", every=4))
    ours.sample(x, None, SIGMAS, TOGETHER, sampler=sampler)
    report = find_patch(ours).report()
    assert "0 forecast; steps ##=#=#=###" in report
    assert "adds noise in every step" in report


def test_the_report():
    model, x = _model("wan"), _latent("wan")
    ours = install(model, _settings(mode="forecast"))
    ours.sample(x, None, SIGMAS, APART)
    assert find_patch(ours).report().splitlines() == [
        "broadcast, forecast, 1 of 2 computed, 10% to 80% of the steps, all layers",
        "56 calls computed, 0 reused, 24 forecast; steps ##~#~#~###; 0.1 MB held at most",
        "Wan: 20 forwards",
    ]


@pytest.mark.parametrize(("store", "allowed"), [("bf16", 0.01), ("int8", 0.02), ("fp8", 0.08)])
def test_stores_round(store, allowed):
    model, x = _model("flux"), _latent("flux")
    exact, rounded = (
        torch.stack(install(model, _settings(store=s)).sample(x, None, SIGMAS, TOGETHER))
        for s in ("native", store)
    )
    error = (exact - rounded).norm() / exact.norm()
    assert 0 < error < allowed


def test_two_of_these_nodes_are_refused():
    model = install(_model("flux"), _settings())
    with pytest.raises(ValueError, match="already has a Foveate Broadcast node .* bypass one"):
        install(model, _settings(every=3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "guess"}, "mode must be one of forecast, reuse"),
        ({"kinds": "some"}, "kinds must be one of all, self, cross"),
        ({"every": 0}, "every must be an integer >= 1"),
        ({"start_percent": 0.9}, "0 <= start < end <= 1"),
        ({"store": "zip"}, "store must be native"),
    ],
)
def test_other_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        _settings(**options)


@pytest.mark.parametrize(
    ("sigma", "index"), [(9.0, 0), (5.0, 0), (4.2, 0), (4.0, 1), (3.9999999, 1), (1.0, 2), (0.1, 2)]
)
def test_steps_of_noise_levels(sigma, index):
    assert read_steps([5.0, 4.0, 2.0, 0.0], sigma) == Steps(index, 3)


def test_no_steps():
    assert read_steps([1.0], 1.0) is None
