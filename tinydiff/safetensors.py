"""Safetensors files, read with suspicion and written atomically.

Such a file is a length, a JSON header and raw bytes::

    8 bytes        N, little-endian
    N bytes        {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}
    the rest       the tensors' values, little-endian, in C order, with no hole between them

so that a few lines read it, map it into memory, and run nothing that the file says; there is no
pickle anywhere in this project.  Files written here also carry a checksum among the metadata (the
text that the format lets a header hold), so damage to them is found wherever it is.  In a file by
another program a changed value cannot be told from a true one: only its structure can be checked.

References
----------
.. [1] Hugging Face, "Safetensors: format", 2022, github.com/huggingface/safetensors.
"""

import json
import mmap
import os
import zlib
from collections import Counter
from itertools import pairwise
from math import prod
from pathlib import Path

import numpy as np

from tinydiff.atomic import not_read, replacing
from tinydiff.jsonfile import read_object

DTYPES = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"), "U32": np.dtype("<u4"), "U16": np.dtype("<u2"), "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
CHECKSUM = "tinydiff.crc32"          # its key among the metadata


# ---- reading ----

def read_safetensors(path, verify=True):
    """Map a safetensors file into memory.

    Parameters
    ----------
    path : path-like
    verify : bool, default True
        Compare the bytes with the file's checksum, if it has one (reads the whole file once).

    Returns
    -------
    tensors : dict of str to ndarray
        In the file's order; read-only views of the file, so a value is read from the disk when it
        is first used.  bfloat16, which NumPy lacks, is widened to float32: a copy, and exact.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is truncated, damaged or not in this format; names the file and the fault.
    """
    path = Path(path)
    buffer = _map_file(path)
    try:
        entries, metadata, start = _parse_header(buffer)
        if verify and CHECKSUM in metadata:
            _check_checksum(entries, metadata, memoryview(buffer)[start:])
        return {name: _view(buffer, start, name, entry) for name, entry in entries.items()}
    except (ValueError, RecursionError) as fault:
        raise ValueError(f"{path}: damaged, or not a safetensors file: {fault}") from fault


def _map_file(path):
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            # An empty file cannot be mapped, and some file systems map nothing at all.
            try:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
            except OSError:
                return file.read()
    except OSError as error:
        raise not_read(path, error) from error


def _parse_header(buffer):
    """Return ``(entries, metadata, start)``, having checked all but the values."""
    if len(buffer) < 8:
        raise ValueError(f"{len(buffer)} bytes are too few for the header's length")
    size = int.from_bytes(buffer[:8], "little")
    start = 8 + size
    if start > len(buffer):
        raise ValueError(f"the header should end at byte {start}, the file at {len(buffer)}")
    if buffer[8:9] != b"{":
        raise ValueError("the header does not begin with '{'")

    header = json.loads(buffer[8:start].decode(), object_pairs_hook=_unique)
    metadata = header.pop("__metadata__", {})
    if not (isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())):
        raise ValueError("the metadata is not a table of text")
    for name, entry in header.items():
        _check_entry(name, entry)
    _check_layout(header, len(buffer) - start)
    return header, metadata, start


def _unique(pairs):
    """Build a dict from JSON's pairs, refusing a name that comes twice."""
    table = dict(pairs)
    if len(table) < len(pairs):
        (name, times), = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{name!r} comes {times} times")
    return table


