"""Random combinations of sizes, options, processors and neighbours on the tiny pipelines.

A seed is a combination. It must end in a right picture or in a clear error, and everything must
come off again; anything else raises.
"""

import dataclasses
import random
import re
from contextlib import ExitStack

import foveate
import foveate.attn_processors as processors
from conformance import BROADCAST_STEPS, assert_restored, is_close, snapshot
from neighbours import NEIGHBOURS
from tiny_families import FAMILIES, TinyFamily

RIGHT, DENSE, STOCK = "right picture", "equal to dense", "stock diffusers fails"
# what may go wrong in a stock pipeline that two neighbours, or a size, do not suit
STOCK_ERRORS = (
    ValueError,
    TypeError,
    RuntimeError,
    AttributeError,
    IndexError,
    KeyError,
    AssertionError,
)
# pictures under these may differ by more than rounding where rounding differs
ROUGH = {
    "bfloat16",
    "float16",
    "pyramid attention broadcast",
    "first block cache",
    "FasterCache",
    "TaylorSeer",
    "MagCache",
}
OPTIONS = {
    "Softmax": {},
    "Local": {"radius": (1, 2, 5, 64, 64)},
    "Foveated": {"radius": (1, 2, 64, 64), "pool": (2, 3, 4), "levels": (1, 2)},
    "Linear": {"feature_map": ("elu", "relu", "softmax"), "radius": (None, 1, 2)},
    "Agent": {"agents": (1, 4, 9, 4096, 4096), "shortcut": (0.0, 0.0, 0.1)},
    "Neighborhood": {
        "kernel_size": ((1, 3, 3), (3, 5, 3), (64, 64, 64), (64, 64, 64)),
        "dilation": ((1, 1, 1), (1, 1, 1), (1, 2, 2)),
        "is_causal": ((False, False, False), (False, False, False), (True, False, False)),
    },
    "Window": {
        "window_size": ((1, 2, 3), (2, 5, 4), (64, 64, 64), (64, 64, 64)),
        "shift": (0.0, 0.0, 0.5),
        "seed": (None, None, 3),
    },
}
WRONG_OPTIONS = {
    "Local": {"radius": -1},
    "Foveated": {"pool": 0},
    "Linear": {"feature_map": "none such"},
    "Agent": {"agents": 0},
    "Neighborhood": {"kernel_size": (0, 1, 1)},
    "Window": {"window_size": (0, 1, 1)},
}
WRONG_APPLIED = ({"layers": "no such layer"}, {"steps": (0.7, 0.2)}, {"min_tokens": -1})
# pixels of a token, where the expected layouts do not tell, or less than the pipeline takes
UNITS = {"sd": 8, "sdxl": 8, "chroma_bias": 16, "sana": 32}
# where `modulate` knows the text
MODULATED = ("sd", "sdxl", "flux", "kontext", "sd3")
# these options see every key
WIDE = {
    "Softmax": {},
    "Local": {"radius": 64},
    "Foveated": {"radius": 64},
    "Agent": {"agents": 4096, "shortcut": 0.0},
    "Neighborhood": {
        "kernel_size": (64, 64, 64),
        "dilation": (1, 1, 1),
        "is_causal": (False, False, False),
    },
    "Window": {"window_size": (64, 64, 64), "shift": 0.0, "seed": None},
}


@dataclasses.dataclass(frozen=True)
class Combination:
    """What one seed asks for.

    arguments: of the call. operator, options: of the processor. applied: options of `apply`.
    every: of a broadcast around the operator, None without. factor: of `SelfTemperature`, or None.
    before, after: neighbours, on this or that side of `apply`.
    """

    family: str
    arguments: dict
    batch: int
    operator: str
    options: dict
    applied: dict
    every: int | None
    factor: float | None
    before: tuple[str, ...]
    after: tuple[str, ...]

    @property
    def steps(self):
        return 2 if self.every is None else BROADCAST_STEPS

    @property
    def is_dense(self):
        """Whether nothing but rounding may set the picture apart from the stock one."""
        wide = WIDE.get(self.operator)
        sees_all = wide is not None and all(self.options[k] == v for k, v in wide.items())
        is_exact = not ROUGH.intersection(self.before + self.after)
        return sees_all and is_exact and self.every in (None, 1) and self.factor in (None, 1.0)


