"""Task heads: they turn the features of a backbone into the outputs of a task."""

from avprompt.heads.avel import AVEL
from avprompt.heads.avsdn import AVSDN
from avprompt.heads.cman import CMAN
from avprompt.heads.cmbs_alone import CMBSAlone
from avprompt.heads.cmran import CMRAN
from avprompt.heads.dam import DAM
from avprompt.heads.event_head import EventHead
from avprompt.heads.han import HAN, JoMoLD, ParsingHead
from avprompt.heads.mm_pyramid import MMPyramid, MMPyramidParsing
from avprompt.heads.psp import PSP
from avprompt.heads.rfjc import RFJC

__all__ = [
    "AVEL",
    "AVSDN",
    "CMAN",
    "CMRAN",
    "DAM",
    "HAN",
    "PSP",
    "RFJC",
    "CMBSAlone",
    "EventHead",
    "JoMoLD",
    "MMPyramid",
    "MMPyramidParsing",
    "ParsingHead",
]
