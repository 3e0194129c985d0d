"""Every family's tiny pipeline under one call, with what its attention layers should be.

`FAMILIES` is written by hand from the stock code, and not from the layout table it tests.
"""

import dataclasses
import functools

import torch

import tiny_images
import tiny_images_more
import tiny_pipelines
import tiny_videos
import tiny_videos_more
from foveate.kernels.layout import Segment, TokenLayout

BUILDERS = {
    **tiny_pipelines.BUILDERS,
    **tiny_images.BUILDERS,
    **tiny_images_more.BUILDERS,
    **tiny_videos.BUILDERS,
    **tiny_videos_more.BUILDERS,
}


@dataclasses.dataclass(frozen=True)
class Expected:
    """What a family's calls look like.

    layouts: of all calls in which an operator can run.
    kinds: number of layers of each kind.
    packed: the denoiser is given tokens and not a latent.
    """

    layouts: frozenset
    kinds: dict
    packed: bool = False


def text_first(*texts, grid, **options):
    return frozenset(TokenLayout(text=n, grid=grid, **options) for n in texts)


def text_last(*texts, grid):
    return text_first(*texts, grid=grid, text_first=False)


def plain(*grids):
    return frozenset(TokenLayout(grid=grid) for grid in grids)


UNET = plain((1, 12, 16), (1, 6, 8))

FAMILIES = {
    "sd": Expected(UNET, {"self": 7, "cross": 7}),
    "sdxl": Expected(UNET, {"self": 11, "cross": 11}),
    "animatediff": Expected(plain((1, 6, 8), (1, 3, 4)), {"self": 4, "cross": 4, "temporal": 14}),
    "flux": Expected(text_first(16, grid=(1, 8, 12)), {"joint": 2}, packed=True),
    "kontext": Expected(
        text_first(7, grid=(1, 4, 6), extra=(Segment(18),)), {"joint": 2}, packed=True
    ),
    "flux2": Expected(text_first(7, grid=(1, 4, 6)), {"joint": 2}, packed=True),
    "chroma": Expected(text_first(5, 3, grid=(1, 4, 6)), {"joint": 2}, packed=True),
    "chroma_bias": Expected(frozenset(), {"joint": 2}, packed=True),
    "sd3": Expected(text_last(93, grid=(1, 16, 24)) | plain((1, 16, 24)), {"joint": 2, "self": 1}),
    "qwen": Expected(text_first(6, 5, grid=(1, 4, 6)), {"joint": 2}, packed=True),
    "z_image": Expected(
        text_last(22, 22 + 64, 22 + 32, grid=(1, 6, 7)), {"self": 1, "text": 1, "joint": 2}
    ),
    "lumina2": Expected(text_first(0, 6, 3, grid=(1, 6, 8)), {"self": 1, "text": 1, "joint": 2}),
    "aura_flow": Expected(text_first(8 + 9, grid=(1, 6, 8)), {"joint": 2}),
    "cogview4": Expected(text_first(16, grid=(1, 6, 8)), {"joint": 2}),
    "pixart": Expected(plain((1, 6, 8)), {"self": 2, "cross": 2}),
    "hunyuan_dit": Expected(plain((1, 6, 8)), {"self": 2, "cross": 2}),
    "sana": Expected(frozenset(), {"self": 1, "cross": 1}),
    "wan": Expected(plain((3, 6, 8)), {"self": 2, "cross": 2}),
    "hunyuan_video": Expected(text_last(5, grid=(3, 4, 6)), {"text": 1, "joint": 2}),
    "hunyuan_video_15": Expected(text_last(9, 3, grid=(3, 4, 6)), {"text": 1, "joint": 2}),
    "ltx": Expected(plain((2, 4, 6)), {"self": 2, "cross": 2}, packed=True),
    "ltx2": Expected(plain((2, 4, 8)), {"self": 2, "audio": 2, "cross": 8}, packed=True),
    "cogvideox": Expected(text_first(9, grid=(3, 6, 8)), {"joint": 2}),
    "mochi": Expected(text_last(5, 3, grid=(3, 6, 8)), {"joint": 2}),
    "kandinsky5": Expected(plain((3, 6, 8)), {"self": 2, "text": 1, "cross": 2}),
    "allegro": Expected(plain((3, 6, 8)), {"self": 2, "cross": 2}),
    "latte": Expected(plain((1, 3, 4)), {"self": 1, "cross": 1, "temporal": 1}),
}


def batched(name, value, batch):
    """An argument of one sample for `batch` samples."""
    if name.endswith("cu_seqlens"):
        return torch.arange(batch + 1, dtype=torch.int32) * int(value[1])
    if isinstance(value, torch.Tensor):
        return value.repeat(batch, *[1] * (value.dim() - 1))
    if name == "prompt" or (isinstance(value, list) and isinstance(value[0], torch.Tensor)):
        return (value if isinstance(value, list) else [value]) * batch
    return value


class TinyFamily:
    """A family's tiny pipeline; a call is seeded and gives latents, [batch, ...]."""

    def __init__(self, name, seed=0):
        torch.set_num_threads(1)
        torch.manual_seed(seed)
        self.name, self.expected = name, FAMILIES[name]
        self.pipe, self.arguments = BUILDERS[name]()
        if name in tiny_pipelines.SIZES:
            height, width = next(iter(tiny_pipelines.SIZES[name]))
            self.arguments = {**self.arguments, "height": height, "width": width}
        self.pipe.set_progress_bar_config(disable=True)
        for part in self.pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval()

    @property
    def model(self):
        return getattr(self.pipe, "transformer", None) or self.pipe.unet

    @torch.no_grad()
    def __call__(self, batch=1, steps=2, **arguments):
        given = {**self.arguments, **arguments}
        generators = [torch.Generator().manual_seed(seed) for seed in range(batch)]
        result = self.pipe(
            **{name: batched(name, value, batch) for name, value in given.items()},
            generator=generators if batch > 1 else generators[0],
            num_inference_steps=steps,
            output_type="latent",
        )
        return result.images if hasattr(result, "images") else result.frames


@functools.cache
def tiny_family(name):
    """The family's pipeline, made once; whoever takes it gives it back as it was."""
    return TinyFamily(name)
