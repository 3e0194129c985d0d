"""What every test runs under: offline, seeded, one thread, NaN in uninitialised memory."""

import os
import random
import sys

import numpy as np
import pytest
import torch


def pytest_configure():
    # huggingface_hub reads it once, when it is imported
    os.environ["HF_HUB_OFFLINE"] = "1"
    if not torch.cuda.is_available():
        # triton reads it when it is imported, and diffusers imports triton
        os.environ["TRITON_INTERPRET"] = "1"
    os.environ["FOVEATE_TUNE_CACHE"] = os.devnull  # tiles as shipped, whatever was tuned here
    torch.set_num_threads(1)  # the tensors are tiny: a second thread only waits


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA or ROCm device"))


@pytest.fixture(autouse=True)
def seed():
    """Seeds every generator, so that a test gives the same numbers alone and in the suite."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    return 0


@pytest.fixture(autouse=True)
def nan_filled():
    """Makes `torch.empty` return NaN, so that an output nobody wrote shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Lets a test choose another precision than the one before; accelerate keeps the first."""
    yield
    state = sys.modules.get("accelerate.state")
    if state is not None:
        state.AcceleratorState._reset_state()


@pytest.fixture
def foveate_command(capsys):
    """Runs the command line; gives (exit status, stdout, stderr)."""
    from foveate.cli import main

    def call(*arguments):
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return stop.value.code, printed.out, printed.err

    return call
