"""The demo: a visitor's video becomes the page of predictions, nothing of it stays, and nobody else sees it."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from browser import opened
from media_files import write_video
from test_pages import SEGMENTS, Finder

from avprompt import demo as module
from avprompt.cli import run
from avprompt.data_modules import AVEDataModule
from avprompt.demo import PAGE, ROUTE, Network, check_port, demo, serve, shown
from avprompt.errors import ArgumentError, CheckpointError, ConfigError


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    """The oracle of the other pages' tests."""
    base = tmp_path_factory.mktemp("demo")
    task = Finder()
    data = AVEDataModule(
        base, image_size=32, sample_rate=8000, segments=SEGMENTS, batch_size=2, categories=["bell", "speech"]
    )
    task.source = SimpleNamespace(reading=lambda: data)
    (base / "served").mkdir()
    return Network(task, base / "served", "by best.ckpt")


@pytest.fixture(scope="module")
def address(network: Network) -> Iterator[str]:
    """Of a running server."""
    pytest.importorskip("gradio", reason="gradio, which shows the demo, is not installed")
    port = free_port()
    page = serve(network, port)
    yield f"http://127.0.0.1:{port}/"
    page.close(verbose=False)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def name_in(text: str) -> str:
    return re.search(rf'src="{ROUTE}/([^/]+)/{PAGE}"', text)[1]


def status(address: str) -> int:
    try:
        with urllib.request.urlopen(address) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_a_video_becomes_its_visitors_page(network: Network, tmp_path: Path) -> None:
    first = name_in(shown(network, str(write_video(tmp_path / "a b.mp4", seconds=3)), "ann"))
    page = network.find(first, PAGE)
    assert "a b.mp4" in page.read_text(encoding="utf-8") and "by best.ckpt" in page.read_text(encoding="utf-8")
    assert network.find(first, "version_0/predictions.csv") and network.find(first, "version_0/media/000.mp4")
    assert not (tmp_path / "a b.mp4").exists() and not (network.folder / first / "videos").exists()
    second = name_in(shown(network, str(write_video(tmp_path / "b.mp4", seconds=2)), "bob"))
    assert network.find(first, PAGE) and network.find(second, PAGE)
    for guess in ("", ".", "..", first[:-1], f"{first}/..", f"../{network.folder.name}/{first}"):
        assert network.find(guess, PAGE) is None
    for path in (f"../{second}/{PAGE}", "..", "", "version_0", "/etc/passwd", "version_0/../../../x"):
        assert network.find(first, path) is None
    third = name_in(shown(network, str(write_video(tmp_path / "c.mp4", seconds=2)), "ann"))
    assert network.find(first, PAGE) is None and network.find(third, PAGE)  # her former page is gone
    for visitor in ("ann", "bob", "nobody"):
        network.forget(visitor)
    assert not [path for path in network.folder.iterdir() if path.name != "uploads"]


