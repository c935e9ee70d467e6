"""The generated world, in each dataset's own layout, and the recipe of the tiny encoders."""

from avprompt.synth import ave, avsbench, llp, music_avqa

#: dataset -> what writes a generated world in its layout
WORLDS = {"ave": ave.synthesize, "llp": llp.synthesize, "avsbench": avsbench.synthesize,
          "music_avqa": music_avqa.synthesize}
