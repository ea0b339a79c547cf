#!/usr/bin/env bash
# Runs the two-node command of docs/scaling.md on two hosts made of network namespaces, and the same
# training in one process; both must end with the same losses. Skips where namespaces are not
# permitted.
set -euo pipefail

python=${PYTHON:-python}
folder=$(mktemp -d)
hosts=(fpmace-a fpmace-b)

clean() {
    for host in "${hosts[@]}"; do ip netns del "$host" 2>/dev/null || true; done
    rm -rf "$folder"
}
trap clean EXIT

if ! ip netns add "${hosts[0]}" 2>/dev/null; then
    echo "skipped: network namespaces are not permitted here"
    exit 0
fi
ip netns add "${hosts[1]}"
ip link add fpmace0 netns "${hosts[0]}" type veth peer name fpmace1 netns "${hosts[1]}"
for number in 0 1; do
    in_host=(ip netns exec "${hosts[$number]}")
    "${in_host[@]}" ip address add "10.77.0.$((number + 1))/24" dev "fpmace$number"
    "${in_host[@]}" ip link set "fpmace$number" up
    "${in_host[@]}" ip link set lo up
done

helpers=$(cd "$(dirname "$0")/../tests/helpers" && pwd)
PYTHONPATH="$helpers:${PYTHONPATH:-}" "$python" - "$folder" <<'PYTHON'
import sys
from pathlib import Path

import rank_cases

folder = Path(sys.argv[1])
rank_cases.write_data(folder)
rank_cases.config(folder, "two", batch_size=2)
rank_cases.config(folder, "one", batch_size=4)
PYTHON

export OMP_NUM_THREADS=1
node() {
    ip netns exec "${hosts[$1]}" env GLOO_SOCKET_IFNAME="fpmace$1" \
        "$python" -m torch.distributed.run --nnodes 2 --nproc_per_node 1 --node_rank "$1" \
        --master_addr 10.77.0.1 --master_port 29500 \
        -m fpmace.cli.train --config "$folder/two.yaml" >"$folder/node$1.txt" 2>&1
}
node 0 &
first=$!
node 1 || { cat "$folder"/node*.txt; exit 1; }
wait "$first" || { cat "$folder"/node*.txt; exit 1; }
"$python" -m fpmace.cli.train --config "$folder/one.yaml" >"$folder/one.txt" 2>&1

PYTHONPATH="$helpers:${PYTHONPATH:-}" "$python" - "$folder" <<'PYTHON'
import sys
from pathlib import Path

import rank_cases

two, one = (rank_cases.numbers(Path(sys.argv[1]) / name) for name in ("two", "one"))
gap = rank_cases.largest_difference(one, two)
print(f"two hosts against one process: largest relative difference {gap:.1e}")
assert gap < 1e-12
PYTHON
