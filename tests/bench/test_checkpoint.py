"""Shards: the published layout, mapped without a copy, and no bad file gets past the header."""

import json
import random

import moela
import pytest
import torch
from moela.bench import checkpoint, memory
from moela.bench.checkpoint import Expert, Weight, open_shard, write_shard
from moela.shapes import ModelShape
from moela.testing import same_bits
from safetensors.torch import load_file, save_file

# Nothing is a multiple of 128, and layer 2 is the first with experts.
TINY = ModelShape("tiny", 200, 130, 5, 2, 0, 300, 4, 2, None, "made up")
FIRST = "model.layers.2.mlp.experts.0."
NUM_EXPERTS = 3


def random_experts(model=TINY, num_experts=NUM_EXPERTS):
    g = torch.Generator().manual_seed(0)
    H, intermediate = model.hidden, model.intermediate
    shapes = ((intermediate, H), (intermediate, H), (H, intermediate))
    return [
        Expert(*(Weight(*moela.per_block_quant_fp8(torch.randn(s, generator=g))) for s in shapes))
        for _ in range(num_experts)
    ]


@pytest.fixture
def experts():
    return random_experts()


@pytest.fixture
def shard(tmp_path, experts):
    path = tmp_path / "shard.safetensors"
    write_shard(path, TINY, experts, NUM_EXPERTS)
    return path


def refusal(path, model=TINY, num_experts=NUM_EXPERTS):
    """The one line that says what is wrong with the file."""
    with pytest.raises(ValueError, match="expected") as info:
        open_shard(path, model, num_experts)
    message = str(info.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def pairs(a, b):
    for x, y in zip(a, b, strict=True):
        for v, w in zip(x, y, strict=True):
            yield from zip(v, w, strict=True)


# --- layout ----------------------------------------------------------------------------------------------


def test_tensors_have_the_names_dtypes_and_shapes_of_published_checkpoints(shard):
    tensors = load_file(shard)
    assert len(tensors) == NUM_EXPERTS * 6
    for expert in range(NUM_EXPERTS):
        prefix = f"model.layers.2.mlp.experts.{expert}"
        for name, shape, sf_shape in (
            ("gate_proj", (130, 200), (2, 2)),
            ("up_proj", (130, 200), (2, 2)),
            ("down_proj", (200, 130), (2, 2)),
        ):
            weight = tensors[f"{prefix}.{name}.weight"]
            sf = tensors[f"{prefix}.{name}.weight_scale_inv"]
            assert (weight.dtype, weight.shape) == (torch.float8_e4m3fn, shape)
            assert (sf.dtype, sf.shape) == (torch.float32, sf_shape)


def test_the_safetensors_library_reads_the_values_that_were_written(shard, experts):
    tensors = load_file(shard)
    for index, expert in enumerate(experts):
        for name, tensor in checkpoint.named_tensors(TINY, index, expert):
            assert same_bits(tensors[name], tensor)


def test_values_come_back_bit_for_bit(shard, experts):
    assert all(same_bits(x, y) for x, y in pairs(open_shard(shard, TINY, NUM_EXPERTS), experts))


def test_a_shard_that_the_safetensors_library_wrote_opens_too(tmp_path, shard, experts):
    other = tmp_path / "other.safetensors"
    save_file(load_file(shard), other)
    assert all(same_bits(x, y) for x, y in pairs(open_shard(other, TINY, NUM_EXPERTS), experts))


def test_other_tensors_in_the_shard_do_not_matter(shard, experts):
    save_file(load_file(shard) | {"model.norm.weight": torch.ones(7)}, shard)
    assert all(same_bits(x, y) for x, y in pairs(open_shard(shard, TINY, NUM_EXPERTS - 1), experts[:-1]))


# --- mapped ----------------------------------------------------------------------------------------------


def test_tensors_are_pages_of_the_file(shard):
    for expert in open_shard(shard, TINY, NUM_EXPERTS):
        for tensor in (t for weight in expert for t in weight):
            if checkpoint.is_mapped(tensor, shard) is None:
                pytest.skip("this system does not tell what is mapped")
            assert checkpoint.is_mapped(tensor, shard)
            assert not checkpoint.is_mapped(tensor.clone(), shard)


def test_reading_the_weights_takes_pages_of_the_file_and_no_memory_of_its_own(tmp_path):
    model = ModelShape("flat", 4096, 2048, 1, 1, 0, None, 1, 0, None, "made up")
    path = tmp_path / "shard.safetensors"
    write_shard(path, model, random_experts(model, 1), 1)
    before = memory.status()
    if not before:
        pytest.skip("this system does not tell what is resident")
    [expert] = open_shard(path, model, 1)
    for weight in expert:
        weight.q.view(torch.uint8).max()
    after = memory.status()
    assert after["RssFile"] - before["RssFile"] > 0.9 * path.stat().st_size
    assert after["RssAnon"] - before["RssAnon"] < 0.2 * path.stat().st_size


# --- writing ---------------------------------------------------------------------------------------------


def test_progress_is_told_of_each_expert(tmp_path, experts):
    told = []
    write_shard(tmp_path / "new" / "shard", TINY, experts, NUM_EXPERTS, on_expert=told.append)
    assert told == [0, 1, 2]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(shard, experts):
    def breaks():
        yield experts[0]
        raise KeyboardInterrupt

    before = shard.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        write_shard(shard, TINY, breaks(), NUM_EXPERTS)
    assert shard.read_bytes() == before
    assert [*shard.parent.iterdir()] == [shard]


def test_an_expert_of_another_shape_is_not_written(tmp_path, experts):
    wrong = experts[1]._replace(up=experts[1].down)
    with pytest.raises(ValueError, match=r"up_proj\.weight: expected shape \[130, 200\], got \[200, 130\]"):
        write_shard(tmp_path / "shard", TINY, [experts[0], wrong, experts[2]], NUM_EXPERTS)
    assert not [*tmp_path.iterdir()]


def test_a_disk_without_room_is_said_before_anything_is_written(tmp_path, monkeypatch, experts):
    full = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: full)
    with pytest.raises(ValueError, match=r"expected 0 MB free on its disk, got 0 MB; take fewer experts"):
        write_shard(tmp_path / "shard", TINY, experts, NUM_EXPERTS)
    assert not [*tmp_path.iterdir()]


