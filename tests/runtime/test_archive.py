"""An archive costs no more memory than its own size permits, whatever its headers claim."""

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import bundles
import numpy as np
import pytest

from pi_incubator.runtime import RuntimeBundleError, read_bundle
from pi_incubator.runtime._archive import MAX_HEADERS, MAX_MEMBERS

MB = 10**6
MAX_GROWTH_MB = 64
CLAIM = 1_500 * MB

# Prints by how many MB the peak of the process's memory grew, and what was said of each archive.
READER = """
import sys
from pi_incubator.runtime import RuntimeBundleError, read_bundle

def peak_kb():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

before = peak_kb()
for path in sys.argv[1:]:
    try:
        read_bundle(path)
        print("was read")
    except RuntimeBundleError as error:
        print(error)
print((peak_kb() - before) / 1000)
"""


def header(name, kind=tarfile.REGTYPE, size=0):
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def member(name, content, kind=tarfile.REGTYPE):
    return header(name, kind, len(content)) + content + bytes(-len(content) % 512)


def pax(records):
    """A PAX header of (key, value) pairs."""
    text = b""
    for key, value in records:
        length = len(key) + len(value) + 3
        length += len(str(length + len(str(length))))
        text += f"{length} {key}={value}\n".encode()
    return member("pax", text, tarfile.XHDTYPE)


