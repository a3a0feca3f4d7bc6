#!/usr/bin/env bash
# The whole path on the sample pictures, everything it writes in demo/: records, training from scratch with evaluation, export, detection.
#
#   scripts/demo.sh ODH    the program to use; `make demo` says which
set -euo pipefail
cd "$(dirname "$0")/.."
odh=$1
rm -rf demo
mkdir demo
cd demo

run() {
    echo
    echo "\$ odh $*"
    "$odh" "$@"
}
began=$SECONDS
run tfgen -i ../images -l ../label_map.pbtxt
run train --pipeline_config ../configs/demo.config -l ../label_map.pbtxt --fine_tune_checkpoint none --seed 1
run detect ../images
took=$((SECONDS - began))

cat <<END

Done in $((took / 60)) min $((took % 60)) s. To look at:
  demo/detections/           the sample pictures with what was found on them
  demo/process.log           what happened, how long it took, how good it is
  demo/export_dir/           the detector: frozen_inference_graph.pb and a checkpoint
  tensorboard --logdir demo  the curves and pictures, where TensorBoard is installed
END
