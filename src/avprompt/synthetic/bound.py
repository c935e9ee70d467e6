"""Bound scenes: what a clip is called can be told only by binding what is seen to what is heard.

A scene shows several objects and plays one or several sounds. An object has a shape, a colour, a size and a texture; a
sound has a contour, a timbre and a pitch. All are drawn independently, except that the sound of an object has the
timbre of its colour (`timbre` k belongs to colour k) and the pitch of its size (large is low). Colours differ within a
scene, and so do timbres, so that exactly one object matches exactly one sound at a time:

- `a2v`: the label is the *shape* of the object that sounds. The sound tells its colour and size, and nothing about the
  shape, so that hearing alone stays at chance, and seeing alone guesses among the objects.
- `v2a`: the label is the *contour* of the sound whose object is in view. The picture tells its timbre and pitch, and
  nothing about the contour.
- `time`: as `a2v`, but the sound changes once. In AVE's and VGG-Sound's layouts one of the two sounds belongs to no
  object in view, so that its seconds are background; in the other layouts both have their object in view.

Encoders pool: they say which shapes and which colours a picture has, and no head behind them can say which shape has
which colour, unless the pooled features keep that. Guidance inside the encoders comes before pooling.

Backgrounds and objects are textured, rooms reverberate, and noise lies over both. `binding: none` of every generator
is the older world of `scenes.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw

from avprompt.errors import ArgumentError, check_choice
from avprompt.synthetic.scenes import CATEGORIES, COLOURS, FPS, SAMPLE_RATE, SECONDS, SIZE, Moving, paint

Binding = Literal["none", "a2v", "v2a", "time"]
BINDINGS = ("a2v", "v2a", "time")
#: how a sound moves within a second; the labels of `v2a`
CONTOURS = ("steady", "pulses", "flutter", "rise", "fall", "vibrato", "hiss", "ticks")
#: Hz, centre of each timbre's band; timbre k belongs to colour k
FORMANTS = (700.0, 1090.0, 1700.0, 2650.0, 4130.0, 6440.0)
TEXTURES = ("plain", "striped", "dotted")
SIZES = ((9.0, 11.0), (13.5, 16.0))  # pixels of a 96 x 96 picture, half the size of a small and of a large object
PITCHES = (240.0, 120.0)  # Hz, of the sound of a small and of a large object
GRID = np.arange(SIZE, dtype=np.float32)
#: objects in view and off-screen sounds where they are not given
DEFAULTS = {"none": (3, 1), "a2v": (3, 0), "v2a": (1, 2), "time": (3, 0)}


def counts(binding: Binding, objects: int | None, offscreen_sounds: int | None) -> tuple[int, int]:
    """Objects in view and off-screen sounds, with the binding's own numbers in place of `None`.

    Raises:
        ArgumentError: an unknown binding.

    >>> counts("v2a", None, 1)
    (1, 1)
    """
    check_choice("binding", binding, tuple(DEFAULTS))
    return (
        DEFAULTS[binding][0] if objects is None else objects,
        DEFAULTS[binding][1] if offscreen_sounds is None else offscreen_sounds,
    )


@dataclass(frozen=True)
class BoundSettings:
    """Difficulty of a bound dataset.

    Args:
        binding: `a2v`, `v2a` or `time`, see the module.
        objects: objects in view, of different colours, 1 to 6; `None` is 3, or 1 for `v2a`.
        offscreen_sounds: sounds besides that of the object, whose timbre belongs to no object in view; `None` is 0, or
            2 for `v2a`.
        noise: strength of clutter, grain, reverberation and background noise, 0 to 1.
        classes: labels in use, 2 to 8.
        alone: show and play the object and the sound that belong together, and nothing else. The same arguments give
            the same scenes and labels with the truth about the binding given away, for an oracle's row.
        labels: indices of the labels in use; `None` is the first `classes`.

    Raises:
        ArgumentError: a number is out of its range, or there are too few classes or colours for the objects and sounds.

    >>> BoundSettings("a2v").objects, BoundSettings("v2a").offscreen_sounds
    (3, 2)
    """

    binding: Binding = "a2v"
    objects: int | None = None
    offscreen_sounds: int | None = None
    noise: float = 0.3
    classes: int = 8
    alone: bool = False
    labels: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_choice("binding", self.binding, BINDINGS)
        objects, offscreen = counts(self.binding, self.objects, self.offscreen_sounds)
        object.__setattr__(self, "objects", objects)
        object.__setattr__(self, "offscreen_sounds", offscreen)
        most = len(CONTOURS if self.binding == "v2a" else CATEGORIES)
        for name, value, least, limit in (
            ("classes", self.classes, 2, most),
            ("noise", self.noise, 0, 1),
            ("objects", objects, 1, len(COLOURS)),
            ("offscreen_sounds", offscreen, 0, len(COLOURS) - 1),
        ):
            if not least <= value <= limit:
                raise ArgumentError(name, value, f"{least} to {limit}", "Choose another number.")
        if objects + offscreen + (self.binding == "time") > len(COLOURS):
            raise ArgumentError(
                "objects, offscreen_sounds",
                f"{objects}, {offscreen}",
                f"at most {len(COLOURS) - (self.binding == 'time')} together: colours differ",
                "Lower one of them.",
            )
        if self.labels is None:
            object.__setattr__(self, "labels", tuple(range(self.classes)))
        crowd, what = (offscreen + 1, "sounds") if self.binding == "v2a" else (objects, "objects")
        if crowd > self.classes:
            raise ArgumentError(
                "classes",
                self.classes,
                f"at least {crowd}: the labels of the {what} of a scene differ",
                "Raise it, or ask for fewer.",
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the labels."""
        known = CONTOURS if self.binding == "v2a" else CATEGORIES
        return tuple(known[label] for label in self.labels)