def combination(seed):
    r = random.Random(seed)
    family = r.choice(list(FAMILIES))
    operator = r.choice(list(OPTIONS))
    fitting = [name for name, n in NEIGHBOURS.items() if family in n.families]
    fitting = [name for name in fitting if not name.startswith("compiled")]
    chosen = r.sample(fitting, min(len(fitting), r.choice((0, 0, 1, 1, 2))))
    # last: an adapter added to weights that are meta is of memory that nobody fills
    chosen.sort(key="sequential offload".__eq__)
    split = r.randint(0, len(chosen))
    options = {name: r.choice(values) for name, values in OPTIONS[operator].items()}
    applied = {
        "layers": r.choice((None, None, None, "*.0.*")),
        "min_tokens": r.choice((0, 0, 0, 40)),
        "steps": r.choice((None, None, (0.0, 0.5), (0.5, 1.0))),
        "strict": r.choice((False, False, False, True)),
    }
    if r.random() < 0.1:
        options |= WRONG_OPTIONS.get(operator, {})
    elif r.random() < 0.1:
        applied |= r.choice(WRONG_APPLIED)
    factors = (None, None, 1.0, 2.0) if family in MODULATED else (*[None] * 15, 2.0)
    return Combination(
        family=family,
        arguments=_size(r, family),
        batch=r.choice((1, 1, 2)),
        operator=operator,
        options=options,
        applied=applied,
        every=r.choice((None, None, None, 1, 2, 3)),
        factor=r.choice(factors),
        before=tuple(chosen[:split]),
        after=tuple(chosen[split:]),
    )


def _size(r, family):
    """Height and width of any number of tokens that the pipeline takes, also of one row."""
    rows = max((layout.grid[1] for layout in FAMILIES[family].layouts), default=1)
    unit = UNITS.get(family) or TinyFamily(family).arguments["height"] // rows
    return {"height": unit * r.randint(1, 9), "width": unit * r.randint(1, 9)}


def run(case):
    """How the combination ends; raises where it ends badly."""
    try:
        stock = _call(_with_neighbours(case, case.before + case.after), case)
    except STOCK_ERRORS:
        return STOCK
    if not stock.isfinite().all():
        return STOCK
    tiny = _with_neighbours(case, case.before)
    before, said = snapshot(tiny.model), None
    with ExitStack() as stack:
        try:
            _put(tiny, case, stack)
            for name in case.after:
                NEIGHBOURS[name].do(tiny)
            got = _call(tiny, case)
        except (ValueError, NotImplementedError) as error:
            said = _refusal(error)
        state = foveate.status(tiny.pipe)
        assert not state.lost or "foveate.apply" in str(state), "status says what to call"
    if not case.after:
        assert_restored(before, tiny.model)
    if said is not None:
        return said
    # a copy keeps its operator, which no handle knows
    if not any(NEIGHBOURS[name].is_copy for name in case.after):
        assert is_close(_call(tiny, case).float(), stock.float()), "the picture after remove"
    assert got.shape == stock.shape, "shape"
    assert got.isfinite().all(), "finite"
    if not case.is_dense:
        return RIGHT
    assert is_close(got, stock), "equal to dense"
    return DENSE


def _with_neighbours(case, names):
    tiny = TinyFamily(case.family)
    tiny.arguments = {**tiny.arguments, **case.arguments}
    for name in names:
        NEIGHBOURS[name].do(tiny)
    return tiny


def _call(tiny, case):
    return tiny(batch=case.batch, steps=case.steps)


def _put(tiny, case, stack):
    processor = getattr(processors, f"{case.operator}AttnProcessor")(**case.options)
    if case.every is not None:
        processor = foveate.BroadcastAttnProcessor(processor, every=case.every)
    stack.callback(foveate.apply(tiny.pipe, processor, **case.applied).remove)
    if case.factor is not None:
        run = foveate.modulate(tiny.pipe, [foveate.SelfTemperature(case.factor)])
        stack.callback(run.remove)


def _refusal(error):
    """The error without the names and numbers of this case, which it must have."""
    text = str(error)
    assert len(text) > 20, f"an error that says nothing: {text!r}"
    general = re.sub(r"\S*[a-z]\.\d+\.\S+", "LAYER", text)
    general = re.sub(r"\w*(Transformer|UNet)\w+", "MODEL", general)
    general = re.sub(r"-?\d+(\.\d+)?", "n", general)
    return f"{type(error).__name__}: {re.split('[;.] ', general)[0]}"
