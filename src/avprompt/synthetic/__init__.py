"""Synthetic datasets in the layout of each real dataset, and the pretraining of the tiny encoders."""

from collections.abc import Callable
from typing import Any

from avprompt.synthetic import ave, avsbench, kinetics_sounds, llp, music_avqa, vggsound

#: dataset -> function that writes a synthetic dataset in its layout
SYNTHETIC_DATASETS: dict[str, Callable[..., Any]] = {
    "ave": ave.synthesize,
    "kinetics_sounds": kinetics_sounds.synthesize,
    "llp": llp.synthesize,
    "avsbench": avsbench.synthesize,
    "music_avqa": music_avqa.synthesize,
    "vggsound": vggsound.synthesize,
}
