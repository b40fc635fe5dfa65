#!/usr/bin/env bash
# All results and pictures of what a training step costs, into DIR (default: benchmarks/results) and docs/images/.
#
#   OMP_NUM_THREADS=1 benchmarks/costs.sh [DIR]     # on a quiet machine; stop and start again as you like
#
# A result that stands there already is not measured again.  ROUNDS=1 FLAGS="--batch 1" tries everything out.
set -euo pipefail
cd "$(dirname "$0")/.."
results=${1:-benchmarks/results}
pictures=${PICTURES:-docs/images}
python=${PYTHON:-uv run --no-sync python}
rounds=${ROUNDS:-15}

cost() {  # network rank [flags]
    local out=$results/cost_$1_r$2.json
    [ -e "$out" ] || $python benchmarks/train_step.py --network "$1" --rank "$2" --rounds "$rounds" --out "$out" ${FLAGS:-} "${@:3}"
}

for network in minilm large vit; do cost $network 8 --compile; done
for network in llama mvit base resnet50 x3d; do # thirty layers, and Python that branches, take a CPU too long to compile six times
    cost $network 8
done
for rank in 64 1; do
    for network in minilm large vit llama mvit; do cost $network $rank; done
done
for network in minilm large vit llama mvit; do
    $python benchmarks/cost_picture.py "$results"/cost_${network}_r{1,8,64}.json "$pictures/cost_$network.png"
done
for network in base resnet50 x3d; do
    $python benchmarks/cost_picture.py "$results/cost_${network}_r8.json" "$pictures/cost_$network.png"
done
growth=$results/growth.json
[ -e "$growth" ] || $python benchmarks/growth.py --rounds "$rounds" --out "$growth"
$python benchmarks/growth_picture.py "$growth" "$pictures/growth.png"
$python benchmarks/report.py "$results"/cost_*.json
