"""`avprompt demo`: a page on this machine that takes a video or a webcam clip and shows what a network says of it."""

from __future__ import annotations

import contextlib
import html
import io
import os
import re
import secrets
import shutil
import socket
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avprompt.configs import find_file
from avprompt.errors import ArgumentError, AVPromptError, CheckpointError, ConfigError
from avprompt.ranges import Port
from avprompt.signals import stoppable

if TYPE_CHECKING:
    from avprompt.tasks import AVPromptTask

HOST = "127.0.0.1"
#: below which addresses pages are served, each under a name that only its visitor is told
ROUTE = "seen"
#: minutes of a video whose timeline is shown; largest upload
MINUTES, LARGEST = 10.0, "1gb"
#: a frame is as high as its page, also when a telephone is turned
AS_HIGH = (
    "const body = this.contentDocument.body; "
    "new ResizeObserver(() => { this.style.height = body.offsetHeight + 24 + 'px' }).observe(body)"
)
#: of the page that `PredictionWriter` writes, below a visitor's folder
PAGE = "version_0/predictions.html"


def demo(ckpt_path: Path, config: Path | None = None, port: Port = 7860, share: bool = False) -> None:
    """Open a page on this machine that takes a video or a clip of the webcam and shows what the network says of it.

    It is the page that `avprompt predict` writes: the video beside its timeline. It needs gradio (`pip install
    'avprompt[demo]'`) and no network. Browsers give a webcam to pages at http://127.0.0.1, http://localhost or
    https:// alone. Nothing is kept: a visitor's files are removed when the page is closed, and all when the demo ends.

    Args:
        ckpt_path: checkpoint of a finished `avprompt fit`, or a folder that `task.push` wrote.
        config: configuration of the network; by default config.yaml of the run that the checkpoint belongs to.
        port: of 127.0.0.1, where the page is.
        share: also make it public for a week through a server of gradio's, which needs a network; whoever has the
            link can use this machine.

    Raises:
        ArgumentError: the port is no port, or is taken.
        CheckpointError: the checkpoint is missing, broken, or of another network than the configuration's.
        ConfigError: gradio is not installed, or there is no configuration.
    """
    ckpt_path = Path(ckpt_path).expanduser()
    if not ckpt_path.exists():  # what is cheap to find out comes before what is slow to import
        raise CheckpointError(ckpt_path, "no such file", "a checkpoint", "Check the path given to --ckpt_path.")
    config = None if config is None else find_file(config)
    check_port(port)
    import_gradio()
    os.environ["AVPROMPT_QUIET"] = "1"  # one prediction after another: what Lightning says of each is of no use
    with stoppable(), tempfile.TemporaryDirectory(prefix="avprompt-demo-") as folder:
        try:
            from avprompt.sharing import load

            network = Network(load(ckpt_path, config=config), Path(folder), f"by {ckpt_path}")
            print(f"http://{HOST}:{port} shows the demo of {ckpt_path}; Ctrl-C ends it", flush=True)
            page = serve(network, port, share)
            try:
                threading.Event().wait()
            finally:
                page.close(verbose=False)
        except SystemExit:
            print("\nthe demo has ended; the videos that it was given are removed", flush=True)
            raise


def import_gradio() -> Any:
    """The package gradio, told to send nothing to anyone.

    Raises:
        ConfigError: it is not installed.
    """
    for name, value in (("GRADIO_ANALYTICS_ENABLED", "False"), ("HF_HUB_DISABLE_TELEMETRY", "1")):
        os.environ[name] = value
    for name in ("NO_PROXY", "no_proxy"):  # gradio asks its own server whether it is there
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), HOST)))
    try:
        import gradio
    except ImportError as error:
        raise ConfigError(
            "avprompt demo",
            f"no package gradio ({error})",
            "gradio 6",
            "Run `pip install 'avprompt[demo]'`; `avprompt predict` writes the same page as a file without it.",
        ) from error
    return gradio


def check_port(port: int) -> None:
    """Refuse a port that cannot be listened to.

    Raises:
        ArgumentError: it is taken, or needs other rights.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ArgumentError(
                "port", f"{port} ({error.strerror})", "a port that is free", f"Try --port {port % 65535 + 1}."
            ) from error


class Network:
    """A trained task, and the pages that it made for visitors, each in a folder of its own.

    Args:
        task: of `avprompt.load`.
        folder: takes the folders.
        origin: what pages say of the network.

    Raises:
        ArgumentError: the task was trained on features, which videos do not have.

    Example:
        >>> from types import SimpleNamespace
        >>> source = SimpleNamespace(reading=lambda: SimpleNamespace(num_workers=2))
        >>> network = Network(SimpleNamespace(source=source), Path("/tmp"), "by best.ckpt")
        >>> network.data.num_workers, network.find("guess", "version_0/predictions.html")
        (0, None)
    """

    def __init__(self, task: AVPromptTask, folder: Path, origin: str) -> None:
        self.task, self.folder, self.origin = task, folder, origin
        self.data = task.source.reading()
        self.data.num_workers = 0  # one video at a time: processes would take longer to start than to read it
        self.alone = threading.Lock()
        #: whose page is in which folder
        self.names: dict[str, str] = {}

    @property
    def asks(self) -> bool:
        """Whether the network answers a question about each video."""
        return hasattr(self.data, "ask")

    def predict(self, video: Path, visitor: str, question: str = "") -> str:
        """Make the page of a video.

        Args:
            video: file, which is left alone.
            visitor: whose former page is removed.
            question: about the video, where the network `asks`.

        Returns:
            The name of the page's folder, which nobody can guess.

        Raises:
            AVPromptError: the video or the question cannot be used.
        """
        from lightning import Trainer

        from avprompt.callbacks import PredictionWriter

        self.forget(visitor)
        name = secrets.token_urlsafe(24)
        place = self.folder / name
        (place / "videos").mkdir(parents=True)
        shutil.copyfile(video, place / "videos" / video.name)
        try:
            with self.alone, contextlib.redirect_stdout(io.StringIO()):  # where files are is of no use to a visitor
                if self.asks:
                    self.data.ask(question)
                self.data.predict_root = place / "videos"
                trainer = Trainer(
                    devices=1,
                    logger=False,
                    default_root_dir=place,
                    callbacks=[
                        PredictionWriter(max_pictures=0, videos="copy", max_minutes=MINUTES, origin=self.origin)
                    ],
                    enable_progress_bar=False,
                    enable_checkpointing=False,
                    enable_model_summary=False,
                )
                trainer.predict(self.task, datamodule=self.data, return_predictions=False)
        except BaseException:
            shutil.rmtree(place)
            raise
        shutil.rmtree(place / "videos")
        self.names[visitor] = name
        return name

    def forget(self, visitor: str) -> None:
        """Remove a visitor's page."""
        name = self.names.pop(visitor, None)
        if name is not None:
            shutil.rmtree(self.folder / name, ignore_errors=True)  # a browser may be reading it

    def find(self, name: str, path: str) -> Path | None:
        """A file of a page's folder; `None` where there is no such page, or no such file in it."""
        if name not in self.names.values():
            return None
        place = (self.folder / name).resolve()
        file = (place / path).resolve()
        return file if file.is_relative_to(place) and file.is_file() else None


