#!/usr/bin/env python3
"""Runs a frozen_inference_graph.pb in TensorFlow and compares what it finds with a detections.json.

    python3.11 -m venv venv && venv/bin/pip install -r tests/interop/requirements.txt
    odh export -m ssd_mobilenet_v1_0.75_depth_coco
    odh detect -m ssd_mobilenet_v1_0.75_depth_coco --output_dir found photos/
    venv/bin/python tests/interop/frozen_graph.py export_dir/ssd_mobilenet_v1_0.75_depth_coco/frozen_inference_graph.pb \\
        found/detections.json photos/

Each detection of the file is paired with the graph's of the same class and the nearest box. Prints a table and the largest
differences in score and box (the box as a share of the picture's side); exit code 1 if one is over the tolerance or a detection
has no partner.
"""
import argparse
import json
import os
import statistics
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
import numpy as np
import tensorflow.compat.v1 as tf

OUTPUTS = ["detection_boxes", "detection_scores", "detection_classes", "num_detections"]


def load(path):
    """A session on the graph of a file."""
    definition = tf.GraphDef()
    with open(path, "rb") as file:
        definition.ParseFromString(file.read())
    graph = tf.Graph()
    with graph.as_default():
        tf.import_graph_def(definition, name="")
    return tf.Session(graph=graph)


def check_contract(session):
    """The types and ranks that the names stand for."""
    tensor = lambda name: session.graph.get_tensor_by_name(name + ":0")
    assert tensor("image_tensor").dtype == tf.uint8, tensor("image_tensor")
    assert tensor("image_tensor").shape.as_list() == [None, None, None, 3], tensor("image_tensor")
    for name, rank in zip(OUTPUTS, [3, 2, 2, 1]):
        assert tensor(name).dtype == tf.float32 and tensor(name).shape.rank == rank, tensor(name)


def decode(path):
    """The picture as TensorFlow decodes it, [height, width, 3]."""
    with open(path, "rb") as file, tf.Graph().as_default(), tf.Session() as session:
        return session.run(tf.io.decode_image(file.read(), channels=3, expand_animations=False))


def detect(session, pictures):
    """Detections of a batch [N, height, width, 3], one dictionary of arrays a picture."""
    values = session.run([name + ":0" for name in OUTPUTS], {"image_tensor:0": pictures})
    boxes, scores, classes, counts = values
    return [
        {"boxes": boxes[i, :n], "scores": scores[i, :n], "classes": classes[i, :n].astype(int)}
        for i, n in enumerate(counts.astype(int))
    ]


def compare(expected, found):
    """The largest differences in score and box; infinite if a detection has no partner."""
    free = set(range(len(found["scores"])))
    scores, boxes = 0.0, 0.0
    for detection in expected:
        same = [i for i in free if found["classes"][i] == detection["class_id"]]
        if not same:
            return float("inf"), float("inf")
        distance = lambda i: np.abs(found["boxes"][i] - detection["box"]).max()
        nearest = min(same, key=distance)
        free.remove(nearest)
        boxes = max(boxes, float(distance(nearest)))
        scores = max(scores, abs(float(found["scores"][nearest]) - detection["score"]))
    return scores, boxes


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graph")
    parser.add_argument("detections", help="detections.json, as `odh detect` writes it")
    parser.add_argument("pictures", nargs="+", help="folders that have the pictures, by the names in the file")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--sizes", action="store_true", help="also pictures from 1x1 to 4000x3000, and a batch of three")
    args = parser.parse_args()
    session = load(args.graph)
    check_contract(session)
    with open(args.detections, encoding="utf-8") as file:
        expected = json.load(file)
    worst, times = 0.0, []
    print(f"{'picture':40} {'detections':>10} {'score':>9} {'box':>9} {'seconds':>8}")
    for name, entry in expected.items():
        paths = [os.path.join(folder, name) for folder in args.pictures]
        path = next((p for p in paths if os.path.exists(p)), None)
        if path is None:
            sys.exit(f"{name}: in none of {args.pictures}")
        picture = decode(path)
        start = time.perf_counter()
        found = detect(session, picture[None])[0]
        times.append(time.perf_counter() - start)
        score, box = compare(entry["detections"], found)
        worst = max(worst, score, box)
        print(f"{name:40} {len(entry['detections']):10} {score:9.2e} {box:9.2e} {times[-1]:8.3f}")
    print(f"{len(expected)} pictures, largest difference {worst:.2e}, median {statistics.median(times):.3f} s, TensorFlow {tf.__version__}")
    if args.sizes:
        random = np.random.RandomState(0)
        for shape in [(1, 1, 1, 3), (1, 300, 300, 3), (1, 3000, 4000, 3), (1, 40, 640, 3), (3, 200, 300, 3)]:
            batch = random.randint(0, 256, shape).astype(np.uint8)
            together = detect(session, batch)
            alone = [detect(session, picture[None])[0] for picture in batch]
            for a, b in zip(together, alone):
                assert all(np.abs(a[key] - b[key]).max(initial=0) < args.tolerance for key in a), shape
            print(f"{shape}: {[len(found['scores']) for found in together]} detections, each picture as if alone")
    if worst > args.tolerance:
        sys.exit(f"the largest difference is over {args.tolerance}")


main()
