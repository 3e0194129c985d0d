"""Sequence parallelism: two and four gloo processes give what one gives, for the bytes foretold."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from foveate.kernels import TokenLayout
from foveate.kernels.sequence import (
    Exchange,
    Shard,
    foveated_bytes,
    gathered_bytes,
    local_bytes,
    sequence_local_attention,
    ulysses_bytes,
)
from foveate.pipelines.bench.sequence import NAME, exchange_table
from foveate.pipelines.page import markers, split_page
from oracles import make_qkv

SCRIPT = Path(__file__).with_name("sequence_ranks.py")
RANKS = (2, 4)
COST = {"heads": 3, "dim": 8, "dtype": torch.float32}
TOKEN = 3 * 8 * 4  # bytes of one token of K or V in all heads of COST


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """{ranks: [what each rank measured]}; both groups run in one process tree, once."""
    folder = tmp_path_factory.mktemp("ranks")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    return {
        ranks: [json.loads((folder / f"{ranks}-{rank}.json").read_text()) for rank in range(ranks)]
        for ranks in RANKS
    }


@pytest.mark.parametrize("ranks", RANKS)
def test_operators_equal_one_process(measured, ranks):
    for rank in measured[ranks]:
        for row in rank["operators"]:
            # float64 against the dense masked softmax, float32 against the operator
            assert row["torch.float64"] < 1e-12, row
            assert row["gradient"] < 1e-12, row
            assert row["torch.float32"] < 1e-6, row


@pytest.mark.parametrize("ranks", RANKS)
def test_bytes_are_those_foretold(measured, ranks):
    for rank in measured[ranks]:
        for row in rank["operators"]:
            assert row["received"] == row["predicted"] > 0, row
        for row in rank["pipelines"]:
            assert row["received"] == row["predicted"] > 0, row


@pytest.mark.parametrize("ranks", RANKS)
def test_split_pipelines_draw_the_same_picture(measured, ranks):
    for rank in measured[ranks]:
        for row in rank["pipelines"]:
            assert row["error"] < 1e-6 < 1e-3 < row["change"], row
            assert row["forwards"] == [2, 2], row
            assert "in place in 2 of 2 layers" in row["status"]


def test_memory_grows_with_the_tokens(measured):
    assert all(rank["memory"] < 64 for rank in measured[2])


def test_ranks_may_hold_parts_of_frames(measured):
    for rank in measured[2]:
        assert rank["video"]["error"] < 1e-5 < 1e-3 < rank["video"]["change"]
        assert rank["video"]["ran"] == ["local", "local"]


def test_cached_steps_exchange_nothing(measured):
    for rank in measured[2]:
        row = rank["broadcast"]
        assert row["error"] < 1e-6
        assert row["arms"] == measured[2][0]["broadcast"]["arms"]
        steps = [b - a for a, b in zip([0, *row["received"]], row["received"], strict=False)]
        computed = [arm == "#" for arm in row["arms"][0]]
        assert not all(computed)
        assert [step > 0 for step in steps] == computed
        assert len({step for step in steps if step}) == 1


def test_what_cannot_run_split_is_refused_by_name(measured):
    for rank in measured[2]:
        said = rank["refusals"]
        reason = "linear does not run under context parallelism"
        assert said["error to dense"] < 1e-6
        assert reason in said["report"]
        assert reason in said["status"]
        assert said["apply"].startswith("NotImplementedError: LinearAttnProcessor")
        assert reason in said["apply"]
        assert said["modulate"].startswith("NotImplementedError: modulate does not run")
        assert said["impl"].startswith("NotImplementedError: impl='reference' does not run")
        assert "does not fit 56 tokens" in said["set_attn_processor"]
        assert "set_attn_processor does not run" in said["status by hand"]
        assert said["no part in it"].startswith("NotImplementedError: transformer_blocks.0.attn")


def test_halo_is_counted_in_rows():
    layout = TokenLayout(grid=(1, 20, 6))
    rows = (8, 3, 9)
    received = [
        local_bytes(Shard.of_rows(layout, rows, rank), radius=5, **COST) for rank in range(3)
    ]
    # four rows above and below, which may lie on any rank
    assert received == [2 * TOKEN * 6 * n for n in (4, 4 + 4, 4)]


def test_cells_are_counted_once():
    layout = TokenLayout(grid=(1, 32, 8))
    shard = Shard.of_rows(layout, (16, 16), 1)
    # cells of 4 closer than 2 to the query's own are its neighbours: 4 rows; 4 x 2 cells elsewhere
    assert foveated_bytes(shard, radius=2, pool=4, **COST) == 2 * TOKEN * (4 * 8 + 4 * 2)


@pytest.mark.parametrize("splits_text", [False, True])
def test_text_is_counted(splits_text):
    layout = TokenLayout(text=10, grid=(1, 8, 4))
    shard = Shard.of_rows(layout, (4, 4), 0, splits_text=splits_text)
    halo = 2 * TOKEN * 4
    partial = 5 * (TOKEN + 3 * 4)
    text = (3 if splits_text else 1) * 5 * TOKEN
    assert local_bytes(shard, radius=2, **COST) == halo + partial + text


def test_what_others_receive():
    shard = Shard.even(TokenLayout(text=8, grid=(1, 8, 4)), 4, 0, splits_text=True)
    heads_of_four = {**COST, "heads": 4}
    assert gathered_bytes(shard, **heads_of_four) == 2 * 30 * 4 * 8 * 4
    # Q, K, V of 30 tokens for one head, and the output of 10 tokens for three
    assert ulysses_bytes(shard, **heads_of_four) == (3 * 30 + 3 * 10) * 8 * 4


def test_cut_gives_every_token_to_a_rank():
    layout = TokenLayout(text=5, grid=(1, 3, 4), text_first=False)
    x = torch.arange(17.0).view(1, 1, 17, 1)
    shards = [Shard.even(layout, 5, rank, splits_text=True) for rank in range(5)]
    pieces = [shard.cut(x).flatten().tolist() for shard in shards]
    assert sorted(token for piece in pieces for token in piece) == list(range(17))
    assert pieces[0] == [0, 1, 2, 12]
    assert [shard.local.num_tokens for shard in shards] == [len(piece) for piece in pieces]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: Shard.of_rows(x, (2, 2), 0), "add up to 3, the rows of"),
        (lambda x: Shard.of_rows(x, (3, 0), 0), "every rank must hold a grid token"),
        (lambda x: Shard.even(x, 13, 0), "1 to 12 grid tokens, got 13"),
        (lambda x: Shard(x, (4, 8), 0), "reach the last of 12"),
        (lambda x: Shard(x, (4, 12), 2), "one of 2, got 2"),
    ],
)
def test_wrong_shards_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(TokenLayout(grid=(1, 3, 4)))


def test_shard_of_another_rank_is_refused():
    layout = TokenLayout(grid=(1, 3, 4))
    exchange = object.__new__(Exchange)
    exchange.rank, exchange.ranks = 1, 2
    with pytest.raises(ValueError, match="rank 0 of 2, but the exchange is on rank 1 of 2"):
        sequence_local_attention(
            *make_qkv(layout), shard=Shard.even(layout, 2, 0), exchange=exchange, radius=2
        )


def test_the_table_of_the_page_is_computed():
    page = Path(__file__).parents[1] / "docs" / "sequence.md"
    before, after = split_page(page, NAME)
    begin, end = markers(NAME)
    assert page.read_text() == f"{before}{begin}\n{exchange_table()}\n{end}{after}"
