"""Text padding that a model masks is left out of the operator, exactly."""

import pytest
import torch
from torch import nn

from foveate import Family, TokenLayout
from foveate.attn_processors.layouts import FAMILIES
from foveate.attn_processors.padding import attend_valid, padded_layout
from foveate.kernels import local_attention
from oracles import dense


@pytest.mark.parametrize("padding_last", [False, True])
@pytest.mark.parametrize("text_first", [False, True])
@pytest.mark.parametrize("valid", [(5, 5), (5, 0), (7, 7), (3, 7)])
def test_padding_against_a_masked_softmax(padding_last, text_first, valid):
    full = TokenLayout(text=7, grid=(1, 3, 5), text_first=text_first)
    family = Family(layouts=None, kind=None, padding_last=padding_last)
    padded = padded_layout(family, full, valid)
    q, k, v = torch.randn(3, 2, 2, full.num_tokens, 8, dtype=torch.float64)
    got = attend_valid(local, padded, q, k, v, scale=0.4)
    for sample, (layout, start) in enumerate(zip(padded.layouts, padded.starts, strict=True)):
        end = start + full.num_tokens - layout.num_tokens
        keep = torch.tensor([n for n in range(full.num_tokens) if not start <= n < end])
        want = local(*(x[sample, None][:, :, keep] for x in (q, k, v)), layout=layout, scale=0.4)
        assert torch.allclose(got[sample, :, keep], want[0])
        rest = torch.arange(start, end)
        keys, values = (x[sample, None][:, :, keep] for x in (k, v))
        want = dense(q[sample, None][:, :, rest], keys, values, scale=0.4)
        assert torch.allclose(got[sample, :, rest], want[0])


def local(q, k, v, *, layout, scale):
    return local_attention(q, k, v, layout=layout, radius=2, scale=scale)


def test_padding_starts_after_the_text_or_at_the_end():
    for text_first, padding_last, starts in (
        (True, False, (5, 0)),
        (False, False, (20, 15)),
        (True, True, (20, 15)),
    ):
        full = TokenLayout(text=7, grid=(1, 3, 5), text_first=text_first)
        family = Family(layouts=None, kind=None, padding_last=padding_last)
        assert padded_layout(family, full, (5, 0)).starts == starts


def test_text_that_is_no_prefix_is_not_taken_for_padding():
    mask = torch.tensor([[1, 0, 1, 1]])
    arguments = {"encoder_hidden_states_mask": mask}
    assert FAMILIES["QwenImageTransformer2DModel"].valid_text(nn.Module(), arguments) is None
