"""Downloads from a real HTTP server on this machine, which can be slow, break off, lie or be gone;
the list of published files.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from rfdetr.config import VARIANTS
from rfdetr.weights import download as download_module
from rfdetr.weights.download import (
    BUNDLED,
    PUBLISHED,
    DownloadError,
    PublishedFile,
    cache_dir,
    download,
    fetch,
    other_dirs,
)

CONTENT = bytes(range(256)) * 1024  # 256 KiB
NAME = "rf-detr-test.pth"


@dataclass
class Site:
    """What the server does, and the Range header of each request that came (None without one)."""

    url: str = ""
    content: bytes = CONTENT
    ranges: bool = True
    cut_after: list[int] = field(default_factory=list)
    """Bytes after which to hang up, one entry a request; then no more."""
    statuses: list[int] = field(default_factory=list)
    """Error codes to answer first, one a request."""
    pause_s: float = 0.0
    requests: list[str | None] = field(default_factory=list)

    def file(self, md5: str | None = None) -> PublishedFile:
        return PublishedFile(
            NAME, f"{self.url}/files/{NAME}", md5 or hashlib.md5(CONTENT).hexdigest()
        )


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, serve: Callable[..., Any]) -> Iterator[Site]:
    site = Site()
    monkeypatch.setattr(download_module, "_PAUSE_S", 0.01)
    for variable in ("RFDETR_WEIGHTS_URL", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers["Range"]
            site.requests.append(asked)
            if site.statuses:
                return self.send_error(site.statuses.pop(0))
            if not self.path.endswith(NAME):
                return self.send_error(404)
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and site.ranges else 0
            if start >= len(site.content):
                return self.send_error(416)
            body = site.content[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if site.cut_after:
                body = body[: site.cut_after.pop(0)]
            for offset in range(0, len(body), 1 << 14):
                self.wfile.write(body[offset : offset + (1 << 14)])
                time.sleep(site.pause_s)
            return None

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with serve(Handler) as site.url:
        yield site


def _partial(folder: Path) -> Path:
    return folder / f"{NAME}.rfdetr-part"


def test_first_use_downloads_and_the_second_asks_nobody(site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "rfdetr"
    assert download(site.file(), folder).read_bytes() == CONTENT
    assert download(site.file(), folder) == folder / NAME
    assert site.requests == [None]
    assert not _partial(folder).exists()


def test_a_slow_server_is_waited_for(site: Site, tmp_path: Path) -> None:
    site.pause_s = 0.02
    assert download(site.file(), tmp_path).read_bytes() == CONTENT


def test_a_server_that_stalls_is_given_up(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_module, "_TIMEOUT_S", 0.1)
    site.pause_s = 0.5
    with pytest.raises(DownloadError, match="timed out"):
        download(site.file(), tmp_path)
    assert len(site.requests) == 4


def test_a_cut_off_download_goes_on_where_it_stopped(site: Site, tmp_path: Path) -> None:
    site.cut_after = [1000, 2000]
    assert download(site.file(), tmp_path).read_bytes() == CONTENT
    assert site.requests == [None, "bytes=1000-", "bytes=3000-"]


def test_a_download_that_keeps_breaking_is_resumed_by_the_next_call(
    site: Site, tmp_path: Path
) -> None:
    site.cut_after = [1000] * 4
    with pytest.raises(DownloadError, match="connection ended after 4000 of 262144 bytes"):
        download(site.file(), tmp_path)
    assert _partial(tmp_path).stat().st_size == 4000
    assert download(site.file(), tmp_path).read_bytes() == CONTENT
    assert site.requests[-1] == "bytes=4000-"


def test_a_server_without_ranges_starts_over(site: Site, tmp_path: Path) -> None:
    site.ranges, site.cut_after = False, [5000]
    assert download(site.file(), tmp_path).read_bytes() == CONTENT


def test_a_whole_partial_file_is_only_checked_and_renamed(site: Site, tmp_path: Path) -> None:
    _partial(tmp_path).write_bytes(CONTENT)
    assert download(site.file(), tmp_path).read_bytes() == CONTENT
    assert site.requests == [f"bytes={len(CONTENT)}-"]


@pytest.mark.parametrize(
    "garbage", [b"x" * 1000, b"x" * (len(CONTENT) + 5)], ids=["shorter", "longer"]
)
def test_a_partial_file_of_something_else_is_begun_again(
    site: Site, tmp_path: Path, garbage: bytes
) -> None:
    _partial(tmp_path).write_bytes(garbage)
    assert download(site.file(), tmp_path).read_bytes() == CONTENT
    assert site.requests[-1] is None


def test_wrong_content_is_refused_and_not_kept(site: Site, tmp_path: Path) -> None:
    site.content = b"something else"
    with pytest.raises(
        DownloadError, match=f"has MD5 {hashlib.md5(site.content).hexdigest()}, expected"
    ):
        download(site.file(), tmp_path)
    assert not (tmp_path / NAME).exists()
    assert not _partial(tmp_path).exists()


def test_not_found_is_told_at_once_with_all_that_helps(site: Site, tmp_path: Path) -> None:
    site.statuses = [404]
    file = site.file()
    with pytest.raises(DownloadError) as caught:
        download(file, tmp_path)
    message = str(caught.value)
    for part in (NAME, "404", str(tmp_path), file.url, f"save it as {tmp_path / NAME}", file.md5):
        assert part in message
    assert len(site.requests) == 1


def test_a_busy_server_is_asked_again(site: Site, tmp_path: Path) -> None:
    site.statuses = [503, 429]
    assert download(site.file(), tmp_path).read_bytes() == CONTENT
    assert len(site.requests) == 3


def test_nobody_there_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"refused.*To place it by hand"):
        download(PublishedFile(NAME, f"http://127.0.0.1:9/{NAME}", "0" * 32), tmp_path)


def test_a_file_placed_by_hand_is_used(site: Site, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(CONTENT)
    assert download(site.file(), tmp_path) == tmp_path / NAME
    assert site.requests == []


def test_another_file_of_that_name_is_refused_and_left_alone(site: Site, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"mine")
    with pytest.raises(DownloadError, match=r"is not the published .* left as it is"):
        download(site.file(), tmp_path)
    assert (tmp_path / NAME).read_bytes() == b"mine"
    assert site.requests == []


def test_a_file_changed_after_it_was_verified_is_noticed(site: Site, tmp_path: Path) -> None:
    path = download(site.file(), tmp_path)
    path.write_bytes(CONTENT[::-1])
    os.utime(path, ns=(0, 0))
    with pytest.raises(DownloadError, match="is not the published"):
        download(site.file(), tmp_path)


def test_processes_that_want_the_same_file_download_it_once(site: Site, tmp_path: Path) -> None:
    site.pause_s = 0.05
    code = (
        "import sys; from pathlib import Path\n"
        "from rfdetr.weights.download import PublishedFile, download\n"
        "print(download(PublishedFile(*sys.argv[1:4]), Path(sys.argv[4])))"
    )
    command = [sys.executable, "-c", code, *site.file(), str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert outputs == [str(tmp_path / NAME)] * 3
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert site.requests == [None]


def test_a_cache_that_cannot_be_written_is_an_error_with_advice(site: Site, tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(DownloadError, match="To place it by hand"):
        download(site.file(), tmp_path / "taken")


def test_fetch_uses_the_cache_folder_and_the_mirror(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RFDETR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RFDETR_WEIGHTS_URL", f"{site.url}/mirror/")
    monkeypatch.setitem(PUBLISHED, NAME, site.file()._replace(url="http://127.0.0.1:9/gone"))
    with caplog.at_level(logging.INFO, logger="rfdetr"):
        assert fetch(NAME) == tmp_path / "home" / NAME
    assert f"{site.url}/mirror/{NAME}" in caplog.text


@pytest.fixture
def homes(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A cache that is not there yet, the folders of others by who names them, and NAME published
    at the site.
    """
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setitem(PUBLISHED, NAME, site.file())
    homes = {name: tmp_path / name for name in ("RFDETR_HOME", "RF_HOME", "ROBOFLOW_HOME")}
    for name, folder in homes.items():
        monkeypatch.setenv(name, str(folder))
    return homes | {"~": tmp_path / ".roboflow" / "models"}


