"""The generated world, in each dataset's own layout, and the recipe of the tiny encoders."""

from avprompt.synthetic import ave, avsbench, kinetics_sounds, llp, music_avqa, vggsound

#: dataset -> what writes a generated world in its layout
SYNTHETIC_DATASETS = {"ave": ave.synthesize, "kinetics_sounds": kinetics_sounds.synthesize, "llp": llp.synthesize,
          "avsbench": avsbench.synthesize, "music_avqa": music_avqa.synthesize, "vggsound": vggsound.synthesize}
