"""Check before a run starts that the data match the inputs of the encoders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from avprompt.errors import ConfigError

if TYPE_CHECKING:
    from avprompt.encoders.base import AudioInput, VisualInput
    from avprompt.media.decode import Sampling


def check_input(sampling: Sampling, visual: VisualInput | None, audio: AudioInput | None) -> None:
    """Compare the sampling of the data with the inputs of the encoders.

    Args:
        sampling: how the data module cuts clips.
        visual: the visual encoder's input; `None` compares no frames.
        audio: the audio encoder's input; `None` compares no audio.

    Raises:
        ConfigError: image size, frames a segment, sample rate or length of a segment differ; names the flag and both
            values.

    Example:
        >>> from avprompt.encoders.base import AudioInput
        >>> from avprompt.media.decode import Sampling
        >>> check_input(Sampling(sample_rate=8000), None, AudioInput(sample_rate=16000))
        Traceback (most recent call last):
            ...
        avprompt.errors.ConfigError: --data.sample_rate: got 8000 Hz; expected 16000 Hz, which the audio encoder \
takes. Set `--data.sample_rate 16000` (a store must be prepared with it), or choose another audio encoder.
    """
    if visual is not None and (visual.height, visual.width) != (sampling.size, sampling.size):
        square = visual.height == visual.width
        raise ConfigError(
            "--data.image_size",
            f"{sampling.size} x {sampling.size} pixels",
            f"{visual.height} x {visual.width} pixels, which the visual encoder takes",
            (
                f"Set `--data.image_size {visual.height}` (a store must be prepared with it), or choose "
                if square
                else "Frames of the data are square: choose "
            )
            + "another visual encoder.",
        )
    if visual is not None and visual.frames != sampling.frames:
        raise ConfigError(
            "--data.frames_per_segment",
            sampling.frames,
            f"{visual.frames}, which the visual encoder takes",
            f"Set `--data.frames_per_segment {visual.frames}` (a store must be prepared with it), or choose another "
            "visual encoder.",
        )
    if audio is not None and audio.sample_rate != sampling.sample_rate:
        raise ConfigError(
            "--data.sample_rate",
            f"{sampling.sample_rate} Hz",
            f"{audio.sample_rate} Hz, which the audio encoder takes",
            f"Set `--data.sample_rate {audio.sample_rate}` (a store must be prepared with it), or choose "
            "another audio encoder.",
        )
    if audio is not None and audio.samples != sampling.samples:
        raise ConfigError(
            "--model.backbone.audio",
            f"segments of {audio.seconds:g} s ({audio.samples} samples)",
            f"{sampling.seconds:g} s ({sampling.samples} samples), which the data have",
            "Choose an audio encoder for segments of that length.",
        )


def check_run(task: Any, data: Any) -> None:
    """`check_input` for a task and its data module.

    Sizes are not compared for a backbone without encoders, which reads features: those of a cache and of published
    files must be the data module's. The size of frames is not compared for a task that resizes them itself
    (`resizes_frames`).

    Args:
        task: an `AVPromptTask`.
        data: an `AVDataModule`.

    Raises:
        ConfigError: see `check_input`.
    """
    ours, theirs = data.feature_cache, getattr(task.backbone, "cache", None)
    if (theirs is None) is not (ours is None):
        name, hint = (
            ("--data.feature_cache", "Give it the folder of --model.backbone.cache.")
            if ours is None
            else ("--model.backbone", "Use avprompt.backbone.PrecomputedFeatures with the folder as `cache`.")
        )
        raise ConfigError(
            name,
            "encoders, with features for data" if theirs is None else "no features",
            "the same feature cache for data and backbone",
            hint,
        )
    if theirs is not None and ours.resolve() != theirs.folder.resolve():
        raise ConfigError(
            "--data.feature_cache", ours, f"{theirs.folder}, the backbone's", "Give both the same folder."
        )
    needed, read = (
        getattr(task.backbone, "published", None),
        None
        if data.published_features is None
        else {"visual": data.info.features.visual, "audio": data.info.features.audio},
    )
    visual, audio = (getattr(task.backbone, side, None) for side in ("visual", "audio"))
    # a user's own source without encoders reads what it likes, and says itself what a batch lacks
    if needed != read and (needed is not None or visual is not None or audio is not None):
        name, hint = (
            ("--data.published_features", "Give it the folder of the features.")
            if read is None
            else ("--model.backbone", "Use avprompt.backbone.PublishedFeatures with the names of these encoders.")
        )
        raise ConfigError(
            name, f"{'nothing' if read is None else read} for data", f"{needed or 'encoders'}, the backbone's", hint
        )
    check_input(
        data.sampling,
        None if visual is None or task.resizes_frames else visual.input,
        None if audio is None else audio.input,
    )
