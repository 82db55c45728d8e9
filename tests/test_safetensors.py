"""Claim: what is written is read back bit for bit, and damage is refused by name, never a crash."""

import errno
import json
import os
import re

import numpy as np
import pytest

import tinydiff.safetensors
from tinydiff.jsonfile import write_json
from tinydiff.safetensors import (
    DTYPES,
    check_finite,
    read_safetensors,
    read_sharded,
    write_safetensors,
)


def some_tensors():
    """One tensor of each dtype, with an empty one, one of zero dimensions, and one transposed."""
    rng = np.random.default_rng(0)
    tensors = {name: (100 * rng.normal(size=(2, 3))).astype(dtype) if name != "BOOL"
               else rng.random((2, 3)) < 0.5 for name, dtype in DTYPES.items()}
    return {**tensors, "scalar": np.float32(7).reshape(()), "empty": np.zeros((0, 4), np.float32),
            "transposed": np.arange(6.0).reshape(2, 3).T, "größe 😀 \"\n": np.zeros(1, np.int8)}


def assert_same(got, want):
    assert got.keys() == want.keys()
    for name, values in want.items():
        assert got[name].dtype == values.dtype
        assert got[name].shape == values.shape
        assert got[name].tobytes() == values.tobytes()


def raw(header, data=b""):
    """The bytes of a file with this header: a dict, or text."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


# ---- reading and writing ----

def test_every_dtype_and_shape_survives_a_round_trip(tmp_path):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, some_tensors(), {"note": "ünï"})
    assert_same(read_safetensors(path), some_tensors())


def test_no_tensors_at_all_survive_a_round_trip(tmp_path):
    write_safetensors(tmp_path / "a", {})
    assert read_safetensors(tmp_path / "a") == {}


def test_the_order_of_the_tensors_does_not_change_the_file(tmp_path):
    tensors = some_tensors()
    write_safetensors(tmp_path / "a", tensors)
    write_safetensors(tmp_path / "b", dict(reversed(tensors.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_big_endian_arrays_are_written_little_endian(tmp_path):
    write_safetensors(tmp_path / "a", {"x": np.arange(3, dtype=">f4")})
    np.testing.assert_array_equal(read_safetensors(tmp_path / "a")["x"], [0, 1, 2])


def test_values_are_aligned_to_their_items(tmp_path):
    write_safetensors(tmp_path / "a", some_tensors())
    assert all(values.flags.aligned for values in read_safetensors(tmp_path / "a").values())


def test_a_dtype_that_the_format_lacks_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"'x' is complex128"):
        write_safetensors(tmp_path / "a", {"x": np.zeros(2, complex)})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -2.5, 3.3895e38, 1e-40, np.inf, -np.inf, np.nan])
def test_bfloat16_is_the_upper_half_of_a_float32(tmp_path, value):
    upper = np.array([value], "<f4").view("<u2")[1:]
    (tmp_path / "a").write_bytes(raw({"x": entry("BF16", [1, 1], 0, 2)}, upper.tobytes()))
    x = read_safetensors(tmp_path / "a")["x"]
    assert x.dtype == np.float32 and x.shape == (1, 1)
    np.testing.assert_allclose(x[0, 0], np.float32(value), rtol=2**-7, atol=2**-133)


def test_bfloat16_of_zero_dimensions_and_of_none(tmp_path):
    header = {"x": entry("BF16", [], 0, 2), "none": entry("BF16", [0], 2, 2)}
    (tmp_path / "a").write_bytes(raw(header, b"\x80\x3f"))
    tensors = read_safetensors(tmp_path / "a")
    assert tensors["x"].shape == () and tensors["x"] == 1 and tensors["none"].shape == (0,)


def test_reading_maps_the_file_and_does_not_load_it(tmp_path):
    resource = pytest.importorskip("resource", reason="Windows has no memory limits to set")
    size = 64 * 2**30                                       # sparse: takes no disk
    header = raw({"x": entry("U8", [size], 0, size)})
    path = tmp_path / "big"
    path.write_bytes(header)
    os.truncate(path, len(header) + size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    x = read_safetensors(path)["x"]
    assert x.shape == (size,) and x[size // 2] == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16    # under 64 MiB


def test_a_file_that_cannot_be_mapped_is_read(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENODEV, "no such device")
    write_safetensors(tmp_path / "a", some_tensors())
    monkeypatch.setattr(tinydiff.safetensors.mmap, "mmap", refuse)
    assert_same(read_safetensors(tmp_path / "a"), some_tensors())


def test_what_is_read_cannot_be_written_to(tmp_path):
    write_safetensors(tmp_path / "a", some_tensors())
    with pytest.raises(ValueError, match="read-only"):
        read_safetensors(tmp_path / "a")["F32"][0] = 1


# ---- the safetensors library ----

def test_the_library_reads_what_we_write(tmp_path):
    library = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    write_safetensors(tmp_path / "a", some_tensors(), {"format": "pt"})
    assert_same(library.load_file(tmp_path / "a"), some_tensors())


def test_we_read_what_the_library_writes(tmp_path):
    library = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    tensors = {name: np.ascontiguousarray(values) for name, values in some_tensors().items()
               if name != "scalar"}
    library.save_file(tensors, tmp_path / "a", {"format": "pt"})
    assert_same(read_safetensors(tmp_path / "a"), tensors)


def test_we_read_the_bfloat16_that_torch_writes(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    library = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    library.save_file({"x": x, "zero_dim": x[0, 0].clone()}, tmp_path / "a")
    tensors = read_safetensors(tmp_path / "a")
    np.testing.assert_array_equal(tensors["x"], x.float().numpy())
    np.testing.assert_array_equal(tensors["zero_dim"], x[0, 0].float().numpy())


# ---- damage ----

ONE = entry("F32", [1], 0, 4)
FAULTS = {
    "too few": b"\x01\x02",
    "should end at byte": (2**63).to_bytes(8, "little") + b"{}",
    "does not begin": raw(b"[]"),
    "Expecting": raw(b"{oops}"),
    "codec": raw(b'{"\xff": 1}'),
    "recursion": raw(b'{"x": ' + b"[" * 100_000),
    "comes 2 times": raw(b'{"x": {}, "x": {}}'),
    "metadata is not": raw({"__metadata__": {"a": 1}}),
    "lacks its": raw({"x": {"dtype": "F32"}}),
    "lacks its dtype": raw({"x": None}),
    "has dtype 'F8_E4M3'": raw({"x": entry("F8_E4M3", [1], 0, 1)}, b"0"),
    "has dtype \\['F32'\\]": raw({"x": entry(["F32"], [1], 0, 4)}, bytes(4)),
    "not a list of sizes": raw({"x": entry("F32", [-1], 0, 4)}, bytes(4)),
    "True\\] is not a list": raw({"x": entry("F32", [True], 0, 4)}, bytes(4)),
    "1.0\\] is not a list": raw({"x": entry("F32", [1.0], 0, 4)}, bytes(4)),
    "'abc' is not a list": raw({"x": entry("F32", "abc", 0, 4)}, bytes(4)),
    "3 offsets": raw({"x": {**ONE, "data_offsets": [0, 2, 4]}}, bytes(4)),
    "needs 8 bytes and has 4": raw({"x": entry("F32", [2], 0, 4)}, bytes(4)),
    "needs 4 bytes and has -4": raw({"x": entry("F32", [1], 4, 0)}, bytes(4)),
    "overlaps 'x'": raw({"x": ONE, "y": entry("F32", [1], 2, 6)}, bytes(6)),
    "hole after 'x'": raw({"x": ONE, "y": entry("F32", [1], 8, 12)}, bytes(12)),
    "hole after None": raw({"x": entry("F32", [1], 4, 8)}, bytes(8)),
    "file has 3 for them": raw({"x": ONE}, bytes(3)),
    "file has 5 for them": raw({"x": ONE}, bytes(5)),
    "neither 0 nor 1": raw({"x": entry("BOOL", [1], 0, 1)}, b"\x02"),
    "tensor 'x'": raw({"x": entry("F32", [0] * 70, 0, 0)}),
    "tensor 'x': .*": raw({"x": entry("F32", [0, 2**70], 0, 0)}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_file_is_refused_in_one_line_that_names_the_file_and_the_fault(tmp_path, fault):
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(FAULTS[fault])
    with pytest.raises(ValueError, match=fault) as refused:
        read_safetensors(path)
    assert str(refused.value).startswith(str(path)) and "\n" not in str(refused.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="^" + re.escape(f"{tmp_path / 'no'}: no such")):
        read_safetensors(tmp_path / "no")
    with pytest.raises(OSError, match="^" + re.escape(f"{tmp_path}: cannot be read")):
        read_safetensors(tmp_path)


def small_file(path, checksum=True):
    write_safetensors(path, {"ab": np.arange(3, dtype=np.float32), "c": np.ones((2, 1), np.int16)})
    if not checksum:                   # as another program would have written it
        tensors = read_safetensors(path)
        header = {"ab": entry("F32", [3], 0, 12), "c": entry("I16", [2, 1], 12, 16)}
        path.write_bytes(raw(header, b"".join(v.tobytes() for v in tensors.values())))
    return path.read_bytes()


@pytest.mark.parametrize("checksum", [True, False])
def test_a_file_cut_anywhere_is_refused(tmp_path, checksum):
    path = tmp_path / "cut"
    whole = small_file(path, checksum)
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=str(path)):
            read_safetensors(path)


@pytest.mark.parametrize("flip", [*(1 << bit for bit in range(8)), 0xFF])
def test_any_changed_byte_of_our_files_is_found_or_harmless(tmp_path, flip):
    # Harmless: a blank of the header, or the name under which the checksum itself stands.
    path = tmp_path / "flipped"
    whole = small_file(path)
    want = {name: values.copy() for name, values in read_safetensors(path).items()}
    found = 0
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ flip]) + whole[i + 1:])
        try:
            got = read_safetensors(path)
        except ValueError as fault:
            assert str(path) in str(fault)
            found += 1
        else:
            assert_same(got, want)
    assert found > len(whole) - 40


@pytest.mark.parametrize("flip", [*(1 << bit for bit in range(8)), 0xFF])
def test_a_changed_byte_of_another_programs_file_never_crashes(tmp_path, flip):
    # Without a checksum a flip inside a value, a name or a dtype of the same width shows nowhere.
    path = tmp_path / "flipped"
    whole = small_file(path, checksum=False)
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ flip]) + whole[i + 1:])
        try:
            got = read_safetensors(path)
        except ValueError as fault:
            assert str(path) in str(fault)
        else:
            assert [v.nbytes for v in got.values()] == [12, 4]


def test_random_headers_never_crash(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "random"
    pieces = [b'"x"', b'"dtype"', b'"F32"', b'"shape"', b'"data_offsets"', b"[", b"]", b"{", b"}",
              b":", b",", b"0", b"4", b"-1", b"1e9", b"null", b"NaN", b"9" * 5000, b'"\\ud800"']
    for _ in range(1000):
        chosen = rng.integers(len(pieces), size=rng.integers(30))
        header = b"{" + b"".join(pieces[k] for k in chosen)
        path.write_bytes(raw(header, bytes(4)))
        try:
            read_safetensors(path)
        except ValueError as fault:
            assert str(path) in str(fault)


def test_a_file_edited_under_its_old_checksum_is_read_when_asked(tmp_path):
    path = tmp_path / "edited"
    path.write_bytes(small_file(path)[:-1] + b"\x07")
    with pytest.raises(ValueError, match="verify=False"):
        read_safetensors(path)
    np.testing.assert_array_equal(read_safetensors(path, verify=False)["c"], [[1], [0x701]])


def test_values_that_are_not_finite_are_named():
    check_finite({"ids": np.arange(3), "ok": np.ones(2), "none": np.zeros(0)}, "file")
    for bad in np.nan, np.inf:
        with pytest.raises(ValueError, match=r"file: tensor 'w' holds a value that is not finite"):
            check_finite({"w": np.array([0, bad])}, "file")


# ---- shards ----

def shards(folder, weight_map=None):
    write_safetensors(folder / "a.safetensors", {"x": np.ones(2), "y": np.zeros(3)})
    write_safetensors(folder / "b.safetensors", {"z": np.arange(4)})
    weight_map = weight_map or {"x": "a.safetensors", "y": "a.safetensors", "z": "b.safetensors"}
    write_json(folder / "m.index.json", {"metadata": {"total_size": 72}, "weight_map": weight_map})
    return folder / "m.index.json"


def test_shards_are_read_as_one(tmp_path):
    assert_same(read_sharded(shards(tmp_path)),
                {"x": np.ones(2), "y": np.zeros(3), "z": np.arange(4)})


@pytest.mark.parametrize(("weight_map", "fault"), [
    ({"x": "a.safetensors", "y": "a.safetensors", "q": "b.safetensors"}, "'q' is not in b"),
    ({"x": "a.safetensors", "z": "b.safetensors"}, "'y' is not expected in a"),
    ({"x": "../a.safetensors"}, "not the name of a file beside it"),
    ({"x": 3}, "no such file"),
    ([], "has no 'weight_map'"),
])
def test_shards_that_disagree_with_their_index_are_named(tmp_path, weight_map, fault):
    path = shards(tmp_path)
    write_json(path, {"weight_map": weight_map})
    with pytest.raises((ValueError, FileNotFoundError), match=fault):
        read_sharded(path)
