"""Array files: the three formats are read alike and lazily, and a damaged file is refused in words when it is opened."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from tracediff.tensors.files import ArrayFileError, open_array_file, open_npy

X = np.arange(6, dtype=np.float32).reshape(2, 3)


def safetensors(path: Path, head: dict[str, Any], data: bytes) -> Path:
    text = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize("form", ["a.npz", "a.safetensors"])
def test_values_shapes_and_dtypes_are_the_same_from_either_format(tmp_path: Path, form: str) -> None:
    named = {"x": X, "half": X.astype(ml_dtypes.bfloat16), "scalar": np.array(2.5, np.float64), "empty": np.zeros((0, 3), np.int8)}
    np.savez(tmp_path / "a.npz", **named) if form == "a.npz" else save_file(named, tmp_path / form)  # type: ignore[arg-type]
    read = {array.name: array for array in open_array_file(tmp_path / form).arrays}
    assert read.keys() == named.keys()
    for name, value in named.items():
        assert read[name].shape == value.shape
        assert read[name].read().dtype == value.dtype
        assert read[name].read().tobytes() == value.tobytes()


@pytest.mark.parametrize("form", ["a.npz", "a.safetensors"])
def test_a_file_that_is_replaced_after_it_was_opened_is_read_as_it_was(tmp_path: Path, form: str) -> None:
    def save(path: Path, value: Any) -> None:
        np.savez(path, x=value) if form == "a.npz" else save_file({"x": value}, path)

    save(tmp_path / form, X)
    array = open_array_file(tmp_path / form).arrays[0]
    save(tmp_path / f"new.{form}", np.zeros((50, 50), np.float32))
    (tmp_path / f"new.{form}").replace(tmp_path / form)
    np.testing.assert_array_equal(array.read(), X)


def test_big_endian_arrays_are_read_by_value(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X.astype(">f4"))
    np.testing.assert_array_equal(open_npy(tmp_path / "x.npy", "x", tmp_path).read(), X)


def npz_cut_inside(path: Path) -> Path:
    """An .npz whose member promises more values than it holds."""
    np.save(path / "x.npy", X)
    with zipfile.ZipFile(path / "a.npz", "w") as archive:
        archive.writestr("x.npy", (path / "x.npy").read_bytes()[:-4])
    return path / "a.npz"


def with_damaged_header(path: Path) -> Path:
    with zipfile.ZipFile(path / "a.npz", "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00\x10\x00{'descr': broken}")
    return path / "a.npz"


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (npz_cut_inside, "'x' in .* cannot be read: its shape .* does not fit into its"),
        (with_damaged_header, "'x' in .* cannot be read"),
        (lambda path: safetensors(path / "a.safetensors", {"x": ENTRY, "y": ENTRY}, bytes(8)), "no .safetensors file"),
        (lambda path: safetensors(path / "a.safetensors", {"x": ENTRY}, bytes(12)), "no .safetensors file"),
        (lambda path: safetensors(path / "a.safetensors", {"x": ENTRY | {"shape": [-2]}}, bytes(8)), "does not fit into the file"),
        (lambda path: safetensors(path / "a.safetensors", {"x": ENTRY | {"shape": "?"}}, bytes(8)), "not described as the format asks"),
        (lambda path: path / "absent.npz", "is no .npz file"),
        (lambda path: path / "absent.safetensors", "is no .safetensors file"),
        (lambda path: path / "a.txt", "is no .npz or .safetensors file"),
    ],
)
def test_a_bad_file_is_refused_when_it_is_opened(tmp_path: Path, make: Any, why: str) -> None:
    with pytest.raises(ArrayFileError, match=why):
        open_array_file(make(tmp_path))


def test_any_flipped_or_missing_byte_gives_an_array_file_error_or_the_old_shapes(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=X, y=X[0])
    save_file({"x": X, "y": X[0]}, tmp_path / "a.safetensors")
    random = np.random.default_rng(0)
    for form in ("a.npz", "a.safetensors"):
        whole = (tmp_path / form).read_bytes()
        for _ in range(150):
            damaged = bytearray(whole[: int(random.integers(1, len(whole) + 1))]) if random.random() < 0.5 else bytearray(whole)
            damaged[int(random.integers(len(damaged)))] ^= int(random.integers(1, 256))
            bad = tmp_path / f"bad-{form}"
            bad.unlink(missing_ok=True)
            bad.write_bytes(damaged)
            try:
                for array in open_array_file(bad).arrays:
                    assert array.raw().shape == array.shape
            except ArrayFileError:
                pass