def shown(network: Network, video: str | None, visitor: str, question: str = "") -> str:
    """What a visitor sees after `Predict`: the page, or what is wrong.

    Args:
        network: see `Network`.
        video: path of the upload, which is removed; `None` where there is none.
        visitor: see `Network.predict`.
        question: see `Network.predict`.

    Returns:
        HTML.

    Example:
        >>> "Choose a video" in shown(None, None, "someone")
        True
    """
    if video is None:
        return problem("Choose a video, or record one, before you press Predict.")
    try:
        name = network.predict(Path(video), visitor, question)
    except AVPromptError as error:
        places = rf"{re.escape(str(network.folder))}/[\w-]+/videos"
        return problem(re.sub(f"{places}(?![/\\w])", "the video", re.sub(f"{places}/", "", str(error))))
    finally:
        Path(video).unlink(missing_ok=True)
    return (
        f'<iframe src="{ROUTE}/{name}/{PAGE}" title="predictions" allow="fullscreen" '
        f'style="width: 100%; height: 70vh; border: 0" onload="{AS_HIGH}"></iframe>'
    )


def problem(text: str) -> str:
    """A message on the page.

    Example:
        >>> problem("<b>")[-13:]
        '&lt;b&gt;</p>'
    """
    style = "border-left: 4px solid #b24a00; background: #fff4ec; color: #1d232a; padding: .7rem 1rem; margin: 0"
    return f'<p role="alert" style="{style}">{html.escape(text)}</p>'


def interface(network: Network) -> Any:
    """The page as gradio's `Blocks`.

    Args:
        network: see `Network`.
    """
    gradio = import_gradio()

    def show(video: str | None, question: str, request: Any) -> tuple[str, None]:
        return shown(network, video, request.session_hash, question), None

    def leave(request: Any) -> None:
        network.forget(request.session_hash)

    for function in (show, leave):  # by which gradio knows that it is to give the request
        function.__annotations__["request"] = gradio.Request

    with gradio.Blocks(title="avprompt demo", analytics_enabled=False, delete_cache=(600, 600)) as page:
        gradio.Markdown(
            "## avprompt\nA video with sound, uploaded or recorded here; then *Predict*. "
            f"The network: `{network.origin.removeprefix('by ')}`"
        )
        with gradio.Row():
            with gradio.Column(min_width=280):
                video = gradio.Video(
                    label="video with sound",
                    sources=["upload", "webcam"],
                    include_audio=True,
                    webcam_options=gradio.WebcamOptions(mirror=False),
                )
            with gradio.Column(min_width=280):
                question = gradio.Textbox(
                    label="question about the video",
                    placeholder="How many instruments are sounding in the video?",
                    visible=network.asks,
                )
                button = gradio.Button("Predict", variant="primary")
        result = gradio.HTML()
        button.click(
            show, [video, question], [result, video], api_visibility="private", concurrency_limit=1, queue=True
        )
        page.unload(leave)
    return page


def serve(network: Network, port: int, share: bool = False) -> Any:
    """Start a server of the page in a thread; uploads go to the network's folder.

    Args:
        network: see `Network`.
        port: of 127.0.0.1.
        share: see `demo`.

    Returns:
        gradio's `Blocks`, whose `close` ends the server.
    """
    gradio = import_gradio()
    from starlette.responses import FileResponse, PlainTextResponse
    from starlette.routing import Route

    os.environ["GRADIO_TEMP_DIR"] = str(network.folder / "uploads")
    page = interface(network)
    app, _, _ = page.launch(
        server_name=HOST,
        server_port=port,
        share=share,
        theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),  # none to be fetched
        quiet=True,
        prevent_thread_lock=True,
        inbrowser=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        run_history=False,
        footer_links=[],
        max_file_size=LARGEST,
    )

    def file(request: Any) -> Any:
        found = network.find(request.path_params["name"], request.path_params["path"])
        headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
        return PlainTextResponse("not here", 404) if found is None else FileResponse(found, headers=headers)

    app.router.routes.insert(0, Route(f"/{ROUTE}/{{name}}/{{path:path}}", file))
    return page