def test_a_folder_that_cannot_be_made_is_said(tmp_path, experts):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="expected a folder to write to, got: "):
        write_shard(tmp_path / "file" / "shard", TINY, experts, NUM_EXPERTS)


# --- files that are no shard -----------------------------------------------------------------------------


def test_a_shard_that_is_cut_off_anywhere_is_refused(shard):
    whole = shard.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    ends = {*range(20), *range(header - 9, header + 9), *range(20, len(whole), 997), len(whole) - 1}
    for end in sorted(ends):
        shard.write_bytes(whole[:end])
        message = refusal(shard)
        assert ("cut off" in message) == (end >= 8), end


def test_a_header_with_one_wrong_bit_is_refused_or_does_not_matter(shard, experts):
    whole = shard.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    rng = random.Random(0)
    refused = 0
    for _ in range(400):
        bad = bytearray(whole)
        bad[rng.randrange(header)] ^= 1 << rng.randrange(8)
        shard.write_bytes(bad)
        try:
            opened = open_shard(shard, TINY, NUM_EXPERTS)
        except ValueError as error:
            refused += str(error).startswith(f"{shard}: ")
        else:
            assert all(same_bits(x, y) for x, y in pairs(opened, experts))
    assert refused > 300  # the others hit a name that nobody asks for, or the metadata


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "empty").touch()
    assert refusal(tmp_path / "empty") == "expected a safetensors file, got 0 bytes"


