"""`python -m torch.distributed.run ... -m diag_lib.training REQUEST`: what `launch` starts."""

import sys
from pathlib import Path

from diag_lib.training.launch import serve

if __name__ == "__main__":
    sys.exit(serve(Path(sys.argv[1])))
