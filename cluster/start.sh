#!/usr/bin/env bash
# Starts the three nodes of this folder by hand, and stops them cleanly on Ctrl-C.
# BALSA names the binary: BALSA=/usr/local/bin/balsa cluster/start.sh
set -euo pipefail
cd "$(dirname "$0")"
balsa=${BALSA:-../target/release/balsa}
if ! command -v "$balsa" > /dev/null; then
    echo "there is no $balsa: build it with 'cargo build --release', or set BALSA" >&2
    exit 2
fi

# Nodes get Ctrl-C only from stop(), so that they stop once and in order.
set -m
pids=()
stop() {
    trap - INT TERM EXIT
    echo "stopping the nodes" >&2
    kill -TERM "${pids[@]}" 2> /dev/null || true
    wait "${pids[@]}" 2> /dev/null || true
    exit "${1:-0}"
}
trap 'stop 0' INT TERM
trap 'stop $?' EXIT

mkdir -p data
for node in 1 2 3; do
    "$balsa" start --config "node$node.toml" 2>> "data/node$node.log" &
    pids+=($!)
    echo "node $node: pid $!, log $PWD/data/node$node.log"
done
echo "clients: 127.0.0.1:7400, 127.0.0.1:7410, 127.0.0.1:7420; Ctrl-C stops all three"

# A node that ends is told of and not started again; the others go on.
left=("${pids[@]}")
while ((${#left[@]})); do
    code=0
    wait -n -p ended "${left[@]}" || code=$?
    [[ -n ${ended:-} ]] || break
    echo "the node with pid $ended ended with code $code" >&2
    still=()
    for pid in "${left[@]}"; do [[ $pid == "$ended" ]] || still+=("$pid"); done
    left=("${still[@]}")
done
