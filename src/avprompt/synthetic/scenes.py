"""Scenes of the synthetic datasets: visible objects, sounds, and how they belong together.

Every category is a shape and a sound. A scene shows several small objects on a cluttered background, of which at most
one sounds, and plays several sounds at once, of which at most one has its object in view. Each attention of DG-SCT has
something to find:

- spatial: objects are small, move, and most are silent;
- channel: colour, size and brightness vary freely, only the shape is tied to a sound;
- temporal: objects and sounds come and go independently; an event lasts only while its object is in view and its sound
  is audible;
- frequency: sounds overlap in time and lie in different bands, and off-screen sounds are as loud as the event's sound,
  so that only the visible object tells which band counts.

Neither modality suffices alone: the silent objects look like events, and the off-screen sounds sound like them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from avprompt.errors import ArgumentError

CATEGORIES = ("disc", "square", "triangle", "plus", "ring", "star", "bar", "hourglass")
COLOURS = ((214, 72, 62), (72, 142, 214), (236, 190, 60), (92, 178, 92), (172, 98, 196), (232, 232, 232))
BANDS = (350.0, 900.0, 2300.0, 5200.0)  # Hz, centre of a sound's band; categories c and c + 4 share one
SECONDS, FPS, SIZE, SAMPLE_RATE = 10, 4, 96, 16000


@dataclass(frozen=True)
class Settings:
    """Difficulty of a synthetic dataset.

    Args:
        classes: categories in use, 2 to 8.
        silent_objects: objects in view that make no sound.
        offscreen_sounds: sounds whose object is not in view.
        noise: strength of the visual clutter and of the background noise, 0 to 1.
        radius: half an object's size in pixels of a 96 x 96 picture, smallest and largest.

    Raises:
        ArgumentError: too few categories for the objects and sounds asked for.
    """

    classes: int = 8
    silent_objects: int = 2
    offscreen_sounds: int = 1
    noise: float = 0.3
    radius: tuple[float, float] = (8.0, 13.0)

    def __post_init__(self) -> None:
        if not 2 <= self.classes <= len(CATEGORIES):
            raise ArgumentError("classes", self.classes, f"2 to {len(CATEGORIES)}", "Choose another number.")
        if 1 + self.silent_objects + self.offscreen_sounds > self.classes:
            raise ArgumentError(
                "objects, offscreen_sounds",
                f"{1 + self.silent_objects}, {self.offscreen_sounds}",
                f"at most {self.classes} together: all categories of a scene differ",
                "Lower them or raise classes.",
            )


class Moving:
    """What moves in a straight line within the picture and turns back at its edge."""

    radius: float
    position: tuple[float, float]
    velocity: tuple[float, float]

    def centre(self, time: float) -> tuple[float, float]:
        """Centre in pixels at a time in seconds."""
        low, high = self.radius, SIZE - self.radius
        folded = [(p + v * time - low) % (2 * (high - low)) for p, v in zip(self.position, self.velocity)]
        across, down = (low + (f if f <= high - low else 2 * (high - low) - f) for f in folded)
        return across, down


@dataclass(frozen=True)
class Thing(Moving):
    """An object in view.

    Args:
        category: index into the categories.
        colour: index into the colours.
        radius: half its size in pixels.
        position: centre at second 0, in pixels.
        velocity: pixels a second.
        start: second at which it appears.
        end: second at which it is gone.
    """

    category: int
    colour: int
    radius: float
    position: tuple[float, float]
    velocity: tuple[float, float]
    start: int
    end: int


@dataclass(frozen=True)
class Sound:
    """A sound.

    Args:
        category: index into the categories.
        pitch: factor on the band's centre, near 1.
        level: amplitude.
        start: second at which it begins.
        end: second at which it ends.
    """

    category: int
    pitch: float
    level: float
    start: int
    end: int


@dataclass(frozen=True)
class Scene:
    """Ten seconds of picture and sound.

    Args:
        seed: of all random draws while rendering.
        things: objects in view; the first belongs to the event.
        sounds: sounds; the first belongs to the event.
        noise: see `Settings`.
        extra: what a dataset saves with the scene.
    """

    seed: int
    things: list[Thing]
    sounds: list[Sound]
    noise: float = 0.3
    extra: dict[str, Any] = field(default_factory=dict)

    def events(self) -> list[tuple[int, int, int]]:
        """(category, start, end) of every interval in which an object is in view and its sound audible."""
        found = []
        for thing in self.things:
            for sound in self.sounds:
                start, end = max(thing.start, sound.start), min(thing.end, sound.end)
                if thing.category == sound.category and start < end:
                    found.append((thing.category, start, end))
        return found

    def frames(self, seconds: int = SECONDS) -> list[np.ndarray]:
        """Pictures uint8 (96, 96, 3), 4 a second."""
        return render_frames(self, seconds)

    def audio(self, seconds: int = SECONDS) -> np.ndarray:
        """Sound float32 (seconds * 16000,) in [-1, 1] at 16 kHz."""
        return render_audio(self, seconds)

    def mask(self, time: float) -> np.ndarray:
        """Mask bool (96, 96) of the sounding objects, see `render_mask`."""
        return render_mask(self, time)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a side file."""
        return asdict(self)


