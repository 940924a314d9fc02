"""Experts of FP8 checkpoints are views of the files: nothing is copied, and nothing dangles."""

import gc
import inspect
import mmap
import os
import sys
import threading
from pathlib import Path

import fp8_checkpoints
import models
import moela
import pytest
import torch
import transformers
from fp8_checkpoints import FP8, load, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from moela.integrations import mapped_memory
from moela.integrations.mapped_memory import FileSpans, Piece, can_stack, stack_pieces
from moela.integrations.safetensors_header import read_header
from safetensors import safe_open
from safetensors.torch import load_file

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pages of files are mapped on Linux only")

PAGE = mmap.PAGESIZE
LAYER = "model.layers.1.mlp.experts"


@pytest.fixture(autouse=True)
def enabled():
    moela.enable_cpu_fp8()
    yield
    moela.disable_cpu_fp8()


def num_mappings(path: Path) -> int:
    return sum(str(path) in line for line in Path("/proc/self/maps").read_text().splitlines())


def anonymous_bytes(path: Path) -> int:
    """What was copied of the mappings of the files under `path`."""
    total, counts = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            counts = str(path) in line
        elif counts and line.startswith("Anonymous:"):
            total += int(line.split()[1]) * 1024
    return total


def views_of_file(checkpoint, model) -> dict[str, bool]:
    """By name of an FP8 tensor of the file, whether the model sees it when a byte of the file changes."""
    found = {}
    with checkpoint.file.open("r+b") as file:
        for name, entry in read_header(checkpoint.file).items():
            if entry.dtype == "F8_E4M3":
                tensor = in_model(model, name)
                middle = (entry.end - entry.begin) // 2
                before = os.pread(file.fileno(), 1, entry.begin + middle)
                for byte in (b"\x11", b"\x22", before):
                    os.pwrite(file.fileno(), byte, entry.begin + middle)
                    seen = tensor.view(torch.uint8).flatten()[middle].item()
                    found[name] = found.get(name, True) and seen == byte[0]
    return found


def in_model(model, name):
    """A tensor of the file where the model has it."""
    if ".experts." not in name:
        return model.get_parameter(name).data
    parts = name.replace("block_sparse_moe", "mlp").split(".")  # Mixtral's, renamed on the way
    at = parts.index("experts")
    experts = model.get_submodule(".".join(parts[: at + 1]))
    expert, projection = int(parts[at + 1]), parts[at + 2]
    if projection in ("down_proj", "w2"):
        return experts.down_proj.data[expert]
    half = 0 if projection in ("gate_proj", "w1") else 1
    return experts.gate_up_proj.data[expert].chunk(2)[half]


@pytest.mark.parametrize("name", list(fp8_checkpoints.SETTINGS))
def test_every_fp8_tensor_is_a_view_of_the_file(name, tmp_path):
    checkpoint = fp8_checkpoints.write(tmp_path, name)
    views = views_of_file(checkpoint, load(tmp_path))
    assert [name for name, is_view in views.items() if not is_view] == []
    assert any("experts" in name for name in views)


def test_loading_copies_the_page_where_a_piece_ends_and_no_other(tmp_path):
    checkpoint = fp8_checkpoints.write(tmp_path)
    model = load(tmp_path)
    num_experts = model.get_submodule(LAYER).num_experts
    assert anonymous_bytes(tmp_path) <= 2 * (num_experts + 1) * PAGE
    assert checkpoint.file.stat().st_size > 20 * num_experts * PAGE


def test_stacked_experts_are_contiguous(tmp_path):
    fp8_checkpoints.write(tmp_path)
    experts = load(tmp_path).get_submodule(LAYER)
    assert experts.gate_up_proj.is_contiguous()
    assert experts.down_proj.is_contiguous()