def zeros(num_bytes):
    """Gzip of so many zeros, or up to 1 MB more."""
    return gzip.compress(bytes(MB)) * -(-num_bytes // MB)


END = bytes(1024)
FILE = member("b/contract.json", b"{}")


def with_contract(contract):
    """An archive whose contract is the one that its SHA256SUMS lists."""
    sums = f"{hashlib.sha256(contract).hexdigest()}  contract.json\n".encode()
    return gzip.compress(member("b/contract.json", contract) + member("b/SHA256SUMS", sums) + END)


GLOBALS = [member("x", f"13 a{i:06d}=b\n".encode(), tarfile.XGLTYPE) for i in range(20_000)]
LARGE_HEADERS = {
    f"header {kind}": (gzip.compress(header("x", kind, CLAIM)) + zeros(CLAIM), "header of 1500000000 bytes")
    for kind in (b"L", b"K", b"x", b"X", b"g")
}
BOMBS = LARGE_HEADERS | {
    "member": (gzip.compress(header("b/x", size=1000 * MB)) + zeros(1000 * MB), "expands to more than"),
    "large member": (gzip.compress(header("b/x", size=CLAIM)) + zeros(CLAIM), "holds more than"),
    "negative size": (gzip.compress(header("b/x", size=-5) + FILE), "has a size below 0"),
    "PAX size": (gzip.compress(pax([("size", str(10**18))]) + FILE), "holds more than"),
    "long PAX size": (gzip.compress(pax([("size", "9" * 5000)]) + FILE), "a wrong size"),
    "long names": (
        gzip.compress(member("x", b"y\0", tarfile.GNUTYPE_LONGNAME) * 10_000 + FILE),
        "headers before a file",
    ),
    "PAX headers": (gzip.compress(pax([("a", "b")]) * 10_000 + FILE), "headers before a file"),
    "global headers": (gzip.compress(b"".join(GLOBALS)), "headers before a file"),
    "small members": (gzip.compress(b"".join(header(f"b/{i}") for i in range(50_000))), "files"),
    "folders": (gzip.compress(header("b/", tarfile.DIRTYPE) * 50_000), "files"),
    "holes": (gzip.compress(header("b/x", tarfile.GNUTYPE_SPARSE, CLAIM) + bytes(10_240)), "holes"),
    "PAX holes": (gzip.compress(pax([("GNU.sparse.realsize", str(CLAIM))]) + FILE), "holes"),
    "deep contract": (
        gzip.compress(member("b/contract.json", b"[" * 10 * MB) + END),
        "SHA256SUMS: file not found",
    ),
    "large contract": (with_contract(b"[" * 10 * MB), "is not JSON (larger than"),
    "many lists": (with_contract(b"[" + b"[]," * 349_000 + b"[]]"), "is not an object"),
    "long sums": (gzip.compress(member("b/SHA256SUMS", b"\n" * 10 * MB) + END), "is larger than"),
    "empty": (b"", "cut short"),
    "zeros": (gzip.compress(END), "does not hold one folder"),
}


def test_memory_is_bounded_whatever_the_archive_claims(tmp_path):
    paths = []
    for i, (data, _) in enumerate(BOMBS.values()):
        paths.append(tmp_path / f"{i}.tar.gz")
        paths[-1].write_bytes(data)
    output = subprocess.run(
        [sys.executable, "-c", READER, *map(str, paths)], capture_output=True, text=True, check=True
    ).stdout
    *messages, growth_mb = output.splitlines()
    for (name, (_, expected)), message in zip(BOMBS.items(), messages, strict=True):
        assert expected in message, name
    assert float(growth_mb) < MAX_GROWTH_MB


def bundle_files(tmp_path):
    folder = bundles.mlp_bundle(tmp_path / "bundle")
    return folder, {path.name: path.read_bytes() for path in folder.iterdir()}


def write(path, *parts):
    path.write_bytes(gzip.compress(b"".join(parts) + END))
    return path


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_tarfile_writes_is_read(tmp_path, format):
    """Long names need a header of their own, and so do times that are no whole seconds in PAX."""
    folder, files = bundle_files(tmp_path)
    long_name = "n" * 90 + "/" + "m" * 60 + "ü"
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz", format=format) as archive:
        archive.add(folder, "top")
        info = tarfile.TarInfo(f"top/{long_name}")
        info.size, info.mtime = 3, 0.5 if format == tarfile.PAX_FORMAT else 0
        archive.addfile(info, io.BytesIO(b"abc"))
    assert read_bundle(tmp_path / "b.tar.gz").onnx == files["policy.onnx"]


def test_names_and_sizes_of_headers_count(tmp_path):
    """The file whose headers rename it is the contract; its block has another name, and no size."""
    _, files = bundle_files(tmp_path)
    contract = files.pop("contract.json")
    others = [member(f"top/{name}", content) for name, content in files.items()]
    content = contract + bytes(-len(contract) % 512)
    by_pax = [pax([("path", "top/contract.json"), ("size", str(len(contract)))]), header("x"), content]
    by_gnu = [member("x", b"top/contract.json\0", tarfile.GNUTYPE_LONGNAME), member("y", contract)]
    both = [by_gnu[0], pax([("mtime", "1.5")]), by_gnu[1]]
    ignored = [
        member("x", b"elsewhere\0", tarfile.GNUTYPE_LONGLINK),
        member("x", b"11 path=ab\n", tarfile.XGLTYPE),
        member("top/contract.json", contract),
    ]
    for i, parts in enumerate((by_pax, by_gnu, both, ignored)):
        archive = write(tmp_path / f"{i}.tar.gz", *parts, *others)
        assert read_bundle(archive).contract.raw == json.loads(contract)


@pytest.mark.parametrize(
    "record", [b"x path=a\n", b"9 path=a", b"99999999 path=a\n", b"8 path a\n", b"0 \n", b"path=a\n"]
)
def test_a_damaged_pax_record(tmp_path, record):
    path = write(tmp_path / "b.tar.gz", member("x", record, tarfile.XHDTYPE), FILE)
    with pytest.raises(RuntimeBundleError, match="a PAX record is damaged"):
        read_bundle(path)


def test_as_many_headers_and_files_as_are_permitted(tmp_path):
    _, files = bundle_files(tmp_path)
    names = [member("x", b"top/more\0", tarfile.GNUTYPE_LONGNAME)] * MAX_HEADERS
    parts = [member(f"top/{name}", content) for name, content in files.items()]
    more = [header(f"top/{i}") for i in range(MAX_MEMBERS - len(files) - 2)]
    read_bundle(write(tmp_path / "a.tar.gz", *names, header("y"), *parts, *more))
    with pytest.raises(RuntimeBundleError, match=f"more than {MAX_HEADERS} headers before a file"):
        read_bundle(write(tmp_path / "b.tar.gz", *names, names[0], header("y"), *parts))
    with pytest.raises(RuntimeBundleError, match=f"more than {MAX_MEMBERS} files"):
        read_bundle(write(tmp_path / "c.tar.gz", *parts, *more, *[header("top/z")] * 4))


def test_a_header_is_as_long_as_is_permitted(tmp_path):
    """64 kB, which no name or record of a bundle needs."""
    _, files = bundle_files(tmp_path)
    parts = [member(f"top/{name}", content) for name, content in files.items()]
    for size, is_read in ((64 * 1024, True), (64 * 1024 + 1, False)):
        name = b"top/" + b"n" * (size - 5) + b"\0"
        path = write(tmp_path / "b.tar.gz", member("x", name, tarfile.GNUTYPE_LONGNAME), header("y"), *parts)
        if is_read:
            read_bundle(path)
        else:
            with pytest.raises(RuntimeBundleError, match=r"has a header of 65537 bytes \(at most 65536\)"):
                read_bundle(path)


@pytest.mark.parametrize(("num_mb", "is_read"), [(15.9, True), (16.9, False)])
def test_how_much_any_archive_may_hold(tmp_path, num_mb, is_read):
    """16 MB, however well it is compressed: as well as zeros are."""
    model = bundles.mlp_onnx(hidden=2)
    folder = bundles.write_bundle(tmp_path / "bundle", model, states=[("last_action", 12)])
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    num_bytes = int(num_mb * 2**20) - sum(map(len, files.values()))
    parts = [member(f"top/{name}", content) for name, content in files.items()]
    path = write(tmp_path / "b.tar.gz", member("top/zeros", bytes(num_bytes)), *parts)
    if is_read:
        read_bundle(path)
    else:
        with pytest.raises(RuntimeBundleError, match="expands to more than 20 times its size"):
            read_bundle(path)


def test_an_archive_is_read_to_its_limit(tmp_path, monkeypatch):
    """All its headers and blocks count, and the first block of its end."""
    _, files = bundle_files(tmp_path)
    parts = [member(f"top/{name}", content) for name, content in files.items()]
    path, num_bytes = write(tmp_path / "b.tar.gz", *parts), len(b"".join(parts)) + 512
    monkeypatch.setattr("pi_incubator.runtime.bundle.MAX_BUNDLE_BYTES", num_bytes)
    assert read_bundle(path).onnx == files["policy.onnx"]
    monkeypatch.setattr("pi_incubator.runtime.bundle.MAX_BUNDLE_BYTES", num_bytes - 1)
    with pytest.raises(RuntimeBundleError, match=f"holds more than {num_bytes - 1} bytes"):
        read_bundle(path)


def test_a_folder_is_read_to_its_limit(tmp_path, monkeypatch):
    """The sum of its files, without the list of their hashes, which has a limit of its own."""
    folder, files = bundle_files(tmp_path)
    num_bytes = len(files["policy.onnx"]) + len(files["contract.json"])
    monkeypatch.setattr("pi_incubator.runtime.bundle.MAX_BUNDLE_BYTES", num_bytes)
    assert read_bundle(folder).onnx == files["policy.onnx"]
    monkeypatch.setattr("pi_incubator.runtime.bundle.MAX_BUNDLE_BYTES", num_bytes - 1)
    with pytest.raises(RuntimeBundleError, match=r"policy.onnx: has .* bytes, and only .* more may be read"):
        read_bundle(folder)


def test_large_weights_are_read(tmp_path):
    """24 MB, more than any archive may hold for nothing, of numbers as weights are."""
    weights = np.random.default_rng(0).normal(size=6 * MB).astype(np.float32).tobytes()
    _, files = bundle_files(tmp_path)
    parts = [member(f"top/{name}", content) for name, content in (files | {"weights": weights}).items()]
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(b"".join(parts) + END, 1))
    assert read_bundle(tmp_path / "b.tar.gz").onnx == files["policy.onnx"]


