"""Checkpoint folders: the published layout, written whole or not at all, and no bad one is used."""

import json

import pytest
import torch
from moela.bench import checkpoint
from moela.bench.checkpoint import Spec
from moela.testing import same_bits
from safetensors.torch import load_file, save_file

CONFIG = {"model_type": "made_up"}
SHARDS = [
    {
        "model.b.weight": Spec("F8_E4M3", (130, 5)),
        "model.b.weight_scale_inv": Spec("F32", (2, 1)),
        "model.experts.10.w": Spec("F8_E4M3", (3, 3)),
        "model.experts.9.w": Spec("F8_E4M3", (3, 3)),
        "model.a.weight": Spec("BF16", (7,)),
    },
    {"lm_head.weight": Spec("BF16", (4, 3))},
]
FIRST, SECOND = checkpoint.shard_names(2)


def tensor(name):
    spec = next(shard[name] for shard in SHARDS if name in shard)
    g = torch.Generator().manual_seed(len(name))
    return torch.randn(spec.shape, generator=g).to(checkpoint.DTYPES[spec.dtype])


def write(folder, tensor=tensor, on_tensor=lambda: None):
    checkpoint.write(folder, CONFIG, SHARDS, tensor, on_tensor)
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "new" / "model")


def refusal(folder):
    """The one line that says what is wrong with the folder, without its path."""
    with pytest.raises(ValueError, match="expected") as info:
        checkpoint.check(folder, CONFIG, SHARDS)
    message = str(info.value)
    assert message.startswith(f"{folder}/")
    assert "\n" not in message
    return message.removeprefix(f"{folder}/")


# --- layout ----------------------------------------------------------------------------------------------


def test_files_have_the_names_of_published_checkpoints(folder):
    names = sorted(path.name for path in folder.iterdir())
    assert names == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]


def test_a_shard_has_the_bytes_that_safetensors_writes(folder, tmp_path):
    for name, shard in zip((FIRST, SECOND), SHARDS, strict=True):
        save_file(
            {tensor_name: tensor(tensor_name) for tensor_name in shard}, tmp_path / name, {"format": "pt"}
        )
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes()


def test_values_come_back_bit_for_bit(folder):
    for file, shard in zip((FIRST, SECOND), SHARDS, strict=True):
        tensors = load_file(folder / file)
        assert tensors.keys() == shard.keys()
        assert all(same_bits(tensors[name], tensor(name)) for name in shard)


def test_the_index_says_which_file_has_a_tensor_and_how_many_bytes_all_have(folder):
    index = json.loads((folder / checkpoint.INDEX).read_text())
    assert index["weight_map"] == dict.fromkeys(SHARDS[0], FIRST) | {"lm_head.weight": SECOND}
    assert index["metadata"]["total_size"] == 650 + 8 + 9 + 9 + 14 + 24


def test_what_was_written_passes_its_check(folder):
    checkpoint.check(folder, CONFIG, SHARDS)


# --- writing ---------------------------------------------------------------------------------------------


def test_progress_is_told_of_each_tensor(tmp_path):
    told = []
    write(tmp_path / "model", on_tensor=lambda: told.append(0))
    assert len(told) == 6


def test_a_write_that_fails_leaves_nothing(tmp_path):
    def breaks(name):
        if name == "lm_head.weight":
            raise KeyboardInterrupt
        return tensor(name)

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "model", breaks)
    assert not [*tmp_path.iterdir()]


def test_a_tensor_that_is_not_as_announced_is_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"model\.a\.weight: expected BF16 \[7\], got torch.float32 \[8\]"):
        write(tmp_path / "model", lambda name: torch.ones(8) if name == "model.a.weight" else tensor(name))
    assert not [*tmp_path.iterdir()]


def test_a_disk_without_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    full = type("Usage", (), {"free": 100})
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: full)
    with pytest.raises(ValueError, match="expected 0 MB free on its disk, got 0 MB; take fewer experts"):
        write(tmp_path / "model")
    assert not [*tmp_path.iterdir()]


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="expected a folder to write to, got: "):
        write(tmp_path / "file" / "model")


# --- folders that are not what was written ---------------------------------------------------------------


def test_a_file_that_is_cut_off_is_named(folder):
    path = folder / SECOND
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size - 5)
    assert refusal(folder) == f"{SECOND}: expected {size} bytes, got {size - 5}: cut off"


def test_a_file_that_is_missing_is_named(folder):
    (folder / FIRST).unlink()
    assert refusal(folder) == f"{FIRST}: expected a readable file, got: No such file or directory"


@pytest.mark.parametrize("name", [checkpoint.CONFIG, checkpoint.INDEX])
def test_another_text_is_named(folder, name):
    (folder / name).write_text("{}")
    assert refusal(folder) == f"{name}: expected the text that belongs to this model, got another"


@pytest.mark.parametrize(
    ("change", "got"),
    [({}, "no tensor of this name"), ({"model.a.weight": torch.ones(7)}, "F32 [7]")],
    ids=["missing", "of another dtype"],
)
def test_a_tensor_that_is_not_as_it_was_is_named(folder, change, got):
    tensors = load_file(folder / FIRST)
    del tensors["model.a.weight"]
    save_file(tensors | change, folder / FIRST)
    assert refusal(folder) == f"{FIRST}: model.a.weight: expected BF16 [7], got {got}"
