#!/bin/sh
# Split the water-ion set by trajectory and cut the quickstart subset out of its parts.
#   sh data/tools/make_splits.sh water_clusters_xtb.xyz
set -eu
here=$(dirname "$0")
data=$here/..
split="python $here/split_xyz.py"
$split "$1" "$data/water_ions" --share train=0.8 valid=0.1 test=0.1
$split "$data/water_ions/train.xyz" "$data/quickstart" --share train=0.217
$split "$data/water_ions/valid.xyz" "$data/quickstart" --share valid=0.35
$split "$data/water_ions/test.xyz" "$data/quickstart" --share test=0.58
$split "$data/water_clusters_dft.xyz" "$data/fine_tuning" --share train=0.6 valid=0.2 test=0.2
