#!/usr/bin/env bash
# The whole path on the sample pictures, everything it writes in demo/: records, training from scratch with evaluation, export,
# detection; then how good the detector is on pictures of another seed, which no training has seen.
#
#   scripts/demo.sh FOLDER    where odh and examples/draw_images are; `make demo` says which
set -euo pipefail
cd "$(dirname "$0")/.."
programs=$(cd "$1" && pwd)
seed=${DEMO_SEED:-1}
began=$SECONDS

run() {
    echo
    echo "\$ odh $*"
    "$programs/odh" "$@"
}
rm -rf demo
mkdir demo
cd demo
run tfgen -i ../images -l ../label_map.pbtxt
run train --pipeline_config ../configs/demo.config --fine_tune_checkpoint none -l ../label_map.pbtxt -n 1000 --seed "$seed"
run detect ../images
took=$((SECONDS - began))

echo
echo "How good it is on 40 pictures of another seed:"
mkdir holdout
(
    cd holdout
    "$programs/examples/draw_images" --seed 7 --count 40 --output pictures
    run tfgen -i pictures -l ../../label_map.pbtxt
)
run eval --validate_record 'holdout/dataset/*.record' --eval_dir holdout/eval_dir

cat <<END

Done; from tfgen to detect it took $((took / 60)) min $((took % 60)) s. To look at:
  demo/detections/           the sample pictures with what was found on them
  demo/process.log           what happened, how long it took, how good it is
  demo/export_dir/           the detector: for TensorFlow, ONNX and PyTorch, and as a checkpoint
  tensorboard --logdir demo  the curves and pictures, where TensorBoard is installed
END
