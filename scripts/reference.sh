#!/usr/bin/env bash
# The reference study once more: scripts/reference.sh [name=again] [KEY=VALUE ...]
#
# Eight normalizers × batch 2, 8, 32, 128 × two seeds: ResNet-8, 10,000 pictures of CIFAR-10 as JPEG, 6 epochs. Every
# step is on 128 images, batch × workers, so that batch is how many of them share statistics, and nothing else. Leaves
# runs/<name>; the published one is runs/reference, made by name=reference. What is done is not done again.
# With slots=2 two cells are trained at a time: the same numbers.
set -euo pipefail
cd "$(dirname "$0")/.."
archive=data/cifar10-jpeg.tar.xz
[[ " $*" == *" name="* ]] || set -- name=again "$@"
[[ -f $archive ]] || .venv/bin/python scripts/cifar10_jpeg.py data/cifar10 "$archive"
for seed in 0 1; do
    for batch in 2 8 32 128; do
        .venv/bin/python -m normbench.sweep arch=resnet8 \
            data=folder data.root="$archive" data.title=cifar10-jpeg data.limit=10000 data.pad=4 data.flip=true \
            recipe=cifar recipe.warmup_epochs=1 epochs=6 threads=1 \
            norm=bn,brn,mabn,bgn,gn,ln,frn,evonorm_s0 batch=$batch workers=$((128 / batch)) seed=$seed "$@"
    done
done
