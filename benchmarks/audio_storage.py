"""What the store's 16-bit sound loses, in the log-mel spectrogram that HTS-AT reads, beside 16-bit floats.

    python benchmarks/audio_storage.py VIDEO [VIDEO ...]

For each video: the loudest and the mean level of its first ten seconds, and for each way of storing sound the signal
to noise ratio of the waveform, and the mean and largest difference of the spectrogram in dB, over bins within 60 dB of
the loudest and over all.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from avprompt.encoders import HTSAT
from avprompt.media.decode import Sampling, decode_audio
from avprompt.media.store import LOUDEST

WAYS = {
    "int16": lambda wave: np.round(wave * LOUDEST).clip(-LOUDEST, LOUDEST - 1) / LOUDEST,
    "float16": lambda wave: wave.astype(np.float16),
}


def main() -> None:
    """Print a line for each video and way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+", type=Path)
    sampling, encoder = Sampling(), HTSAT("none").eval()

    def spectrogram(wave: np.ndarray) -> torch.Tensor:
        with torch.no_grad():  # random weights leave `bn0` without effect
            return encoder.log_mel(torch.from_numpy(wave.astype(np.float32)).view(sampling.segments, -1), 1)

    for path in parser.parse_args().videos:
        wave, _ = decode_audio(path, sampling.sample_rate, 0.0, sampling.segments * sampling.samples)
        exact = spectrogram(wave)
        heard = exact > exact.max() - 60
        level = 20 * np.log10([np.abs(wave).max(), np.sqrt(np.square(wave, dtype=np.float64).mean())])
        print(f"{path.name}: peak {level[0]:.1f} dB, mean {level[1]:.1f} dB")
        for name, way in WAYS.items():
            stored = way(wave).astype(np.float32)
            noise = np.square(stored - wave, dtype=np.float64).mean()
            ratio = 10 * np.log10(np.square(wave, dtype=np.float64).mean() / noise) if noise else np.inf
            off = (spectrogram(stored) - exact).abs()
            print(
                f"  {name:8} signal to noise {ratio:6.1f} dB; heard bins {off[heard].mean():.5f} dB, at most "
                f"{off[heard].max():.4f} dB; all bins {off.mean():.5f} dB, at most {off.max():.4f} dB"
            )


if __name__ == "__main__":
    main()
