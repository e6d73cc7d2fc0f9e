"""Pack a folder of images into one file for ``--data packed:FILE``.

python benchmarks/gpu/pack_images.py FOLDER FILE
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[2]), str(HERE.parents[1])]  # where nothing is installed yet

from measure import one_line  # noqa: E402

from dasvit.data.sources import pack_folder  # noqa: E402

if __name__ == "__main__":
    with one_line():
        if len(sys.argv) != 3:
            raise ValueError("name a folder of images and the file to write")
        pack_folder(Path(sys.argv[1]), Path(sys.argv[2]))