@pytest.mark.parametrize("shards", [2, 3, 5])
def test_a_layer_in_several_files(shards, tmp_path):
    """Pieces at another place in a page than most are read, the others mapped."""
    checkpoint = fp8_checkpoints.write(tmp_path, shards=shards)
    model = load(tmp_path)
    for name, tensor in checkpoint.tensors.items():
        if tensor.dtype == FP8:
            assert same_bits(in_model(model, name), tensor)
    assert num_mappings(tmp_path) > shards  # more than one for each file: some experts are mapped
    inputs = models.prompt()
    whole = fp8_checkpoints.write(tmp_path / "whole")
    assert torch.equal(models.logits_of(model, inputs), models.logits_of(load(whole.path), inputs))


def test_a_checkpoint_behind_links(tmp_path):
    """As in the cache of the Hugging Face hub."""
    checkpoint = fp8_checkpoints.write(tmp_path)
    folder = tmp_path / "snapshot"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).symlink_to(tmp_path / name)
    views = views_of_file(checkpoint, load(folder))
    assert views
    assert all(views.values())


def test_a_file_that_is_not_mapped(tmp_path):
    if "disable_mmap" not in inspect.signature(transformers.PreTrainedModel.from_pretrained).parameters:
        pytest.skip("this transformers maps every file")
    checkpoint = fp8_checkpoints.write(tmp_path)
    wanted = models.logits_of(load(tmp_path), models.prompt())
    model = load(tmp_path, disable_mmap=True)
    assert not any(views_of_file(checkpoint, model).values())
    assert torch.equal(models.logits_of(model, models.prompt()), wanted)


def test_pieces_that_are_not_whole_pages_are_stacked_by_copying(tmp_path):
    checkpoint = fp8_checkpoints.write(tmp_path, moe_intermediate_size=200)  # 12.5 pages
    model = load(tmp_path)
    model.save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert all(same_bits(saved[name], tensor) for name, tensor in checkpoint.tensors.items())
    assert num_mappings(checkpoint.file) == 1


def test_a_system_without_room_for_mappings_copies(tmp_path, monkeypatch):
    def no_room(*args):
        raise OSError("Cannot allocate memory")

    checkpoint = fp8_checkpoints.write(tmp_path)
    wanted = models.logits_of(load(tmp_path), models.prompt())
    monkeypatch.setattr(mapped_memory, "_mmap", no_room)
    model = load(tmp_path)
    assert num_mappings(checkpoint.file) <= 1 or not any(
        is_view for name, is_view in views_of_file(checkpoint, model).items() if "experts" in name
    )
    assert torch.equal(models.logits_of(model, models.prompt()), wanted)


def test_writing_to_a_weight_leaves_the_file_alone(tmp_path):
    checkpoint = fp8_checkpoints.write(tmp_path)
    before = checkpoint.file.read_bytes()
    experts = load(tmp_path).get_submodule(LAYER)
    experts.gate_up_proj.data.zero_()
    assert not experts.gate_up_proj.float().any()
    assert checkpoint.file.read_bytes() == before


def test_mappings_go_with_the_model(tmp_path):
    checkpoint = fp8_checkpoints.write(tmp_path)
    model = load(tmp_path)
    assert num_mappings(checkpoint.file) > 1
    del model
    gc.collect()
    assert num_mappings(checkpoint.file) == 0


def test_a_view_keeps_its_pages(tmp_path):
    checkpoint = fp8_checkpoints.write(tmp_path)
    model = load(tmp_path)
    row = model.get_submodule(LAYER).down_proj.data[5][17]
    del model
    gc.collect()
    assert same_bits(row, checkpoint.tensors[f"{LAYER}.5.down_proj.weight"][17])
    del row
    gc.collect()
    assert num_mappings(checkpoint.file) == 0


def test_saving_into_the_folder_that_the_model_came_from(tmp_path):
    checkpoint = fp8_checkpoints.write(tmp_path)
    model = load(tmp_path)
    wanted = models.logits_of(model, models.prompt())
    model.save_pretrained(tmp_path)
    saved = load_file(checkpoint.file)
    assert all(same_bits(saved[name], tensor) for name, tensor in checkpoint.tensors.items())
    assert torch.equal(models.logits_of(load(tmp_path), models.prompt()), wanted)