def draw_interval(
    rng: np.random.Generator, around: tuple[int, int] | None = None, seconds: int = SECONDS, least: int = 3
) -> tuple[int, int]:
    """Whole seconds [start, end) of a scene: anywhere with at least `least` seconds, or covering `around`."""
    if around is None:
        length = int(rng.integers(least, seconds + 1))
        start = int(rng.integers(0, seconds - length + 1))
        return start, start + length
    return int(rng.integers(0, around[0] + 1)), int(rng.integers(around[1], seconds + 1))


def draw_thing(rng: np.random.Generator, settings: Settings, category: int, span: Sequence[int]) -> Thing:
    """An object of a category in view from second `span[0]` to `span[1]`; the rest is drawn at random."""
    radius = float(rng.uniform(*settings.radius))
    x, y = (float(v) for v in rng.uniform(radius, SIZE - radius, 2))
    across, down = (float(v) for v in rng.uniform(-6, 6, 2))
    return Thing(category, int(rng.integers(len(COLOURS))), radius, (x, y), (across, down), int(span[0]), int(span[1]))


def draw_sound(rng: np.random.Generator, category: int, span: Sequence[int]) -> Sound:
    """A sound of a category from second `span[0]` to `span[1]`; the rest is drawn at random."""
    return Sound(category, float(rng.uniform(0.94, 1.06)), float(rng.uniform(0.12, 0.25)), int(span[0]), int(span[1]))


def draw_scene(rng: np.random.Generator, settings: Settings, category: int | None = None) -> Scene:
    """Draw a scene with one event.

    The event lasts 2 to 10 seconds. At each of its ends either the object or the sound continues, never both.
    """
    order = rng.permutation(settings.classes)
    category = int(order[0]) if category is None else category
    others = [int(c) for c in order if c != category]
    length = int(rng.integers(2, SECONDS + 1))
    start = int(rng.integers(0, SECONDS - length + 1))
    event = (start, start + length)
    spans = {"seen": list(event), "heard": list(event)}
    wide = draw_interval(rng, event)
    for end in (0, 1):
        spans["seen" if rng.random() < 0.5 else "heard"][end] = wide[end]

    silent, offscreen = others[: settings.silent_objects], others[settings.silent_objects :]
    # an off-screen sound lies in another band than the event's, so that what is seen tells which band counts
    offscreen = sorted(offscreen, key=lambda c: c % len(BANDS) == category % len(BANDS))[: settings.offscreen_sounds]
    things = [
        draw_thing(rng, settings, category, spans["seen"]),
        *(draw_thing(rng, settings, c, draw_interval(rng)) for c in silent),
    ]
    sounds = [draw_sound(rng, category, spans["heard"]), *(draw_sound(rng, c, draw_interval(rng)) for c in offscreen)]
    return Scene(int(rng.integers(2**31)), things, sounds, settings.noise)


