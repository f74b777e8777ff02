"""Which images are there, and what exactly does the network see of them?"""

from diag_lib.images.decode import DecodeError, decode, decode_bytes
from diag_lib.images.places import beside_run, keep_out_of_dataset
from diag_lib.images.sources import ImageTable, printable, read_table, refuse_missing
from diag_lib.images.store import ImageSet, epoch_batches, open_split, steps_of_epoch, to_input
from diag_lib.images.views import Reencode

__all__ = [
    "DecodeError",
    "ImageSet",
    "ImageTable",
    "Reencode",
    "beside_run",
    "decode",
    "decode_bytes",
    "epoch_batches",
    "keep_out_of_dataset",
    "open_split",
    "printable",
    "read_table",
    "refuse_missing",
    "steps_of_epoch",
    "to_input",
]
