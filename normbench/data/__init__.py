"""Data sets: described before anything runs, opened on the device they are trained on.

description.py          what the rest of normbench sees: Description, Pictures, Feed, Look
sources.py              a name → the pictures behind it
digits official folder domains user     the kinds of source
tree listing archive picture files      names → classes, archives, decoding
packs prepared prepare          a resized copy: its files, its checks, how it is made (and __main__, the command)
arrays.py cache.py      decoded sets in memory, and on disk between runs
split.py                limit, held-out share, our own splits
tuned.py                a held-out share beside the test set
share.py                the steps left of an epoch, and one rank's part of them
memory.py stream.py     the two ways pictures are handed out
view decode cut         how a streamed picture becomes pixels
progress.py             what a person sees meanwhile
"""

from normbench.data.description import Description, Feed, Look, Pictures, feed, look
from normbench.data.sources import check_decoder, describe, names, open_pictures

__all__ = [
    "Description",
    "Feed",
    "Look",
    "Pictures",
    "check_decoder",
    "describe",
    "feed",
    "look",
    "names",
    "open_pictures",
]