@dataclass(frozen=True)
class BoundObject(Moving):
    """An object in view.

    Args:
        shape: index into the categories.
        colour: index into the colours.
        size: 0 is small, 1 is large.
        texture: index into the textures.
        radius: half its size in pixels.
        position: centre at second 0, in pixels.
        velocity: pixels a second.
        start: second at which it appears.
        end: second at which it is gone.
    """

    shape: int
    colour: int
    size: int
    texture: int
    radius: float
    position: tuple[float, float]
    velocity: tuple[float, float] = (0.0, 0.0)
    start: int = 0
    end: int = SECONDS


@dataclass(frozen=True)
class BoundSound:
    """A sound.

    Args:
        contour: index into the contours.
        timbre: index of the colour it belongs to.
        pitch: index of the size it belongs to.
        level: amplitude.
        start: second at which it begins.
        end: second at which it ends.
    """

    contour: int
    timbre: int
    pitch: int
    level: float
    start: int = 0
    end: int = SECONDS

    def matches(self, thing: BoundObject) -> bool:
        """Whether it is the sound of an object."""
        return self.timbre == thing.colour


@dataclass(frozen=True)
class BoundScene:
    """A clip's pictures and sounds.

    Args:
        seed: of all random draws while rendering.
        objects: in view, from back to front.
        sounds: heard.
        settings: of the dataset.
        seconds: length.
        extra: what a dataset saves with the scene.
    """

    seed: int
    objects: tuple[BoundObject, ...]
    sounds: tuple[BoundSound, ...]
    settings: BoundSettings = field(default_factory=BoundSettings)
    seconds: int = SECONDS
    extra: dict[str, Any] = field(default_factory=dict)

    def pairs(self) -> list[tuple[BoundObject, BoundSound, int, int]]:
        """Objects and sounds that belong together, and the seconds [start, end) in which both last, in order of
        time."""
        found = [
            (thing, sound, max(thing.start, sound.start), min(thing.end, sound.end))
            for thing in self.objects
            for sound in self.sounds
            if sound.matches(thing)
        ]
        return sorted((pair for pair in found if pair[2] < pair[3]), key=lambda pair: pair[2:])

    def label(self, thing: BoundObject, sound: BoundSound) -> int:
        """Index of the label of an object and a sound that belong together."""
        return sound.contour if self.settings.binding == "v2a" else thing.shape

    def events(self) -> list[tuple[int, int, int]]:
        """(label, start, end) of every interval in which an object is in view and its sound audible."""
        return [(self.label(thing, sound), start, end) for thing, sound, start, end in self.pairs()]

    def shown(self) -> BoundScene:
        """The scene as it is rendered: itself, or what belongs together alone (see `BoundSettings.alone`)."""
        if not self.settings.alone:
            return self
        pairs = self.pairs()
        return replace(
            self,
            objects=tuple(o for o in self.objects if any(o is thing for thing, *_ in pairs)),
            sounds=tuple(s for s in self.sounds if any(s is sound for _, sound, *_ in pairs)),
        )

    def frames(self, seconds: int | None = None) -> list[np.ndarray]:
        """Pictures uint8 (96, 96, 3), 4 a second."""
        rng, scene = np.random.default_rng(self.seed), self.shown()
        noise = self.settings.noise
        base = textured_ground(rng, noise)
        surfaces = [surface(rng, thing.texture) for thing in self.objects]
        kept = [made for made, thing in zip(surfaces, self.objects) if any(thing is o for o in scene.objects)]
        pictures = []
        for index in range((seconds or self.seconds) * FPS):
            picture = base.copy()
            for thing, texture in zip(scene.objects, kept):
                if thing.start <= index / FPS < thing.end:
                    paint_textured(picture, thing, thing.centre(index / FPS), texture)
            pictures.append((picture + rng.normal(0, 30 * noise, picture.shape)).clip(0, 255).astype(np.uint8))
        return pictures

    def audio(self, seconds: int | None = None) -> np.ndarray:
        """Sound float32 (seconds * 16000,) in [-1, 1] at 16 kHz."""
        length, shown = self.seconds * SAMPLE_RATE, self.shown().sounds
        rng = np.random.default_rng(self.seed + 1)
        wave, seeds = np.zeros(length), rng.integers(2**31, size=len(self.sounds))
        for sound, seed in zip(self.sounds, seeds):
            if any(sound is kept for kept in shown):
                first, last = sound.start * SAMPLE_RATE, sound.end * SAMPLE_RATE
                wave[first:last] += sound.level * render_sound(sound, last - first, np.random.default_rng(seed))
        wave = reverberate(wave, self.settings.noise, rng)
        wave += rng.normal(0, 0.04 * self.settings.noise, length)
        return wave[: (seconds or self.seconds) * SAMPLE_RATE].clip(-1, 1).astype(np.float32)

    def mask(self, time: float) -> np.ndarray:
        """Mask bool (96, 96) of the visible part of every object whose sound is audible at `time` seconds."""
        image = Image.new("L", (SIZE, SIZE))
        draw = ImageDraw.Draw(image)
        for thing in self.shown().objects:
            if thing.start <= time < thing.end:
                sounds = any(s.matches(thing) and s.start <= time < s.end for s in self.sounds)
                paint(draw, thing.shape, thing.centre(time), thing.radius, 255 * sounds)
        return np.asarray(image) > 0

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a side file."""
        return asdict(self)


def textured_ground(rng: np.random.Generator, noise: float, size: int = SIZE) -> np.ndarray:
    """Textured background, float32 (size, size, 3): a shade, a gradient, gratings and blotches of two sizes."""
    place = np.arange(size) / size
    picture = rng.uniform(40, 110, 3) + np.tile((place - 0.5)[:, None, None] * rng.uniform(-50, 50, 3), (1, size, 1))
    for _ in range(3):
        across, down = rng.uniform(-9, 9, 2)
        phase = rng.uniform(0, 2 * np.pi)
        one, two = 2 * np.pi * across * place, 2 * np.pi * down * place + phase
        wave = np.outer(np.cos(two), np.sin(one)) + np.outer(np.sin(two), np.cos(one))
        picture += wave[..., None] * rng.normal(0, 45 * noise, 3)
    for cell in (4, 12):
        coarse = rng.normal(0, 45 * noise, (size // cell, size // cell, 3))
        picture += coarse.repeat(cell, 0).repeat(cell, 1)
    return picture.clip(0, 190).astype(np.float32)


def surface(rng: np.random.Generator, texture: int) -> np.ndarray:
    """Brightness of a texture around an object's centre, float32 (96, 96) around 1."""
    phase, angle = rng.uniform(0, 2 * np.pi, 2), rng.uniform(0, np.pi)
    along = 0.9 * (np.cos(angle) * GRID + np.sin(angle) * GRID[:, None])
    across = 0.9 * (np.cos(angle) * GRID[:, None] - np.sin(angle) * GRID)
    if TEXTURES[texture] == "striped":
        bright = np.sin(along + phase[0]) > 0
    elif TEXTURES[texture] == "dotted":
        bright = np.sin(along + phase[0]) + np.sin(across + phase[1]) < 0.6
    else:
        bright = np.ones((SIZE, SIZE), dtype=bool)
    return np.where(bright, 1.0, 0.55).astype(np.float32)