def _check_entry(name, entry):
    """Check that one tensor's dtype and shape explain the bytes it claims."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r} lacks its dtype, shape or data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype != "BF16" and not (isinstance(dtype, str) and dtype in DTYPES):
        raise ValueError(f"tensor {name!r} has dtype {dtype!r}; read here: BF16, "
                         + ", ".join(DTYPES))
    for numbers in shape, offsets:
        # True is an int to Python, and no size.
        if not (isinstance(numbers, list) and all(type(n) is int and n >= 0 for n in numbers)):
            raise ValueError(f"tensor {name!r}: {numbers!r} is not a list of sizes")
    if len(offsets) != 2:
        raise ValueError(f"tensor {name!r} has {len(offsets)} offsets, not 2")
    needed = prod(shape) * (2 if dtype == "BF16" else DTYPES[dtype].itemsize)
    if offsets[1] - offsets[0] != needed:
        raise ValueError(f"tensor {name!r}, {dtype} of shape {tuple(shape)}, needs {needed} bytes "
                         f"and has {offsets[1] - offsets[0]}")


def _check_layout(entries, size):
    """Check that the tensors fill `size` bytes with neither overlap nor hole."""
    spans = sorted((*entry["data_offsets"], name) for name, entry in entries.items())
    for (_, end, before), (begin, _, name) in pairwise([(0, 0, None), *spans]):
        if begin != end:
            what = "overlaps" if begin < end else "leaves a hole after"
            raise ValueError(f"tensor {name!r} {what} {before!r}")
    end = spans[-1][1] if spans else 0
    if end != size:
        raise ValueError(f"its tensors hold {end} bytes, the file has {size} for them")


def _view(buffer, start, name, entry):
    """One tensor as a view of the file's bytes."""
    shape, (begin, end) = entry["shape"], entry["data_offsets"]
    widen = entry["dtype"] == "BF16"
    dtype = DTYPES["U16" if widen else entry["dtype"]]
    try:
        values = np.frombuffer(buffer, dtype, (end - begin) // dtype.itemsize, start + begin)
        if entry["dtype"] == "BOOL" and (values.view(np.uint8) > 1).any():
            raise ValueError("a BOOL is neither 0 nor 1")
        if widen:
            # bfloat16 is the upper half of a float32.
            values = (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return values.reshape(shape)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"tensor {name!r}: {error}") from error


def _checksum(entries, metadata, chunks):
    """CRC-32 of all that the file says, whatever the header's spacing."""
    others = {key: text for key, text in metadata.items() if key != CHECKSUM}
    crc = zlib.crc32(json.dumps([entries, others], sort_keys=True).encode())
    for chunk in chunks:
        crc = zlib.crc32(chunk, crc)
    return f"{crc:08x}"


def _check_checksum(entries, metadata, data):
    if _checksum(entries, metadata, [data]) != metadata[CHECKSUM]:
        raise ValueError("its checksum does not match its contents (verify=False reads it anyway, "
                         "should another program have edited the file)")


def read_sharded(index_path, verify=True):
    """Read the tensors that a ``*.safetensors.index.json`` spreads over several files.

    Parameters
    ----------
    index_path : path-like
        Its ``weight_map`` says which file beside it holds which tensor.
    verify : bool, default True
        As in `read_safetensors`.

    Returns
    -------
    tensors : dict of str to ndarray

    Raises
    ------
    ValueError
        If a file is damaged, or does not hold exactly what the index says.
    """
    index_path = Path(index_path)
    weight_map = read_object(index_path).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"{index_path}: has no 'weight_map'")
    tensors = {}
    for file in sorted(set(map(str, weight_map.values()))):
        # An index may name its neighbours only, not any file of the machine.
        if file in ("", ".", "..") or any(c in file for c in "/\\:\0"):
            raise ValueError(f"{index_path}: {file!r} is not the name of a file beside it")
        shard = read_safetensors(index_path.with_name(file), verify)
        expected = {name for name, f in weight_map.items() if f == file}
        for name in sorted(expected ^ shard.keys()):
            fault = "is not in" if name in expected else "is not expected in"
            raise ValueError(f"{index_path}: tensor {name!r} {fault} {file}")
        tensors |= shard
    return tensors


def check_finite(tensors, path):
    """Refuse a tensor that holds a NaN or an infinity.

    Parameters
    ----------
    tensors : dict of str to ndarray
    path : path-like
        The file they belong to, for the message.

    Raises
    ------
    ValueError
        Naming the first such tensor.
    """
    for name, values in tensors.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ValueError(f"{path}: tensor {name!r} holds a value that is not finite")


# ---- writing ----

def write_safetensors(path, tensors, metadata=None):
    """Write host arrays as a safetensors file, atomically.

    Parameters
    ----------
    path : path-like
        Keeps its old contents if anything goes wrong.
    tensors : dict of str to ndarray
        Of any dtype in `DTYPES`.
    metadata : dict of str to str, optional
        Text to keep in the header; a checksum is added.

    Raises
    ------
    OSError
        If the file cannot be written (a full disk); says what became of the old one.
    """
    # The widest first, so that each tensor is aligned to its items, then by name: the same
    # tensors make the same file whatever their order.
    arrays = sorted(((name, np.asarray(values)) for name, values in tensors.items()),
                    key=lambda pair: (-pair[1].itemsize, pair[0]))
    names = {dtype: name for name, dtype in DTYPES.items()}
    entries, chunks, end = {}, [], 0
    for name, values in arrays:
        dtype = values.dtype.newbyteorder("<")
        if dtype not in names:
            raise TypeError(f"tensor {name!r} is {values.dtype}; a safetensors file holds "
                            + ", ".join(DTYPES))
        chunk = values.astype(dtype, order="C", copy=False).reshape(-1).view(np.uint8)
        begin, end = end, end + chunk.size
        entries[name] = {"dtype": names[dtype], "shape": list(values.shape),
                         "data_offsets": [begin, end]}
        chunks.append(chunk)

    metadata = {**(metadata or {}), CHECKSUM: _checksum(entries, metadata or {}, chunks)}
    header = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)            # the values begin on a multiple of 8
    with replacing(path) as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for chunk in chunks:
            file.write(chunk)
