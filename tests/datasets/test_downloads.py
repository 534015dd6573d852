"""Downloads from a local server: sums are checked, unpacking is atomic, no member leaves the folder."""

import hashlib
import io
import os
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from hsic_lab.datasets import download
from hsic_lab.datasets._published import SOURCES, Source, unpack

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
        server.asked += 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(server.files[name])))
        self.end_headers()
        end = server.cut if server.asked <= server.failures else None
        self.wfile.write(server.files[name][:end])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # pooch waits before each retry
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files, server.asked, server.cut, server.failures = dict(ARCHIVES), 0, None, 100
        server.url = f"http://127.0.0.1:{server.server_address[1]}/"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def source(server, name, md5=None, files=("a.bin", "deep/b.txt")):
    md5 = md5 or hashlib.md5(ARCHIVES[name]).hexdigest()
    return Source("Tiny set", "tiny-set", files, {server.url + name: md5})


def fetch(source, folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SOURCES, "tiny_set", source)
        return download("tiny_set", folder)


def listing(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return sorted(path.relative_to(folder).as_posix() for path in files)


@pytest.mark.parametrize("name", ARCHIVES)
def test_archive_becomes_its_folder_and_nothing_else(server, tmp_path, name):
    data = tmp_path / "new" / "data"
    assert fetch(source(server, name), data) == data / "tiny-set"
    assert listing(data) == sorted(CONTENT) and sorted(os.listdir(data)) == ["tiny-set"]
    assert all((data / file).read_bytes() == content for file, content in CONTENT.items())
    fetch(source(server, name), data)
    assert server.asked == 1, "a complete set is not downloaded again"


def test_plain_files_go_into_the_folder(server, tmp_path):
    server.files |= {"x.gz": b"x", "y.gz": b"y"}
    plain = Source("Plain", "plain", ("x.gz", "y.gz"),
                   {server.url + f"{c}.gz": hashlib.md5(c.encode()).hexdigest() for c in "xy"})  # fmt: skip
    fetch(plain, tmp_path)
    assert listing(tmp_path) == ["plain/x.gz", "plain/y.gz"]
    (tmp_path / "plain/y.gz").unlink()
    fetch(plain, tmp_path)
    assert listing(tmp_path) == ["plain/x.gz", "plain/y.gz"] and server.asked == 3


def test_interrupted_download_leaves_nothing_and_starts_again(server, tmp_path):
    server.cut = 1 << 20
    with pytest.raises(
        OSError, match=r"set.zip cannot be downloaded.*Try again; or save it, .* MD5 sum [0-9a-f]{32}, as .*set.zip"
    ):
        fetch(source(server, "set.zip"), tmp_path)
    assert listing(tmp_path) == [] and server.asked == 3, "two retries"
    server.cut = None
    fetch(source(server, "set.zip"), tmp_path)
    assert listing(tmp_path) == sorted(CONTENT)


def test_retry_after_a_failure(server, tmp_path):
    server.cut, server.failures = 1 << 20, 2
    fetch(source(server, "set.tar.gz"), tmp_path)
    assert listing(tmp_path) == sorted(CONTENT) and server.asked == 3


def test_archive_that_is_there_already_is_used(server, tmp_path):
    (tmp_path / "set.zip").write_bytes(ARCHIVES["set.zip"])
    fetch(source(server, "set.zip"), tmp_path)
    assert listing(tmp_path) == sorted(CONTENT) and server.asked == 0


def test_damaged_archive_that_is_there_already_is_downloaded_again(server, tmp_path):
    (tmp_path / "set.zip").write_bytes(b"something else " * 9)
    fetch(source(server, "set.zip"), tmp_path)
    assert listing(tmp_path) == sorted(CONTENT) and server.asked == 1


def test_wrong_sum_leaves_nothing(server, tmp_path):
    with pytest.raises(ValueError, match=r"(?i)hash"):
        fetch(source(server, "set.zip", "0" * 32), tmp_path)
    assert listing(tmp_path) == []


def test_progress_bar_in_a_terminal(server, tmp_path, capsys, monkeypatch):
    fetch(source(server, "set.zip"), tmp_path / "b")
    assert "%" not in capsys.readouterr().err, "a bar would fill a log"
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    fetch(source(server, "set.zip"), tmp_path / "c")
    assert "100%" in capsys.readouterr().err


def test_servers_that_fail(server, tmp_path):
    md5 = "0" * 32
    with pytest.raises(OSError, match="404"):
        fetch(Source("Tiny set", "tiny-set", ("a.bin",), {server.url + "nothing.zip": md5}), tmp_path)
    with pytest.raises(OSError, match=r"cannot be downloaded.*refused"):
        fetch(Source("Tiny set", "tiny-set", ("a",), {"http://127.0.0.1:9/set.zip": md5}), tmp_path)
    assert listing(tmp_path) == []


def test_incomplete_set_is_completed_and_its_files_stay(server, tmp_path):
    (tmp_path / "tiny-set").mkdir()
    (tmp_path / "tiny-set" / "a.bin").write_bytes(b"mine")
    incomplete = source(server, "set.zip")
    assert incomplete.missing(tmp_path) == ["deep/b.txt"]
    fetch(incomplete, tmp_path)
    assert listing(tmp_path) == sorted(CONTENT) and incomplete.missing(tmp_path) == []
    assert (tmp_path / "tiny-set" / "a.bin").read_bytes() == b"mine"
    assert (tmp_path / "tiny-set" / "deep" / "b.txt").read_bytes() == CONTENT["tiny-set/deep/b.txt"]


def test_killed_unpacking_is_incomplete_and_completed(server, tmp_path, monkeypatch):
    whole = tarfile.TarFile.extractall

    def killed(self, path, **options):
        whole(self, path, members=self.getmembers()[:1], **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "extractall", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch(source(server, "set.tar.gz"), tmp_path)
    assert listing(tmp_path) == ["set.tar.gz"] and source(server, "set.tar.gz").missing(tmp_path)
    fetch(source(server, "set.tar.gz"), tmp_path)
    assert listing(tmp_path) == sorted(CONTENT) and server.asked == 1


@pytest.mark.parametrize("name", ARCHIVES)
def test_several_downloads_at_once(server, tmp_path, name):
    known = source(server, name)
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(3) as pool:
        patch.setitem(SOURCES, "tiny_set", known)
        assert len(set(pool.map(lambda _: download("tiny_set", tmp_path), range(3)))) == 1
    assert listing(tmp_path) == sorted(CONTENT) and server.asked == 1 and os.listdir(tmp_path) == ["tiny-set"]


@pytest.mark.parametrize("ready", [False, True])
def test_leftovers_of_a_killed_process_are_removed(server, tmp_path, ready):
    if ready:
        fetch(source(server, "set.zip"), tmp_path)
    for left in (".tiny-set.part/tmpabcd/tiny-set/a.bin", ".tiny-set.part/set.zip", ".tiny-set.backup/a.bin"):
        (tmp_path / left).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / left).write_bytes(b"half")
    (tmp_path / ".tiny-set.lock").touch()
    (tmp_path / ".tiny-set.notes").touch()
    fetch(source(server, "set.zip"), tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".tiny-set.backup", ".tiny-set.notes", "tiny-set"], "others stay"
    assert server.asked == 1


@pytest.mark.parametrize("name", ["set.zip", "tiny-set/x.gz"])
def test_files_of_the_user_stay_if_nothing_better_comes(server, tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"not what it should be")
    gone = {f"{server.url}gone/{name.rpartition('/')[2]}": "0" * 32}
    for _ in range(2):
        with pytest.raises(OSError, match=rf"404.*MD5 sum {'0' * 32}, as {tmp_path / name}, then"):
            fetch(Source("Tiny set", "tiny-set", ("x.gz", "y.gz"), gone), tmp_path)
        assert (tmp_path / name).read_bytes() == b"not what it should be"


def test_error_of_a_full_disk_names_archive_and_folder(server, tmp_path, monkeypatch):
    def full(self, *arguments, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "open", full)
        patch.setattr(tarfile.TarFile, "extractall", full)
        with pytest.raises(OSError, match=rf"{tmp_path}/set.tar.gz cannot be unpacked in {tmp_path}: .* No space left"):
            fetch(source(server, "set.tar.gz"), tmp_path)
    fetch(source(server, "set.tar.gz"), tmp_path)
    assert listing(tmp_path) == sorted(CONTENT) and server.asked == 1


def test_archive_without_a_needed_file(server, tmp_path):
    with pytest.raises(ValueError, match=r"did not hold c.bin, which Tiny set needs"):
        fetch(source(server, "set.zip", files=("a.bin", "c.bin")), tmp_path)


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
    if name.startswith("/") or make is zipped:  # the path is made relative
        unpack(archive, home / "tiny-set", [], home)
        assert {"a.bin", "deep/b.txt"} <= set(listing(home / "tiny-set"))
    else:
        with pytest.raises(ValueError, match="outside"):
            unpack(archive, home / "tiny-set", [], home)
        assert listing(tmp_path) == [f"home/set.{suffix}"]
    assert not [path for path in tmp_path.rglob("*outside.bin") if home / "tiny-set" not in path.parents]


def test_link_out_of_the_archive_is_refused(tmp_path):
    with tarfile.open(tmp_path / "set.tar.gz", "w:gz") as file:
        link = tarfile.TarInfo("tiny-set/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        file.addfile(link)
    with pytest.raises(ValueError, match=r"cannot be unpacked.*Delete it"):
        unpack(tmp_path / "set.tar.gz", tmp_path / "tiny-set", [], tmp_path)
    assert listing(tmp_path) == ["set.tar.gz"]


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"<html>", lambda b: b""])
def test_damaged_archive_leaves_nothing(tmp_path, name, damage):
    (tmp_path / name).write_bytes(damage(ARCHIVES[name]))
    with pytest.raises(ValueError, match="cannot be unpacked"):
        unpack(tmp_path / name, tmp_path / "tiny-set", [], tmp_path)
    assert listing(tmp_path) == [name]


def test_archive_without_the_folder(tmp_path):
    (tmp_path / "set.zip").write_bytes(zipped({"other/file": b""}))
    with pytest.raises(ValueError, match="holds no folder tiny-set"):
        unpack(tmp_path / "set.zip", tmp_path / "tiny-set", [], tmp_path)


def test_every_source_has_a_url_and_an_md5():
    for known in SOURCES.values():
        for url, md5 in known.downloads.items():
            assert url.startswith(("https://", "http://")) and len(bytes.fromhex(md5)) == 16
            assert url.endswith((".tar.gz", ".zip")) or url.rpartition("/")[2] in known.files