@pytest.mark.parametrize("name", ["policy.onnx", "SHA256SUMS", "contract.json"])
def test_a_file_of_a_folder_that_is_too_large(tmp_path, name, monkeypatch):
    """It is a file with a hole: nothing of it is read."""
    folder, _ = bundle_files(tmp_path)
    with (folder / name).open("r+b") as file:
        file.truncate(2**40)
    monkeypatch.setattr(Path, "read_bytes", read_what_is_small)
    with pytest.raises(RuntimeBundleError, match=f"{name}: has {2**40} bytes"):
        read_bundle(folder)


def read_what_is_small(path):
    assert path.stat().st_size < MB
    with path.open("rb") as file:
        return file.read()


@pytest.mark.timeout(10)
@pytest.mark.parametrize("name", ["policy.onnx", "SHA256SUMS"])
def test_a_pipe_in_a_folder_is_not_waited_for(tmp_path, name):
    folder, _ = bundle_files(tmp_path)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(RuntimeBundleError, match=f"{name}: is no regular file"):
        read_bundle(folder)


def test_sums_that_point_out_of_the_folder(tmp_path):
    folder, _ = bundle_files(tmp_path)
    (folder / "SHA256SUMS").rename(tmp_path / "outside")
    (folder / "SHA256SUMS").symlink_to(tmp_path / "outside")
    with pytest.raises(RuntimeBundleError, match="SHA256SUMS: points out of the bundle"):
        read_bundle(folder)