def outline(category: int, centre: tuple[float, float], radius: float) -> list[tuple[float, float]]:
    """Polygon of a category's shape; discs and rings have none."""
    x, y = centre
    r = radius
    unit = {
        1: [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
        2: [(0, -1), (0.95, 0.8), (-0.95, 0.8)],
        3: [
            (-0.3, -1),
            (0.3, -1),
            (0.3, -0.3),
            (1, -0.3),
            (1, 0.3),
            (0.3, 0.3),
            (0.3, 1),
            (-0.3, 1),
            (-0.3, 0.3),
            (-1, 0.3),
            (-1, -0.3),
            (-0.3, -0.3),
        ],
        5: [(np.sin(k * np.pi / 5) * size, -np.cos(k * np.pi / 5) * size) for k, size in enumerate((1.1, 0.42) * 5)],
        6: [(-1.1, -0.35), (1.1, -0.35), (1.1, 0.35), (-1.1, 0.35)],
        7: [(-0.9, -1), (0.9, -1), (0.12, 0), (0.9, 1), (-0.9, 1), (-0.12, 0)],
    }[category]
    return [(x + r * u, y + r * v) for u, v in unit]


def paint(draw: ImageDraw.ImageDraw, category: int, centre: tuple[float, float], radius: float, colour: Any) -> None:
    """Draw one object."""
    box = [centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius]
    if category == 0:
        draw.ellipse(box, fill=colour)
    elif category == 4:
        draw.ellipse(box, outline=colour, width=max(2, round(radius * 0.38)))
    else:
        draw.polygon(outline(category, centre, radius), fill=colour)


def ground(rng: np.random.Generator, noise: float, size: int = SIZE) -> np.ndarray:
    """Cluttered background, float32 (size, size, 3): a shade, a gradient and coarse blotches."""
    shade = rng.uniform(30, 110, 3)
    gradient = np.linspace(-1, 1, size)[:, None, None] * rng.uniform(-25, 25, 3)
    coarse = rng.normal(0, 90 * noise, (size // 8, size // 8, 3)).repeat(8, 0).repeat(8, 1)
    return (shade + gradient + coarse).astype(np.float32)


def render_frame(scene: Scene, time: float, base: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Frame at `time` seconds, uint8 (96, 96, 3), with the objects drawn over the background `base`."""
    image = Image.fromarray(base.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for thing in scene.things:
        if thing.start <= time < thing.end:
            paint(draw, thing.category, thing.centre(time), thing.radius, COLOURS[thing.colour])
    grain = rng.normal(0, 30 * scene.noise, base.shape)
    return (np.asarray(image) + grain).clip(0, 255).astype(np.uint8)


def render_frames(scene: Scene, seconds: int = SECONDS) -> list[np.ndarray]:
    """The scene's pictures, uint8 (96, 96, 3) each, at 4 a second."""
    rng = np.random.default_rng(scene.seed)
    base = ground(rng, scene.noise)
    return [render_frame(scene, index / FPS, base, rng) for index in range(seconds * FPS)]


def render_mask(scene: Scene, time: float) -> np.ndarray:
    """Mask bool (96, 96) of the visible part of every object in view whose sound is audible at `time` seconds."""
    image = Image.new("L", (SIZE, SIZE))
    draw = ImageDraw.Draw(image)
    heard = {sound.category for sound in scene.sounds if sound.start <= time < sound.end}
    for thing in scene.things:
        if thing.start <= time < thing.end:
            paint(draw, thing.category, thing.centre(time), thing.radius, 255 * (thing.category in heard))
    return np.asarray(image) > 0


def render_sound(category: int, pitch: float, samples: int, rng: np.random.Generator) -> np.ndarray:
    """One category's sound, float (samples,), peak near 1: a warbling tone, or pulses of noise in the same band."""
    time, frequency = np.arange(samples) / SAMPLE_RATE, BANDS[category % len(BANDS)] * pitch
    if category < len(BANDS):
        warble = 1 + 0.02 * np.sin(2 * np.pi * 5 * time)
        phase = 2 * np.pi * np.cumsum(frequency * warble) / SAMPLE_RATE
        return 0.8 * np.sin(phase) + 0.2 * np.sin(1.5 * phase)
    # noise around the centre: slowly varying amplitude and phase, gated 7 times a second
    knots = max(2, samples // 200)
    slow = [np.interp(np.linspace(0, 1, samples), np.linspace(0, 1, knots), rng.normal(size=knots)) for _ in range(2)]
    carrier = slow[0] * np.cos(2 * np.pi * frequency * time) + slow[1] * np.sin(2 * np.pi * frequency * time)
    gate = (np.sin(2 * np.pi * 7 * time) > 0).astype(float)
    return 0.7 * carrier * np.convolve(gate, np.ones(160) / 160, "same")


def render_audio(scene: Scene, seconds: int = SECONDS) -> np.ndarray:
    """The scene's sound, float32 (seconds * 16000,) in [-1, 1] at 16 kHz."""
    rng = np.random.default_rng(scene.seed + 1)
    wave = rng.normal(0, 0.04 * scene.noise, seconds * SAMPLE_RATE)
    for sound in scene.sounds:
        first, last = sound.start * SAMPLE_RATE, sound.end * SAMPLE_RATE
        piece = render_sound(sound.category, sound.pitch, last - first, rng)
        fade = np.minimum(1, np.minimum(np.arange(len(piece)), np.arange(len(piece))[::-1]) / 400)
        wave[first:last] += sound.level * piece * fade
    return wave.clip(-1, 1).astype(np.float32)