# --- stack_pieces ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two files of 24 pages of random bytes, and the bytes."""
    folder = tmp_path_factory.mktemp("files")
    g = torch.Generator().manual_seed(0)
    found = {}
    for name in "ab":
        content = torch.randint(0, 256, (24 * PAGE,), dtype=torch.uint8, generator=g)
        (folder / name).write_bytes(content.numpy().tobytes())
        found[str(folder / name)] = content
    return found


def assert_stacked(files, places, num_pages):
    size = num_pages * PAGE
    pieces = [Piece(list(files)[file], offset) for file, offset in places]
    wanted = torch.stack([files[piece.path][piece.offset : piece.offset + size] for piece in pieces])
    got = stack_pieces(pieces, size)
    assert got.is_contiguous()
    assert torch.equal(got, wanted)


@settings(max_examples=80, deadline=None)
@given(
    places=st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 20), st.sampled_from([0, 1, 8, PAGE // 2, PAGE - 1])),
        min_size=1,
        max_size=9,
    ),
    num_pages=st.integers(1, 3),
)
def test_any_places_in_any_order(files, places, num_pages):
    assert_stacked(files, [(file, page * PAGE + residue) for file, page, residue in places], num_pages)


@pytest.mark.parametrize("residue", [0, 24, PAGE - 8])
def test_pieces_in_the_order_of_the_file_are_one_mapping(files, residue):
    path = next(iter(files))
    pieces = [Piece(path, residue + i * 2 * PAGE) for i in range(5)]
    got = stack_pieces(pieces, 2 * PAGE)
    assert num_mappings(Path(path)) == 1
    assert torch.equal(got.flatten(), files[path][residue : residue + 10 * PAGE])


def test_the_end_of_a_file_may_be_the_end_of_a_piece(files):
    assert_stacked(files, [(0, 23 * PAGE - 3), (0, 23 * PAGE), (1, 23 * PAGE)], 1)


def test_a_file_that_became_shorter_is_an_error(files, tmp_path):
    file = tmp_path / "short"
    file.write_bytes(bytes(PAGE))
    with pytest.raises(OSError, match="end of the file"):
        stack_pieces([Piece(str(file), 0), Piece(str(file), 8), Piece(str(file), 0)], PAGE)


def test_threads_may_read_while_others_stack(files):
    path = next(iter(files))
    failed = []

    def stack_and_read():
        for _ in range(50):
            pieces = [Piece(path, 8 + i * PAGE) for i in (7, 3, 5)]
            if not torch.equal(stack_pieces(pieces, PAGE)[1], files[path][8 + 3 * PAGE : 8 + 4 * PAGE]):
                failed.append(True)

    threads = [threading.Thread(target=stack_and_read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    gc.collect()
    assert num_mappings(Path(path)) == 0


def test_a_quarter_of_the_mappings_is_left_to_others(files):
    path = next(iter(files))
    room = int(Path("/proc/sys/vm/max_map_count").read_text()) * 3 // 4
    scattered = [Piece(path, 0)] * (room + 1)
    with pytest.raises(OSError, match="mappings are in use"):
        stack_pieces(scattered, PAGE)
    assert num_mappings(Path(path)) == 0


def test_only_whole_pages_can_be_stacked():
    assert can_stack(PAGE)
    assert not can_stack(PAGE + 1)
    assert not can_stack(0)


def test_only_views_of_the_files_are_located(tmp_path):
    checkpoint = fp8_checkpoints.write(tmp_path)
    with safe_open(checkpoint.file, "pt") as file:
        tensor = file.get_tensor(f"{LAYER}.0.down_proj.weight")
    entry = read_header(checkpoint.file)[f"{LAYER}.0.down_proj.weight"]
    spans = FileSpans([str(checkpoint.file)])
    assert spans.locate(tensor) == Piece(str(checkpoint.file), entry.begin)
    assert spans.locate(tensor[1:]) == Piece(str(checkpoint.file), entry.begin + tensor.size(1))
    assert spans.locate(tensor.T) is None
    assert spans.locate(tensor.clone()) is None
    assert FileSpans([str(tmp_path / "other")]).locate(tensor) is None
