#!/usr/bin/env bash
# Trains models for some steps each at their configs' batch sizes, evaluates and exports them, and prints a table of what it took.
#
#   cd somewhere                       # with dataset/ and label_map.pbtxt, as `odh tfgen` writes them, and model_zoo/ if there is one
#   scripts/train_table.sh FOLDER [STEPS [MODEL...]]
#
# FOLDER has odh and, for models whose weights are not in model_zoo/, examples/reference_weights. 100 steps and all 13 models unless
# said otherwise. Everything happens in train_table/, a folder that must not be there; process.log stays in it, and what each model
# wrote is deleted when the next one begins: 13 of them would be 15 GB.
set -uo pipefail
programs=$(cd "$1" && pwd) || exit 2
steps=${2:-100}
models=("${@:3}")
[ ${#models[@]} -gt 0 ] || mapfile -t models < <("$programs/odh" models | awk '$1 ~ /^[0-9]+$/ { print $2 }')
mkdir train_table && cd train_table || exit 2
ln -s ../dataset ../label_map.pbtxt .

# The value of a field of a line of process.log.
field() { sed -n "s/.*[[,] *$1 : \([^],]*[^], ]\).*/\1/p" <<<"$2"; }

echo '| Model | Batch | Steps | Seconds a step | Images a second | Waiting for data | Peak memory | mAP@0.5 | With evaluation and export |'
echo '|---|--:|--:|--:|--:|--:|--:|--:|--:|'
failed=0
for model in "${models[@]}"; do
    rm -rf model_zoo train_dir eval_dir export_dir
    mkdir model_zoo
    if compgen -G "../model_zoo/$model*" >/dev/null; then
        ln -s "$PWD"/../model_zoo/"$model"* model_zoo/
    elif [ -x "$programs/examples/reference_weights" ]; then
        "$programs/examples/reference_weights" "$model" model_zoo >/dev/null 2>&1
    fi
    began=$(date +%s.%N)
    if "$programs/odh" train -m "$model" -s "$steps" -n "$steps" >train.out 2>&1; then
        took=$(awk -v a="$began" -v b="$(date +%s.%N)" 'BEGIN { s = b - a; printf "%d m %02d s", s / 60, s % 60 }')
        line=$(grep 'Training \[ model' process.log | tail -n 1)
        batch=$(field 'batch size' "$(grep 'Settings \[' process.log | tail -n 1)")
        rate=$(field 'images per second' "$line")
        step=$(awk -v batch="$batch" -v rate="$rate" 'BEGIN { printf "%.3f", batch / rate }')
        memory=$(sed -n 's/.*peak memory : \(.*\) \]$/\1/p' <<<"$line")
        echo "| $model | $batch | $steps | $step | $rate | $(field 'waiting for data' "$line") | $memory | $(field 'mAP@0.5' "$line") | $took |"
    else
        why=$(grep '\[CRITICAL|' process.log | tail -n 1 | sed 's/^[^>]*> //; s/\\n.*//')
        echo "| $model | | | failed: $why | | | | | |"
        failed=1
    fi
done
exit $failed
