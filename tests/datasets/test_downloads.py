"""Downloads against a server on this machine: whole or not at all, continued, checked, never outside the folder."""

import hashlib
import io
import os
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from hsic_lab.datasets._published import SOURCES, Source, fetch, resume, unpack

CONTENT = {"tiny-set/a.bin": os.urandom(3 << 20), "tiny-set/deep/b.txt": b"names"}


def tarball(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def zipped(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in members.items():
            file.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


ARCHIVES = {"set.tar.gz": tarball(CONTENT), "set.zip": zipped(CONTENT)}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, name = self.server, self.path.lstrip("/")
        if name not in server.files:
            return self.send_error(404)
        content, begin = server.files[name], 0
        if server.ranges and "Range" in self.headers:
            begin = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if begin >= len(content):
                return self.send_error(416)
        server.asked.append(begin)
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        end = len(content) if server.cut is None else server.cut
        self.wfile.write(content[begin:end])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files, server.asked, server.cut, server.ranges = dict(ARCHIVES), [], None, True
        server.url = f"http://127.0.0.1:{server.server_address[1]}/"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def source(server, name, md5=None, files=("a.bin", "deep/b.txt")):
    md5 = md5 or hashlib.md5(ARCHIVES[name]).hexdigest()
    return Source("Tiny set", "tiny-set", files, {server.url + name: md5})


def listing(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_becomes_its_folder_and_nothing_else(server, tmp_path, name):
    data = tmp_path / "new" / "data"
    assert fetch(source(server, name), data, progress=False) == data / "tiny-set"
    assert listing(data) == sorted(CONTENT) and sorted(os.listdir(data)) == ["tiny-set"]
    assert all((data / file).read_bytes() == content for file, content in CONTENT.items())
    fetch(source(server, name), data, progress=False)
    assert len(server.asked) == 1, "what is there is not downloaded again"


def test_plain_files_go_into_the_folder(server, tmp_path):
    server.files |= {"x.gz": b"x", "y.gz": b"y"}
    plain = Source("Plain", "plain", ("x.gz", "y.gz"),
                   {server.url + f"{c}.gz": hashlib.md5(c.encode()).hexdigest() for c in "xy"})  # fmt: skip
    fetch(plain, tmp_path, progress=False)
    assert listing(tmp_path) == ["plain/x.gz", "plain/y.gz"]
    (tmp_path / "plain/y.gz").unlink()
    fetch(plain, tmp_path, progress=False)
    assert listing(tmp_path) == ["plain/x.gz", "plain/y.gz"] and len(server.asked) == 3


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_continues(server, tmp_path, ranges):
    server.cut, server.ranges = 1 << 20, ranges
    with pytest.raises(OSError, match=r"ended after 1048576 of .* run it again to continue"):
        fetch(source(server, "set.zip"), tmp_path, progress=False)
    assert listing(tmp_path) == ["set.zip.part"]
    server.cut = None
    fetch(source(server, "set.zip"), tmp_path, progress=False)
    assert listing(tmp_path) == sorted(CONTENT)
    assert server.asked == [0, 1 << 20 if ranges else 0]


def test_a_part_that_is_already_whole_is_taken(server, tmp_path):
    (tmp_path / "set.zip.part").write_bytes(ARCHIVES["set.zip"])
    fetch(source(server, "set.zip"), tmp_path, progress=False)
    assert listing(tmp_path) == sorted(CONTENT) and server.asked == []


@pytest.mark.parametrize("left", [b"", b"something else " * 9])
def test_a_wrong_sum_leaves_nothing(server, tmp_path, left):
    if left:
        (tmp_path / "set.zip.part").write_bytes(left)
    with pytest.raises(ValueError, match=r"(?i)hash"):
        fetch(source(server, "set.zip", None if left else "0" * 32), tmp_path, progress=False)
    assert listing(tmp_path) == []


def test_the_bar_counts_what_was_there_already(server, tmp_path, capsys):
    part = tmp_path / "part"
    part.write_bytes(ARCHIVES["set.zip"][: 2 << 20])
    resume(server.url + "set.zip", tmp_path / "out", part)
    assert (tmp_path / "out").read_bytes() == ARCHIVES["set.zip"] and not part.exists()
    assert "100%" in capsys.readouterr().err


def test_servers_that_fail(server, tmp_path):
    with pytest.raises(OSError, match="404"):
        resume(server.url + "nothing.zip", tmp_path / "out", tmp_path / "part")
    with pytest.raises(OSError, match="cannot be reached"):
        resume("http://127.0.0.1:9/set.zip", tmp_path / "out", tmp_path / "part")
    assert listing(tmp_path) == []


def test_a_set_that_is_half_there_is_not_overwritten(server, tmp_path):
    (tmp_path / "tiny-set").mkdir()
    (tmp_path / "tiny-set" / "a.bin").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"without deep/b.txt: delete or move it"):
        fetch(source(server, "set.zip"), tmp_path, progress=False)
    assert (tmp_path / "tiny-set" / "a.bin").read_bytes() == b"mine" and server.asked == []


def test_an_archive_without_a_needed_file(server, tmp_path):
    with pytest.raises(ValueError, match=r"did not hold c.bin, which Tiny set needs"):
        fetch(source(server, "set.zip", files=("a.bin", "c.bin")), tmp_path, progress=False)


ESCAPES = ["../outside.bin", "tiny-set/../../outside.bin", "/tmp/outside.bin"]


@pytest.mark.parametrize("make, suffix", [(tarball, "tar.gz"), (zipped, "zip")])
@pytest.mark.parametrize("name", [*ESCAPES, "..\\outside.bin", "C:\\outside.bin"])
def test_no_member_leaves_the_folder(tmp_path, make, suffix, name):
    if make is tarball and "\\" in name:
        pytest.skip("a plain file name to tar here")
    home = tmp_path / "home"
    home.mkdir()
    archive = home / f"set.{suffix}"
    archive.write_bytes(make({**CONTENT, name: b"escaped"}))
    if name.startswith("/") and make is tarball:  # the data filter makes it relative
        unpack(archive, home / "tiny-set")
        assert listing(home / "tiny-set") == ["a.bin", "deep/b.txt"]
    else:
        with pytest.raises(ValueError, match="outside"):
            unpack(archive, home / "tiny-set")
        assert listing(tmp_path) == [f"home/set.{suffix}"]
    assert not [path for path in tmp_path.rglob("*outside.bin")]


def test_a_link_out_of_the_archive_is_refused(tmp_path):
    with tarfile.open(tmp_path / "set.tar.gz", "w:gz") as file:
        link = tarfile.TarInfo("tiny-set/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        file.addfile(link)
    with pytest.raises(ValueError, match=r"cannot be unpacked.*Delete it"):
        unpack(tmp_path / "set.tar.gz", tmp_path / "tiny-set")
    assert listing(tmp_path) == ["set.tar.gz"]


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"<html>", lambda b: b""])
def test_a_damaged_archive_leaves_nothing(tmp_path, name, damage):
    (tmp_path / name).write_bytes(damage(ARCHIVES[name]))
    with pytest.raises(ValueError, match="cannot be unpacked"):
        unpack(tmp_path / name, tmp_path / "tiny-set")
    assert listing(tmp_path) == [name]


def test_an_archive_of_something_else(tmp_path):
    (tmp_path / "set.zip").write_bytes(zipped({"other/file": b""}))
    with pytest.raises(ValueError, match="holds no folder tiny-set"):
        unpack(tmp_path / "set.zip", tmp_path / "tiny-set")


def test_every_source_is_pinned():
    for known in SOURCES.values():
        for url, md5 in known.downloads.items():
            assert url.startswith(("https://", "http://")) and len(bytes.fromhex(md5)) == 16
            assert url.endswith((".tar.gz", ".zip")) or url.rpartition("/")[2] in known.files
