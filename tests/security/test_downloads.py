"""What is fetched: from where it was asked, no longer than it can be, and used only with the published digest."""

import gzip
import hashlib
import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from strangers import SECRET, bounded

from pipeline.data.sources import fetch, mnist, packages
from pipeline.data.sources.fetch import DataFile, Download, Unavailable, obtain
from pipeline.errors import UserError

CONTENT = b"x" * 1000
Answer = Callable[[BaseHTTPRequestHandler], None]


def wanted(mirror: str) -> Download:
    def nothing(names: object, to: Path) -> None:
        raise Unavailable("there is none")

    file = DataFile("file", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
    return Download(name="tiny", files=(file,), mirrors=(mirror,), package="the package", unpack=nothing)


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], str]]:
    """Starts a web server that answers every request in a given way; its address."""
    servers = []

    def start(answer: Answer) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer(self)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def redirect(to: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", to)
        handler.end_headers()

    return answer


def body(data: bytes, *headers: tuple[str, str], times: int = 1) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        for name, value in headers:
            handler.send_header(name, value)
        handler.end_headers()
        try:
            for _ in range(times):
                handler.wfile.write(data)
        except OSError:
            pass  # it was told enough

    return answer


def refused(address: str, home: Path) -> str:
    """Why the mirror's file was not taken; nothing is left of it."""
    with bounded(100, 20), pytest.raises(UserError) as error:
        obtain(wanted(address), None, home / "downloads")
    assert not (home / "downloads").exists() or list((home / "downloads").rglob("*.*")) == []
    assert not (home / "downloads" / "tiny" / "file").exists()
    (line,) = [line for line in str(error.value).splitlines() if line.startswith(f"  tried {address}")]
    return line


def test_a_file_with_another_digest_is_refused_and_removed(home: Path, serve: Callable[[Answer], str]) -> None:
    line = refused(serve(body(gzip.compress(b"y" * 1000))), home)
    assert f"not the published file: expected sha256 {hashlib.sha256(CONTENT).hexdigest()}, found" in line
    assert obtain(wanted(serve(body(gzip.compress(CONTENT)))), None, home / "downloads") == {"file": CONTENT}


@pytest.mark.parametrize("scheme", ["file://{secret}", "ftp://127.0.0.1/x", "data:text/plain,x", "gopher://127.0.0.1/"])
def test_a_redirect_to_another_kind_of_address_is_not_followed(
    home: Path, serve: Callable[[Answer], str], scheme: str
) -> None:
    line = refused(serve(redirect(scheme.format(secret=home.parent / "secret"))), home)
    assert "No connection adapters were found" in line
    assert SECRET.decode() not in line


def test_a_redirect_without_end_ends(home: Path, serve: Callable[[Answer], str]) -> None:
    assert "Exceeded 30 redirects" in refused(serve(redirect("/again")), home)


def test_a_file_without_end_is_not_fetched_to_its_end(home: Path, serve: Callable[[Answer], str]) -> None:
    line = refused(serve(body(bytes(1024**2), times=100_000)), home)
    assert line.endswith("too long: expected at most 1,049,576 bytes, found more")


def test_an_answer_that_inflates_without_end_is_not_kept(home: Path, serve: Callable[[Answer], str]) -> None:
    data = gzip.compress(bytes(64 * 1024**2), 1)
    line = refused(serve(body(data, ("Content-Encoding", "gzip"))), home)
    assert line.endswith("too long: expected at most 1,049,576 bytes, found more")


def test_a_content_that_inflates_without_end_is_not_kept(home: Path, serve: Callable[[Answer], str]) -> None:
    assert "too long: expected 1,000 bytes, found more" in refused(
        serve(body(gzip.compress(bytes(64 * 1024**2), 1))), home
    )


def test_headers_that_are_none_are_a_reason(home: Path, serve: Callable[[Answer], str]) -> None:
    refused(serve(body(gzip.compress(CONTENT), ("Content-Length", "many"))), home)


def test_every_download_has_a_digest_and_a_length() -> None:
    for download in (mnist.MNIST.download, mnist.FASHION_MNIST.download):
        assert download.files
        for file in download.files:
            assert len(bytes.fromhex(file.sha256)) == 32
            assert 0 < file.size < packages.MOST_BYTES
    assert fetch.PACKED_EXTRA < 2 * 1024**2


def tgz(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def link(kind: bytes, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo("package/file")
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
@pytest.mark.parametrize("target", ["../../secret", "/etc/passwd", "package/file", "package/other"])
def test_a_package_gives_files_and_follows_no_links(home: Path, kind: bytes, target: str) -> None:
    (home / "a.tgz").write_bytes(tgz((link(kind, target), b"")))
    packages._extract(home / "a.tgz", "package", ["file"], home)
    assert {path.name for path in home.iterdir()} == {"a.tgz"}


def test_a_package_that_is_damaged_or_too_large_is_a_reason(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "MOST_BYTES", 100)
    info = tarfile.TarInfo("package/file")
    info.size = 101
    whole = tgz((info, b"x" * 101))
    for data in (whole, whole[:-20], whole[:20] + b"\0\0\0" + whole[23:], b"", b"no archive"):
        (home / "a.tgz").write_bytes(data)
        with pytest.raises(Unavailable, match=r"expected at most 100 bytes, found 101|a damaged archive"):
            packages._extract(home / "a.tgz", "package", ["file"], home)
