"""Every dataset by the name that commands take."""

from __future__ import annotations

from avprompt.datasets import ave, avsbench, kinetics_sounds, llp, music_avqa, vggsound
from avprompt.datasets.base import DatasetInfo

DATASETS: dict[str, DatasetInfo] = {
    "ave": ave.INFO,
    "kinetics_sounds": kinetics_sounds.INFO,
    "avs_s4": avsbench.INFO["s4"],
    "avs_ms3": avsbench.INFO["ms3"],
    "llp": llp.INFO,
    "music_avqa": music_avqa.INFO,
    "vggsound": vggsound.INFO,
}
