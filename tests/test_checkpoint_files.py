"""Where a file of trained weights may be, and files that cannot be read."""

import functools
import socket

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from foveate.attn_processors import LinearAttnProcessor, LocalAttnProcessor, apply
from published_files import clear_tensors, write_linfusion
from tiny_pipelines import Tiny


@pytest.fixture(scope="module")
def flux():
    return Tiny("flux")


@pytest.fixture
def clear_file(flux, tmp_path):
    path = tmp_path / "clear_local_3.safetensors"
    save_file(clear_tensors(flux.model), path)
    return path


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Puts files into an empty cache of the hub, as a download of the repository would."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))

    def folder_of(repository, inner=""):
        home = cache / f"models--{repository.replace('/', '--')}"
        (home / "refs").mkdir(parents=True, exist_ok=True)
        (home / "refs" / "main").write_text("0123")
        folder = home / "snapshots" / "0123" / inner
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    return folder_of


def load(source, **options):
    return LocalAttnProcessor.from_pretrained(source, **{"window": 3, **options})


@pytest.mark.parametrize("local_files_only", [False, True])
def test_a_repository_is_read_from_the_cache(flux, clear_file, hub, local_files_only):
    want = load(clear_file).weights.state_dict()
    clear_file.rename(hub("Huage001/CLEAR") / clear_file.name)
    for source in ("Huage001/CLEAR", "Huage001/CLEAR/clear_local_3.safetensors"):
        got = load(source, local_files_only=local_files_only).weights.state_dict()
        assert all(torch.equal(value, want[key]) for key, value in got.items())
    with pytest.raises(FileNotFoundError, match="did not give clear_local_5.safetensors"):
        load("Huage001/CLEAR", window=5, local_files_only=local_files_only)
    with pytest.raises(FileNotFoundError, match="repository of that name did not give"):
        load("Huage001/CLEAR", revision="other", local_files_only=local_files_only)


def test_a_linfusion_repository(hub):
    tiny = Tiny("sd")
    write_linfusion(hub("Yuanshi/LinFusion-1-5"), tiny.model)
    processor = LinearAttnProcessor.from_pretrained("Yuanshi/LinFusion-1-5")
    assert len(processor.weights) == 7


@pytest.fixture
def online(monkeypatch):
    """The hub may be asked, and every request fails by its host."""

    def refuse(host, *_, **__):
        raise AssertionError(f"a request to {host}")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize(
    "read",
    [
        functools.partial(LocalAttnProcessor.from_pretrained, "Huage001/CLEAR", window=3),
        functools.partial(LinearAttnProcessor.from_pretrained, "Yuanshi/LinFusion-XL"),
    ],
    ids=["clear", "linfusion"],
)
def test_local_files_only_makes_no_request(hub, online, read):
    with pytest.raises(AssertionError, match="a request to"):
        read()
    with pytest.raises(FileNotFoundError, match="repository of that name did not give .*cache"):
        read(local_files_only=True)


def test_local_files_only_reads_the_cache_without_a_request(clear_file, hub, online):
    clear_file.rename(hub("Huage001/CLEAR") / clear_file.name)
    with pytest.raises(AssertionError, match="a request to"):
        load("Huage001/CLEAR")
    assert len(load("Huage001/CLEAR", local_files_only=True).weights) == 2
    with pytest.raises(FileNotFoundError, match="owner/base .* did not give .*cache"):
        load("Huage001/CLEAR", base="owner/base", local_files_only=True)


@pytest.mark.parametrize("source", ["nothing", "a/nothing.safetensors", "./a/b/c", "/a/b/c"])
def test_nothing_there(source):
    with pytest.raises(FileNotFoundError, match=f"no such file or folder: {source}"):
        load(source)


def test_an_impossible_repository():
    with pytest.raises(FileNotFoundError, match="did not give .*: Repo id must"):
        load("two words/name")


def test_a_folder_without_the_file(clear_file):
    with pytest.raises(FileNotFoundError, match=r"no clear_local_5\S+; there is clear_local_3"):
        load(clear_file.parent, window=5)
    clear_file.unlink()
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load(clear_file.parent)


def test_pickles_are_refused_by_name(flux, tmp_path):
    path = tmp_path / "diffusion_pytorch_model.bin"
    torch.save(clear_tensors(flux.model), path)
    for source in (path, tmp_path, "owner/name/clear_local_3.bin"):
        with pytest.raises(ValueError, match=r"\.bin is a pickle, which runs code"):
            load(source)


@pytest.mark.parametrize("damage", ["cut", "pointer", "header", "empty"])
def test_a_corrupt_file(clear_file, damage):
    whole = clear_file.read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3587\n"
    header = whole[:8] + b"?" + whole[9:]
    damaged = {"cut": whole[:-7], "pointer": pointer, "header": header, "empty": b""}
    clear_file.write_bytes(damaged[damage])
    with pytest.raises(ValueError, match=r"is corrupt or no safetensors file \(.*fetch it again"):
        load(clear_file)


def test_a_quantised_file(flux, clear_file):
    tensors = {key: value.to(torch.int8) for key, value in clear_tensors(flux.model).items()}
    save_file(tensors, clear_file)
    with pytest.raises(ValueError, match="is quantised: .* and 8 more are not of F64, F32"):
        load(clear_file)


def test_a_file_in_half_precision_serves_any_model(flux, clear_file):
    half = {key: value.bfloat16() for key, value in clear_tensors(flux.model).items()}
    save_file({key: value.float() for key, value in half.items()}, clear_file)
    with apply(flux.pipe, load(clear_file)):
        want = flux()
    save_file(half, clear_file)
    processor = load(clear_file)
    with apply(flux.pipe, processor):
        assert torch.equal(flux(), want)
    assert {p.dtype for p in processor.weights.parameters()} == {torch.bfloat16}