@pytest.mark.parametrize("home", ["RF_HOME", "ROBOFLOW_HOME", "~"])
def test_a_file_that_others_keep_is_used_where_it_is(
    site: Site, homes: dict[str, Path], home: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = homes[home] / NAME
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    before = path.stat()
    with caplog.at_level(logging.INFO, logger="rfdetr"):
        assert fetch(NAME) == path
    assert caplog.messages == [f"{NAME} was found in {path.parent}"]
    after = path.stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)
    assert list(path.parent.iterdir()) == [path] and not homes["RFDETR_HOME"].exists()
    assert site.requests == []


def test_our_cache_comes_first_and_then_others_in_their_order(
    site: Site, homes: dict[str, Path]
) -> None:
    for folder in homes.values():
        folder.mkdir(parents=True)
        (folder / NAME).write_bytes(CONTENT)
    for folder in homes.values():
        assert fetch(NAME) == folder / NAME
        (folder / NAME).unlink()
    assert site.requests == []


def test_a_file_of_others_that_is_another_is_warned_of_and_left_alone(
    site: Site, homes: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    path = homes["RF_HOME"] / NAME
    path.parent.mkdir()
    path.write_bytes(b"mine")
    assert fetch(NAME) == homes["RFDETR_HOME"] / NAME
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    for part in (str(path), hashlib.md5(b"mine").hexdigest(), site.file().md5, "left alone"):
        assert part in warning
    assert path.read_bytes() == b"mine" and list(path.parent.iterdir()) == [path]
    assert site.requests == [None]


def test_empty_names_of_folders_are_none(
    homes: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert other_dirs() == [homes[name] for name in ("RF_HOME", "ROBOFLOW_HOME", "~")]
    monkeypatch.setenv("RF_HOME", "")
    monkeypatch.setenv("ROBOFLOW_HOME", "~/.roboflow/models")
    assert other_dirs() == [homes["~"]]


def test_what_is_nowhere_is_told_with_all_places(site: Site, homes: dict[str, Path]) -> None:
    site.statuses = [404]
    with pytest.raises(DownloadError) as caught:
        fetch(NAME)
    assert all(str(folder) in str(caught.value) for folder in homes.values())


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RFDETR_HOME", "~/models")
    assert cache_dir() == Path.home() / "models"
    monkeypatch.delenv("RFDETR_HOME")
    if sys.platform == "linux":
        monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
        assert cache_dir() == Path("/somewhere/rfdetr")
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert cache_dir() == Path.home() / ".cache" / "rfdetr"


def test_registry_is_the_published_list_without_key_points(golden_dir: Path) -> None:
    rows = json.loads((golden_dir / "weights.json").read_text())
    expected = {
        (row["file"], row["url"], row["md5"]) for row in rows if "keypoint" not in row["file"]
    }
    assert {tuple(file) for file in PUBLISHED.values()} == expected


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_starts_from_a_known_file(variant: str) -> None:
    name = VARIANTS[variant]().pretrain_weights
    assert name in (BUNDLED if variant.endswith("mini") else PUBLISHED)
