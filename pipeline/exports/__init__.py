"""A run in the layout of a training code: `tokenmill export OUTPUT --format F --to URL`.

    source   the rows of a run as one sequence
    format   the interface: one small file for each layout below it
    plan     the sequence cut into units
    job      units to files, once each; the accounts; what stands beside them

What each layout is, and which training codes cannot be fed, stands in docs/exports.md.
"""

from pipeline.exports.binary import Binary
from pipeline.exports.dalle_mini import DalleMini
from pipeline.exports.format import Format
from pipeline.exports.fourm import FourM
from pipeline.exports.hugging_face import HuggingFace
from pipeline.exports.llamagen import LlamaGen, LlamaGenText
from pipeline.exports.maskgit import MaskGit
from pipeline.exports.mds import Mds
from pipeline.exports.open_muse import OpenMuse
from pipeline.exports.rar import Rar
from pipeline.exports.webdataset import WebDataset

FORMATS: dict[str, type[Format]] = {
    "hf": HuggingFace,
    "llamagen": LlamaGen,
    "llamagen-t2i": LlamaGenText,
    "rar": Rar,
    "4m": FourM,
    "open-muse": OpenMuse,
    "maskgit": MaskGit,
    "webdataset": WebDataset,
    "dalle-mini": DalleMini,
    "bin": Binary,
    "mds": Mds,
}