@pytest.mark.parametrize(
    "content",
    [b"PK\x03\x04" + bytes(1000), b"\xff" * 1000, b"version https://git-lfs.github.com/spec/v1\n" * 9],
    ids=["zip", "ones", "pointer"],
)
def test_another_kind_of_file_is_refused(tmp_path, content):
    (tmp_path / "other").write_bytes(content)
    assert refusal(tmp_path / "other") == "expected the header of a safetensors file, got something else"


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{nonsense",
        b"\xff\xfe\x00\x00",
        b"[" * 50_000,
        b'{"a": 1}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}',
        b'{"a": {"dtype": "F32", "shape": null, "data_offsets": [0, 4]}}',
    ],
)
def test_a_header_that_is_none_is_refused(tmp_path, header):
    (tmp_path / "bad").write_bytes(len(header).to_bytes(8, "little") + header)
    assert refusal(tmp_path / "bad") == "expected the header of a safetensors file, got something else"


def test_a_folder_and_a_file_that_is_not_there_are_refused(tmp_path):
    assert refusal(tmp_path) == "expected a safetensors file, got a folder"
    assert refusal(tmp_path / "none") == "expected a readable file, got: No such file or directory"


def test_a_file_that_is_too_long_is_refused(shard):
    shard.write_bytes(shard.read_bytes() + b"x")
    assert refusal(shard).endswith("too long")


# --- shards of something else ----------------------------------------------------------------------------


def test_a_missing_scale_factor_is_named(shard):
    tensors = load_file(shard)
    del tensors[FIRST + "up_proj.weight_scale_inv"]
    save_file(tensors, shard)
    assert refusal(shard) == f"{FIRST}up_proj.weight_scale_inv: expected a tensor of this name, got none"


def test_a_wrong_shape_of_scale_factors_is_named(shard):
    name = FIRST + "down_proj.weight_scale_inv"
    save_file(load_file(shard) | {name: torch.ones(2, 1)}, shard)
    assert refusal(shard) == f"{name}: expected shape [2, 2], got [2, 1]"


def test_a_wrong_dtype_is_named(shard):
    name = FIRST + "gate_proj.weight"
    save_file(load_file(shard) | {name: torch.ones(130, 200, dtype=torch.bfloat16)}, shard)
    assert refusal(shard) == f"{name}: expected dtype F8_E4M3, got BF16"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_scale_factor_that_is_no_positive_number_is_named(shard, value):
    name = FIRST + "gate_proj.weight_scale_inv"
    tensors = load_file(shard)
    tensors[name][1, 1] = value
    save_file(tensors, shard)
    assert refusal(shard) == f"{name}: expected positive finite numbers, got {value:g}"


def test_more_experts_than_the_shard_has_are_named(shard):
    assert refusal(shard, num_experts=4).startswith("model.layers.2.mlp.experts.3.")


def test_the_shard_of_another_model_is_refused(shard):
    wider = ModelShape("wider", 328, 130, 5, 2, 0, 300, 4, 2, None, "made up")
    assert "expected shape [2, 3], got [2, 2]" in refusal(shard, wider)


def test_tensors_that_overlap_are_refused(shard):
    whole = shard.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    fields = json.loads(whole[8 : 8 + length])
    fields[FIRST + "gate_proj.weight"]["data_offsets"] = fields[FIRST + "up_proj.weight"]["data_offsets"]
    text = json.dumps(fields).encode()
    shard.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])
    assert refusal(shard).startswith("expected a safetensors file, got: ")


def test_a_tensor_with_fewer_bytes_than_its_shape_is_refused(shard):
    whole = shard.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    fields = json.loads(whole[8 : 8 + length])
    fields[FIRST + "gate_proj.weight"]["data_offsets"][1] -= 1
    text = json.dumps(fields).encode()
    shard.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])
    assert refusal(shard) == f"{FIRST}gate_proj.weight: expected 26000 bytes, got 25999"
