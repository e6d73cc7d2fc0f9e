#!/usr/bin/env bash
# Fill one folder with all that the GPU evidence needs on a machine without a network, and print the commands to run there.
#
#   benchmarks/gpu/pack.sh IMAGES [FOLDER]
#
# IMAGES is a folder with train and test folders; FOLDER is made anew, by default runs/gpu/pack, which git ignores. It gets
# the code of the last commit, the wheels of what such a machine is not expected to have beside torch, and the images as one
# file. FOR is the version of Python there, PYTHON the one to pack with.
set -euo pipefail

usage() { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
[ $# -ge 1 ] && [ $# -le 2 ] || usage
PYTHON=${PYTHON:-python3}
FOR=${FOR:-3.12}
LIMIT=50000000 # bytes

root=$(cd "$(dirname "$0")/../.." && pwd)
images=$(cd "$1" 2>/dev/null && pwd) || { echo "$1 is no folder: name one with train and test folders" >&2; exit 2; }
mkdir -p "${2:-$root/runs/gpu}"
folder=$(cd "${2:-$root/runs/gpu}" && pwd)
[ $# -eq 2 ] || folder=$folder/pack
if [ -e "$folder" ] && [ -n "$(ls -A "$folder")" ] && [ ! -e "$folder/code/.commit" ]; then
    echo "$folder holds something else: name a new folder" >&2
    exit 2
fi
rm -rf "$folder"/{code,wheels,images.packed}
mkdir -p "$folder"/{code,wheels}

# Results name the commit that they come from: so what is carried is that of one.
git -C "$root" archive HEAD dasvit benchmarks pyproject.toml constraints.txt README.md LICENSE | tar -x -C "$folder/code"
git -C "$root" rev-parse HEAD > "$folder/code/.commit"

# fvcore and iopath are published without a wheel.
with=(-c "$root/constraints.txt" --no-deps --quiet --disable-pip-version-check)
"$PYTHON" -m pip wheel "${with[@]}" -w "$folder/wheels" fvcore iopath "$folder/code"
"$PYTHON" -m pip download "${with[@]}" -d "$folder/wheels" --only-binary=:all: \
    --python-version "$FOR" --implementation cp --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 \
    tyro docstring_parser typeguard pydantic pydantic_core annotated-types typing-inspection typing_extensions \
    yacs termcolor timm
rm -rf "$folder"/code/build "$folder"/code/*.egg-info

(cd "$folder/code" && "$PYTHON" benchmarks/gpu/pack_images.py "$images" ../images.packed)

bytes=$(cat $(find "$folder/code" "$folder/wheels" "$folder/images.packed" -type f) | wc -c)
if [ "$bytes" -gt "$LIMIT" ]; then
    echo "$folder has $bytes bytes, more than $LIMIT: leave images out" >&2
    exit 1
fi
cat <<END
$folder has $bytes bytes. Carry it over; there, in it, install once:

    python -m pip install --no-index --no-deps --find-links wheels --target site wheels/*.whl

and in each shell:

    cd code && export PYTHONPATH=\$PWD:\$PWD/../site
    python benchmarks/gpu/gate.py
    setsid nohup python benchmarks/gpu/search.py --data packed:../images.packed --minutes 25 > search.log 2>&1 < /dev/null &

benchmarks/gpu/README.md tells what comes when.
END