def paint_textured(picture: np.ndarray, thing: BoundObject, centre: tuple[float, float], texture: np.ndarray) -> None:
    """Draw one object into a float32 picture (96, 96, 3); its texture moves with it."""
    image = Image.new("L", (SIZE, SIZE))
    paint(ImageDraw.Draw(image), thing.shape, centre, thing.radius, 255)
    moved = np.roll(texture, (round(centre[1]), round(centre[0])), (0, 1))
    inside = np.asarray(image) > 0
    picture[inside] = moved[inside, None] * np.asarray(COLOURS[thing.colour], dtype=np.float32)


def render_sound(sound: BoundSound, samples: int, rng: np.random.Generator) -> np.ndarray:
    """One sound at level 1, float (samples,), peak near 1: its pitch, and in its timbre's band its contour."""
    time, two_pi = np.arange(samples) / SAMPLE_RATE, 2 * np.pi
    contour = CONTOURS[sound.contour]
    beat, centre = time + rng.uniform(), FORMANTS[sound.timbre] * rng.uniform(0.97, 1.03)
    octaves = None  # that it moves away from the centre
    if contour in ("rise", "fall"):
        octaves = (0.44 if contour == "rise" else -0.44) * (2 * beat % 1 - 0.5)
    elif contour == "vibrato":
        octaves = 0.2 * np.sin(two_pi * 5 * beat)
    rate, duty = {"pulses": (3, 0.5), "flutter": (10, 0.5), "ticks": (4, 0.12)}.get(contour, (0, 1))
    if octaves is None:
        phase = two_pi * centre * time
    else:
        phase = two_pi * centre * np.cumsum(np.exp2(octaves)) / SAMPLE_RATE
    if contour == "hiss":  # noise around the centre: slowly varying amplitude and phase
        knots = max(2, samples // 120)
        slow = [
            np.interp(np.linspace(0, 1, samples), np.linspace(0, 1, knots), rng.normal(size=knots)) for _ in range(2)
        ]
        carrier = slow[0] * np.cos(phase) + slow[1] * np.sin(phase)
    else:
        carrier = 0.8 * np.sin(phase) + 0.2 * np.sin(1.06 * phase)
    if rate:
        carrier = carrier * np.convolve(rate * beat % 1 < duty, np.ones(80) / 80, "same")
    low = 0.35 * np.sin(two_pi * PITCHES[sound.pitch] * rng.uniform(0.97, 1.03) * time)
    fade = np.minimum(1, np.minimum(np.arange(samples), np.arange(samples)[::-1]) / 400)
    return (0.8 * carrier + low) * fade


def reverberate(wave: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    """The sound in a room: half of `noise` is the share of its reverberation, which decays in 0.1 to 0.3 seconds."""
    tail = int(0.3 * SAMPLE_RATE)
    decay = np.exp(-np.arange(tail) / (SAMPLE_RATE * rng.uniform(0.03, 0.1)))
    echo = rng.normal(size=tail) * decay
    echo /= np.sqrt((echo**2).sum())
    length = 1 << (len(wave) + tail - 1).bit_length()
    wet = np.fft.irfft(np.fft.rfft(wave, length) * np.fft.rfft(echo, length), length)[: len(wave)]
    return (1 - noise / 2) * wave + noise / 2 * wet


def draw_objects(
    rng: np.random.Generator,
    settings: BoundSettings,
    label: int,
    colours: Sequence[int],
    seconds: int,
    columns: Sequence[float] | None = None,
) -> list[BoundObject]:
    """Objects of the given colours; in `a2v` and `time` the first has the shape `label`, and all shapes differ.

    Args:
        rng: source of all random draws.
        settings: of the dataset.
        label: of the first object.
        colours: one for each object.
        seconds: length of the scene; objects are in view all the time.
        columns: horizontal places, one for each object, whose objects move up and down only; `None` draws places that
            are apart from each other.
    """
    if settings.binding == "v2a":
        shapes = [int(s) for s in rng.integers(len(CATEGORIES), size=len(colours))]
    else:
        shapes = [label, *(int(c) for c in rng.permutation(settings.labels) if c != label)]
    made: list[BoundObject] = []
    for place, (shape, colour) in enumerate(zip(shapes, colours)):
        size, texture = int(rng.integers(len(SIZES))), int(rng.integers(len(TEXTURES)))
        radius = float(rng.uniform(*SIZES[size]))
        across, down = (float(v) for v in rng.uniform(-3, 3, 2))
        for _ in range(50):
            x, y = (float(v) for v in rng.uniform(radius + 1, SIZE - radius - 1, 2))
            if all(np.hypot(x - o.position[0], y - o.position[1]) > radius + o.radius for o in made):
                break
        if columns is not None:
            x, across = float(columns[place]), 0.0
        made.append(BoundObject(shape, colour, size, texture, radius, (x, y), (across, down), 0, seconds))
    return made


def draw_bound(
    rng: np.random.Generator,
    settings: BoundSettings,
    label: int | None = None,
    spans: Sequence[tuple[int, int]] | None = None,
    unseen: int | None = None,
    seconds: int = SECONDS,
    columns: Sequence[float] | None = None,
) -> BoundScene:
    """Draw a scene.

    Args:
        rng: source of all random draws.
        settings: of the dataset.
        label: of the first object and sound that belong together; `None` draws one.
        spans: seconds [start, end) of the sound of the first object, of the second, and so on; `None` is one sound that
            lasts from beginning to end.
        unseen: place in `spans` of a sound whose object is not in view; none where `None`.
        seconds: length.
        columns: see `draw_objects`.

    Raises:
        ArgumentError: fewer objects than `spans` need.

    >>> scene = draw_bound(np.random.default_rng(0), BoundSettings("a2v"), label=5)
    >>> len(scene.objects), len(scene.sounds), scene.events()
    (3, 1, [(5, 0, 10)])
    """
    spans = [(0, seconds)] if spans is None else list(spans)
    needed = len(spans) - (unseen is not None)
    if needed > settings.objects:
        raise ArgumentError(
            "objects", settings.objects, f"at least {needed}, one for each sound that is seen", "Raise it."
        )
    label = int(rng.choice(settings.labels)) if label is None else label
    colours = [int(c) for c in rng.permutation(len(COLOURS))]
    objects = draw_objects(rng, settings, label, colours[: settings.objects], seconds, columns)
    free = colours[settings.objects :]
    if settings.binding == "v2a":
        contours = [label, *(int(c) for c in rng.permutation(settings.labels) if c != label)]
    else:
        contours = [int(c) for c in rng.integers(len(CONTOURS), size=len(spans) + settings.offscreen_sounds)]
    sounds, seen = [], iter(objects)
    for place, (start, end) in enumerate(spans):
        if place == unseen:
            timbre, pitch = free.pop(), int(rng.integers(len(PITCHES)))
        else:
            thing = next(seen)
            timbre, pitch = thing.colour, thing.size
        sounds.append(BoundSound(contours.pop(0), timbre, pitch, float(rng.uniform(0.12, 0.25)), start, end))
    for _ in range(settings.offscreen_sounds):
        sounds.append(
            BoundSound(
                contours.pop(0), free.pop(), int(rng.integers(len(PITCHES))), float(rng.uniform(0.12, 0.25)), 0, seconds
            )
        )
    order = rng.permutation(len(objects))  # what lies in front says nothing
    return BoundScene(int(rng.integers(2**31)), tuple(objects[i] for i in order), tuple(sounds), settings, seconds)


def turns(rng: np.random.Generator, seconds: int = SECONDS, least: int = 2) -> list[tuple[int, int]]:
    """Two spans of at least `least` seconds that fill a clip, never equally long."""
    change = int(rng.choice([c for c in range(least, seconds - least + 1) if 2 * c != seconds]))
    return [(0, change), (change, seconds)]


def event_scene(rng: np.random.Generator, settings: BoundSettings, label: int, seconds: int = SECONDS) -> BoundScene:
    """A scene with one event, for AVE's and VGG-Sound's layouts: all seconds, or with `time` those before or after the
    sound changes to or from one whose object is not in view."""
    if settings.binding != "time":
        return draw_bound(rng, settings, label, seconds=seconds)
    spans = turns(rng, seconds)
    return draw_bound(rng, settings, label, spans, unseen=int(rng.integers(2)), seconds=seconds)


def chance(scene: BoundScene) -> dict[str, float]:
    """How often the best guess of a scene's label is right, from the scene's description; `time` leaves the seconds
    aside.

    A Bayes estimate: whoever sees knows every object, whoever hears knows every sound, and neither the scene's seed nor
    the order of the draws says more, because any object may sound and any sound may be seen.

    Returns:
        `audio`, `visual`, `unbound` (all shapes, colours, contours and timbres, but not which go together) and `both`,
        the oracle, each in [0, 1].

    >>> chance(draw_bound(np.random.default_rng(0), BoundSettings("a2v", objects=4)))
    {'audio': 0.125, 'visual': 0.25, 'unbound': 0.25, 'both': 1.0}
    """
    settings, guided = scene.settings, scene.settings.binding == "v2a"
    among, blind = 1 / len(scene.sounds if guided else scene.objects), 1 / settings.classes
    audio, visual = (among, blind) if guided else (blind, among)
    return {"audio": audio, "visual": visual, "unbound": among, "both": 1.0}


def spectrogram(wave: np.ndarray) -> np.ndarray:
    """Picture uint8 (96, 96, 3) of a sound (samples,): time to the right, 0 to 8 kHz upwards in steps of 83 Hz."""
    window = 192
    starts = np.linspace(0, len(wave) - window, SIZE).astype(int)
    pieces = np.stack([wave[start : start + window] for start in starts]) * np.hanning(window)
    level = 20 * np.log10(np.abs(np.fft.rfft(pieces)[:, 1:]).T[::-1] + 1e-4)
    return np.repeat((255 * ((level + 40) / 60).clip(0, 1)).astype(np.uint8)[..., None], 3, 2)


def contact_sheet(scenes: Sequence[BoundScene], seconds: int = 2) -> Image.Image:
    """A picture of scenes side by side: the first frame, the last one, and the spectrogram of the first and of the last
    seconds.

    >>> contact_sheet([draw_bound(np.random.default_rng(0), BoundSettings())]).size
    (96, 384)
    """
    columns = []
    for scene in scenes:
        frames, wave, part = scene.frames(), scene.audio(), seconds * SAMPLE_RATE
        columns.append(np.concatenate([frames[0], frames[-1], spectrogram(wave[:part]), spectrogram(wave[-part:])]))
    return Image.fromarray(np.concatenate(columns, 1))