@pytest.mark.parametrize(
    ("name", "told"), [("<b>.mp4", "no usable video"), ("mute.mp4", "no audio"), ("text.txt", "no ")]
)
def test_what_cannot_be_used_is_told(name: str, told: str, network: Network, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "mute.mp4":
        write_video(path, seconds=2, tone=None)
    else:
        path.write_bytes(b"nothing")
    text = shown(network, str(path), "eve")
    print(text)
    assert 'role="alert"' in text and "Traceback" not in text and "<b>" not in text
    assert told in text and str(network.folder) not in text
    assert not path.exists() and not [path for path in network.folder.iterdir() if path.name != "uploads"]


def test_a_question_where_one_is_asked(network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def ask(question: str) -> None:
        if not question:
            raise ArgumentError("question", "none", "words", "Ask something.")
        asked.append(question)

    assert not network.asks
    monkeypatch.setattr(network.data, "ask", ask, raising=False)
    assert network.asks and "Ask something" in shown(network, str(write_video(tmp_path / "a.mp4", seconds=2)), "ann")
    assert ROUTE in shown(network, str(write_video(tmp_path / "a.mp4", seconds=2)), "ann", "How many?")
    assert asked == ["How many?"]
    network.forget("ann")


def test_upload_play_and_leave(network: Network, address: str, tmp_path: Path) -> None:
    """In a browser, that asks nobody else for anything: fonts, statistics, versions."""
    video = write_video(tmp_path / "clip.mp4", seconds=6)
    with opened(address) as page:
        page.get_by_role("button", name="Predict").click()
        page.get_by_text("Choose a video").wait_for()
        page.locator("input[type=file]").first.set_input_files(video)
        page.locator("video").wait_for()
        page.get_by_role("button", name="Predict").click()
        frame = page.frame_locator("iframe[title=predictions]")
        frame.locator(".timeline svg").wait_for()
        inside = page.frames[-1]
        assert "clip.mp4" in inside.locator("h2").inner_text()
        inside.wait_for_function("document.querySelector('video').readyState > 0")
        inside.evaluate("() => document.querySelector('video').play()")
        inside.wait_for_function("document.querySelector('video').currentTime > 1.2")
        inside.evaluate("() => document.querySelector('video').pause()")  # a busy machine draws late
        apart = """() => { const line = document.querySelector('.timeline').getBoundingClientRect(),
            c = document.querySelector('.cursor').getBoundingClientRect(), v = document.querySelector('video'),
            d = JSON.parse(document.querySelector('section script').textContent);
            return Math.abs((c.left + c.width / 2 - line.left) / line.width
                            - d.left - (d.right - d.left) * (v.currentTime - d.begin) / (d.end - d.begin)) < 0.01; }"""
        inside.wait_for_function(apart)
        inside.evaluate("() => { document.querySelector('video').currentTime = 4.5 }")  # needs ranges of the file
        inside.wait_for_function("Math.abs(document.querySelector('video').currentTime - 4.5) < 0.1")
        assert page.locator("iframe").bounding_box()["height"] > 400
        (name,) = network.names.values()
        assert status(f"{address}{ROUTE}/{name}/{PAGE}") == 200
        hidden = network.folder / name / "version_0" / "predictions.csv"
        for guess in (f"{ROUTE}/{name[:-1]}x/{PAGE}", f"{ROUTE}/{name}/%2e%2e/%2e%2e/x", f"gradio_api/file={hidden}"):
            assert status(f"{address}{guess}") in (403, 404)
        assert not [path for path in (network.folder / "uploads").rglob("*") if path.is_file()]
        page.set_viewport_size({"width": 390, "height": 800})
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert inside.evaluate("document.documentElement.scrollWidth") <= 390
        broken = tmp_path / "broken.mp4"
        broken.write_bytes(b"nothing")
        page.locator("input[type=file]").first.set_input_files(broken)
        page.wait_for_timeout(500)
        page.get_by_role("button", name="Predict").click()
        page.get_by_role("alert").get_by_text("no usable video").wait_for()
    for _ in range(100):
        if not network.names:
            break
        threading.Event().wait(0.1)
    assert not network.names  # the page was closed


def test_ctrl_c_says_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folders = []

    class Page:
        def close(self, verbose: bool) -> None:
            folders.append("closed")

    def fake_serve(network: Network, port: int, share: bool) -> Page:
        folders.append(network.folder)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        return Page()

    monkeypatch.setattr(module, "import_gradio", lambda: None)
    monkeypatch.setattr(module, "serve", fake_serve)
    monkeypatch.setattr(module, "Network", lambda task, folder, origin: SimpleNamespace(folder=folder))
    monkeypatch.setattr("avprompt.sharing.load", lambda path, config: None)
    monkeypatch.setenv("AVPROMPT_QUIET", "")
    (tmp_path / "best.ckpt").touch()
    with pytest.raises(SystemExit) as ended:
        demo(tmp_path / "best.ckpt", port=free_port())
    assert ended.value.code == 130 and folders[1:] == ["closed"] and not folders[0].exists()
    first, last = capsys.readouterr().out.strip().split("\n", 1)
    assert (
        "http://127.0.0.1:" in first and last.strip() == "the demo has ended; the videos that it was given are removed"
    )


def test_the_command_hands_its_flags_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--config` too, which parsers of commands are wont to read themselves."""
    given = []
    (tmp_path / "best.ckpt").touch()
    monkeypatch.setattr(module, "import_gradio", lambda: None)

    def refuse(network: Network, port: int, share: bool) -> None:
        raise ArgumentError("share", share, "a test", "Nothing.")

    monkeypatch.setattr(module, "serve", refuse)
    monkeypatch.setattr(module, "Network", lambda task, folder, origin: None)
    monkeypatch.setattr("avprompt.sharing.load", lambda path, config: given.append((path, config.name)))
    monkeypatch.setenv("AVPROMPT_QUIET", "")
    with pytest.raises(ArgumentError, match="True"):
        run(
            [
                "demo",
                "--ckpt_path",
                str(tmp_path / "best.ckpt"),
                "--config",
                "quickstart",
                "--share",
                "true",
                "--port",
                str(free_port()),
            ]
        )
    assert given == [(tmp_path / "best.ckpt", "quickstart.yaml")]


def test_what_is_wrong_is_told_before_anything_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        run(["demo", "--ckpt_path", str(tmp_path / "none.ckpt")])
    (tmp_path / "best.ckpt").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="quickstart"):
        run(["demo", "--ckpt_path", str(tmp_path / "best.ckpt"), "--config", "quickstrat"])
    with pytest.raises(CheckpointError, match="best.ckpt"):
        run(["demo", "--ckpt_path", str(tmp_path / "best.ckpt"), "--port", str(free_port())])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ArgumentError, match="in use"):
            check_port(taken.getsockname()[1])
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ConfigError, match=r"pip install 'avprompt\[demo\]'"):
        run(["demo", "--ckpt_path", str(tmp_path / "best.ckpt"), "--port", str(free_port())])
