"""avprompt: parameter-efficient prompting of frozen image and audio encoders for audio-visual learning."""

from importlib import metadata

__version__ = metadata.version("avprompt")
__all__ = ["AVPromptBackbone", "__version__"]


def __getattr__(name: str) -> object:
    """Import the backbone, and torch with it, only when it is asked for: `avprompt --help` stays quick."""
    if name == "AVPromptBackbone":
        from avprompt.backbone import AVPromptBackbone

        return AVPromptBackbone
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
