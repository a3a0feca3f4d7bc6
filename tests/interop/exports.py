#!/usr/bin/env python3
"""Exports models, runs every file in its own runtime, and compares what it finds with `odh detect`.

    python3.11 -m venv venv && venv/bin/pip install -r tests/interop/requirements.txt
    cargo build --release --bin odh --example reference_weights
    venv/bin/python tests/interop/exports.py ssd_mobilenet_v1_coco faster_rcnn_resnet50_coco --pictures ../shared/reference/images

Weights are looked for in --zoo; where there are none they are made from the variables' names (examples/reference_weights.rs). `--all` takes
all 13 models. Each detection that odh finds is paired with the file's of the same class and the nearest box and score; a table gives the
largest differences in score and box (the box as a share of the picture's side), and how many detections score over 0.05 on both sides. Exit
code 1 if a difference is over the tolerance, or a detection has no partner.

TensorFlow's crop_and_resize, which all files of a Faster R-CNN do as it does, gives 0 for a sample behind the map. A proposal that ends on
the picture's edge has its last samples exactly there, and one rounding decides whether they are the map's last cells or 0: the original graph
with oneDNN and without finds other scores for such an object. So where a picture differs, the frozen graph is run in TensorFlow with these
ends a little before the edge or a little behind it; and with the anchors' scores rounded otherwise, which choose among equals where a picture
is all of one colour. What moves by that is compared with what these runs find, and counted in the column `moves`; all else must be equal as
ever. What is none of these either, as of hundreds of anchors that are equal to the last bit, is right if the frozen graph, from the file's own values,
does as the file does stage by stage: raw predictions, proposals from the file's objectness, the second stage on its proposals, detections from its scores.
The file is then compared with the frozen graph, not with odh, whose detections without an equal in it all count as moving.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
import numpy as np
import onnx as onnx_files
import onnxruntime
import tensorflow as tf
import torch
from PIL import Image

OUTPUTS = ["detection_boxes", "detection_scores", "detection_classes", "num_detections"]
ALL = [
    "ssd_mobilenet_v1_coco", "ssd_mobilenet_v2_coco", "ssd_inception_v2_coco", "faster_rcnn_inception_v2_coco", "faster_rcnn_resnet50_coco",
    "faster_rcnn_resnet50_lowproposals_coco", "rfcn_resnet101_coco", "faster_rcnn_resnet101_coco", "faster_rcnn_resnet101_lowproposals_coco",
    "faster_rcnn_inception_resnet_v2_atrous_coco", "faster_rcnn_inception_resnet_v2_atrous_lowproposals_coco", "faster_rcnn_nas",
    "faster_rcnn_nas_lowproposals_coco",
]
# What --sizes adds: the first picture at these widths and heights, and grey.
SIZES = [(1, 1), (300, 300), (4000, 3000), (640, 40), (40, 640)]
# And a batch of random pictures, where the model takes one.
BATCH = (3, 200, 300, 3)
# How far a proposal's end is moved from the edge, as a share of the side: more than all roundings on the way to a sample, too little to see.
EDGE = 2e-6
# All of them inside, all behind, or only one side's.
WAYS = [(-1, -1), (1, -1), (-1, 1), (1, 1)]
# How far a stage's values may be from TensorFlow's on the same input, as a share of the largest.
STAGE = 2e-5
# How far one runtime's objectness is from another's, as a share of the largest; where much is alike it says which anchor is the best.
ROUNDING = 2e-6


def frozen_session(folder):
    """The file as the tutorial's notebook uses it: imported, to be fed and fetched by names."""
    definition = tf.compat.v1.GraphDef()
    with open(os.path.join(folder, "frozen_inference_graph.pb"), "rb") as file:
        definition.ParseFromString(file.read())
    graph = tf.Graph()
    with graph.as_default():
        tf.import_graph_def(definition, name="")
    tensor = lambda name: graph.get_tensor_by_name(name + ":0")
    assert tensor("image_tensor").dtype == tf.uint8 and tensor("image_tensor").shape.as_list() == [None, None, None, 3]
    for name, rank in zip(OUTPUTS, [3, 2, 2, 1]):
        assert tensor(name).dtype == tf.float32 and tensor(name).shape.rank == rank, tensor(name)
    return tf.compat.v1.Session(graph=graph)


def frozen_graph(folder):
    session = frozen_session(folder)
    return lambda pictures: session.run([name + ":0" for name in OUTPUTS], {"image_tensor:0": pictures})


def rounded_otherwise(folder, mixed):
    """What the frozen graph finds where its proposals end inside or behind the edge, or are others; nothing where there are no proposals."""
    session = frozen_session(folder)
    try:
        boxes, logits = [session.graph.get_tensor_by_name(name) for name in ("FirstStagePostprocessor/boxes:0", "FirstStageBoxPredictor/ClassPredictor/BiasAdd:0")]
    except KeyError:
        return lambda pictures: []

    def run(pictures):
        fed = {"image_tensor:0": pictures}
        exact = session.run(logits, fed)
        noise = ROUNDING * np.abs(exact).max()
        found, random = [], np.random.RandomState(0)
        for sides in WAYS + [None] * mixed:
            if sides is None:
                fed[logits] = exact + random.uniform(-noise, noise, exact.shape)
            fed.pop(boxes, None)
            proposals = session.run(boxes, fed)
            if sides is None:
                sides = random.choice([-1, 1], (len(proposals), 2))
            proposals[:, 2:] = np.where(proposals[:, 2:] > 1 - EDGE, 1 + EDGE * np.asarray(sides), proposals[:, 2:])
            fed[boxes] = proposals
            found.append(session.run([name + ":0" for name in OUTPUTS], fed))
        return found

    return run


class Stages:
    """What passes from one stage of a Faster R-CNN to the next, by the frozen graph's names for it; the files have the same under theirs."""

    FIRST, SECOND = [[f"{stage}StageBoxPredictor/{kind}Predictor/" for kind in ("BoxEncoding", "Class")] for stage in ("First", "Second")]
    SCORES = [f"{stage}StagePostprocessor/convert_scores" for stage in ("First", "Second")]
    PROPOSALS = "FirstStagePostprocessor/ToNormalizedCoordinates"

    @staticmethod
    def onnx(folder):
        """Runs the file with these values as further outputs."""
        model = onnx_files.load(os.path.join(folder, "model.onnx"))
        names = [name + "Conv2D" for name in Stages.FIRST] + [Stages.SCORES[0], Stages.PROPOSALS]
        names += ["SecondStagePostprocessor/codes", "SecondStagePostprocessor/logits", Stages.SCORES[1]]
        for name in names:
            model.graph.output.append(onnx_files.helper.make_tensor_value_info(name, onnx_files.TensorProto.FLOAT, None))
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

        def run(pictures):
            codes, logits, *rest = session.run(names, {"image_tensor": pictures})
            return [codes.transpose(0, 2, 3, 1), logits.transpose(0, 2, 3, 1), *rest]

        return run

    @staticmethod
    def torchscript(folder):
        """Calls the file's methods one by one; scores, which no method gives, are taken here from its logits."""
        model = torch.jit.load(os.path.join(folder, "model.torchscript.pt"))

        @torch.no_grad()
        def run(pictures):
            pictures = model.pictures(torch.from_numpy(pictures))
            size = model.target_size(pictures.size(1), pictures.size(2))
            features, codes, logits = model.first_stage(model.preprocess(pictures, *size))
            corners = torch.tensor(list(model.frame(size)) * 2, dtype=torch.float32)
            proposals, counts = model.propose(codes, logits, corners)
            proposals = proposals * (1.0 / corners)
            second = model.classify(features, proposals, model.numbers(counts, pictures.device))
            codes, logits = codes.permute(0, 2, 3, 1), logits.permute(0, 2, 3, 1)
            scores = torch.softmax(logits.reshape(len(logits), -1, 2), 2)
            values = [codes, logits, scores, proposals[None], *second, torch.softmax(second[1], 1)[None]]
            return [value.contiguous().numpy() for value in values]

        return run


def stage_by_stage(folder, name):
    """What the frozen graph detects in one picture from the values of a file of another format; `None` where a stage of the file does otherwise
    than the graph's own stage on the same input, or a network has no such stages."""
    stages = getattr(Stages, name, None)
    if stages is None:
        return lambda pictures: None
    session = frozen_session(folder)
    tensors = [predictor + "BiasAdd:0" for predictor in Stages.FIRST] + [Stages.SCORES[0] + ":0", Stages.PROPOSALS + ":0"]
    tensors += [predictor + "BiasAdd:0" for predictor in Stages.SECOND] + [Stages.SCORES[1] + ":0"]
    try:
        tensors = [session.graph.get_tensor_by_name(tensor) for tensor in tensors]
    except KeyError:
        return lambda pictures: None
    values_of = stages(folder)

    def detect(pictures):
        fed = {"image_tensor:0": pictures}
        for tensor, value in zip(tensors, values_of(pictures)):
            expected = session.run(tensor, fed)
            if expected.size != value.size:
                return None
            value = value.reshape(expected.shape)
            if np.abs(value - expected).max(initial=0) > STAGE * np.abs(expected).max(initial=1e-30):
                return None
            fed[tensor] = value
        return session.run([output + ":0" for output in OUTPUTS], fed)

    return detect


def saved_model(folder):
    loaded = tf.saved_model.load(os.path.join(folder, "saved_model"))
    function = loaded.signatures["serving_default"]

    def run(pictures, loaded=loaded):
        found = function(inputs=tf.constant(pictures))
        return [found[name].numpy() for name in OUTPUTS]

    return run


def onnx(folder):
    session = onnxruntime.InferenceSession(os.path.join(folder, "model.onnx"), providers=["CPUExecutionProvider"])
    return lambda pictures: session.run(OUTPUTS, {"image_tensor": pictures})


def openvino(folder):
    """model.onnx in another runtime."""
    from openvino import Core

    model = Core().compile_model(os.path.join(folder, "model.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(pictures):
        found = model(pictures)
        return [found[name] for name in OUTPUTS]

    return run


def torchscript(folder):
    """The file alone: PyTorch without torchvision, and nothing of odh's."""
    model = torch.jit.load(os.path.join(folder, "model.torchscript.pt"))
    classes = {c["id"]: c["name"] for c in json.loads(model.metadata())["classes"]}
    with open(os.path.join(folder, "labels.txt"), encoding="utf-8") as file:
        labels = file.read().splitlines()
    assert all(labels[i - 1] == name for i, name in classes.items()) and classes
    return lambda pictures: [values.numpy() for values in model(torch.from_numpy(pictures))]


FORMATS = {"frozen_graph": frozen_graph, "saved_model": saved_model, "onnx": onnx, "torchscript": torchscript}
RUNTIMES = {**FORMATS, "openvino": openvino}
FILES = {"openvino": "model.onnx", "frozen_graph": "frozen_inference_graph.pb", "saved_model": "saved_model/saved_model.pb", "onnx": "model.onnx", "torchscript": "model.torchscript.pt"}


def decode(path):
    """The picture as TensorFlow decodes it, [height, width, 3]."""
    with open(path, "rb") as file:
        return tf.io.decode_image(file.read(), channels=3, expand_animations=False).numpy()


def detections(values, i):
    """Picture `i` of a batch."""
    n = int(values[3][i])
    return {"boxes": values[0][i, :n], "scores": values[1][i, :n], "classes": values[2][i, :n].astype(int)}


def compare(expected, found, least):
    """The largest differences in score and box; infinite if a detection has no partner or the counts differ."""
    free = set(range(len(found["scores"])))
    scores, boxes = 0.0, 0.0
    if not (np.isfinite(found["scores"]).all() and np.isfinite(found["boxes"]).all()):
        return float("inf"), float("inf")
    if len(expected) != int((found["scores"] >= least).sum()):
        # At the threshold's very edge either side may have one more.
        edge = sum(abs(d["score"] - least) < 1e-4 for d in expected) + int((np.abs(found["scores"] - least) < 1e-4).sum())
        if edge == 0:
            return float("inf"), float("inf")
    for detection in expected:
        same = [i for i in free if found["classes"][i] == detection["class_id"]]
        if not same:
            return float("inf"), float("inf")
        differences = lambda i: (float(np.abs(found["boxes"][i] - detection["box"]).max()), abs(float(found["scores"][i]) - detection["score"]))
        best = min(same, key=lambda i: sum(differences(i)))
        free.remove(best)
        box, score = differences(best)
        boxes, scores = max(boxes, box), max(scores, score)
    # What the file alone finds, clear of the threshold.
    if any(found["scores"][i] >= least + 1e-4 for i in free):
        return float("inf"), float("inf")
    return scores, boxes


def settle(expected, found, others, least, tolerance):
    """`compare`, where what moves by itself may be as it is in any of `others`. Returns also how many detections do.

    A detection of odh's without an equal in the file moves if one of the others has no equal of it either; the file's without an equal must
    have one in the others.
    """
    if not (np.isfinite(found["scores"]).all() and np.isfinite(found["boxes"]).all()):
        return float("inf"), float("inf"), 0
    free, alone = set(range(len(found["scores"]))), []
    score, box = 0.0, 0.0

    def nearest(one, rows, among):
        apart = lambda i: (abs(float(rows["scores"][i]) - one["score"]), float(np.abs(rows["boxes"][i] - one["box"]).max()))
        same = [apart(i) + (i,) for i in among if rows["classes"][i] == one["class_id"]]
        return min(same, key=lambda d: d[0] + d[1], default=(np.inf, np.inf, None))

    equal = lambda differences: max(differences[:2]) <= tolerance
    for one in expected:
        differences = nearest(one, found, free)
        if equal(differences):
            free.remove(differences[2])
            score, box = max(score, differences[0]), max(box, differences[1])
        else:
            alone.append((one, differences))
    moving = 0
    for one, differences in alone:
        if abs(one["score"] - least) < tolerance:
            continue
        if all(equal(nearest(one, other, range(len(other["scores"])))) for other in others):
            score, box = max(score, differences[0]), max(box, differences[1])
        else:
            moving += 1
    for i in free:
        if found["scores"][i] < least + tolerance:
            continue
        one = {"score": float(found["scores"][i]), "box": found["boxes"][i], "class_id": int(found["classes"][i])}
        differences = min((nearest(one, other, range(len(other["scores"]))) for other in others), key=lambda d: d[0] + d[1], default=(np.inf, np.inf))
        score, box = max(score, differences[0]), max(box, differences[1])
    return score, box, moving


def resized(folder, into):
    """The first picture of `folder` at all of SIZES and as one channel, in a new folder `into`."""
    os.mkdir(into)
    with Image.open(os.path.join(folder, min(os.listdir(folder)))) as picture:
        picture = picture.convert("RGB")
        picture.convert("L").save(os.path.join(into, "grey.png"))
        for size in SIZES:
            picture.resize(size, Image.Resampling.BILINEAR).save(os.path.join(into, f"{size[0]}x{size[1]}.png"))


def batched(run, tolerance):
    """Whether each picture of a batch gives what it gives alone."""
    pictures = np.random.RandomState(0).randint(0, 256, BATCH).astype(np.uint8)
    together = run(pictures)
    for i, picture in enumerate(pictures):
        alone, one = detections(run(picture[None]), 0), detections(together, i)
        assert all(np.abs(alone[key] - one[key]).max(initial=0) < tolerance for key in one), f"picture {i} of a batch"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--all", action="store_true", help="all 13 models")
    parser.add_argument("--pictures", required=True, help="a folder")
    parser.add_argument("--zoo", help="a folder of pretrained models")
    parser.add_argument("--config", help="a pipeline config in place of the models' own, with weights made from names")
    parser.add_argument("--formats", default=",".join(FORMATS), help="of them and openvino, which reads the file of onnx")
    parser.add_argument("--bin", default=os.path.join(os.path.dirname(__file__), "../../target/release"), help="where odh and examples/ are")
    parser.add_argument("--min_score", type=float, default=0.05)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--mixed", type=int, default=40, help="how often a picture that differs is run with each proposal moved its own way")
    parser.add_argument("--sizes", action="store_true", help="also a picture from 1x1 to 4000x3000 and grey, and batches where the model takes them")
    args = parser.parse_args()
    models = ALL if args.all else args.models
    if args.config and (args.zoo or len(models) != 1):
        parser.error("--config goes with one model and no --zoo")
    if not models:
        parser.error("name models, or --all")
    odh = lambda *words, **how: subprocess.run([os.path.abspath(os.path.join(args.bin, words[0])), *words[1:]], check=True, stdout=subprocess.DEVNULL, **how)
    formats = args.formats.split(",")
    print(f"TensorFlow {tf.__version__}, onnxruntime {onnxruntime.__version__}, PyTorch {torch.__version__}")
    print(f"{'model':56} {'format':13} {'pictures':>8} {'found':>6} {'moves':>5} {'score':>9} {'box':>9} {'seconds':>8} {'MB':>7}", flush=True)
    worst = 0.0
    for model in models:
        with tempfile.TemporaryDirectory() as work:
            zoo = os.path.abspath(args.zoo) if args.zoo else os.path.join(work, "model_zoo")
            if not args.zoo:
                odh("examples/reference_weights", model, zoo, *([os.path.abspath(args.config)] if args.config else []))
            which = ["-m", model, "--model_zoo_dir", zoo]
            if args.config:
                which = ["--checkpoint", os.path.join(zoo, os.listdir(zoo)[0], "model.ckpt")]
            # The frozen graph in any case: it settles what differs in the others.
            odh("odh", "export", *which, "--output_dir", "exported", "--format", ",".join({f.replace("openvino", "onnx") for f in formats} | {"frozen_graph"}), cwd=work)
            expected = {}
            folders = [os.path.abspath(args.pictures)]
            if args.sizes:
                folders.append(os.path.join(work, "sizes"))
                resized(*folders)
            for folder in folders:
                odh("odh", "detect", *which, "--output_dir", "found", "--min_score", str(args.min_score), folder, cwd=work, stderr=subprocess.DEVNULL)
                with open(os.path.join(work, "found/detections.json"), encoding="utf-8") as file:
                    expected.update({os.path.join(folder, picture): entry for picture, entry in json.load(file).items()})
            with open(os.path.join(work, "exported/pipeline.config"), encoding="utf-8") as file:
                fixed = "fixed_shape_resizer" in file.read()
            others = {}
            for name in formats:
                folder = os.path.join(work, "exported")
                size = os.path.getsize(os.path.join(folder, FILES[name])) / 1e6
                run = RUNTIMES[name](folder)
                score, box, found, moves, times, over = 0.0, 0.0, 0, 0, [], []
                for picture, entry in expected.items():
                    pixels = decode(picture)[None]
                    start = time.perf_counter()
                    values = run(pixels)
                    times.append(time.perf_counter() - start)
                    differences = compare(entry["detections"], detections(values, 0), args.min_score)
                    if max(differences) > args.tolerance:
                        if picture not in others:
                            others[picture] = [detections(other, 0) for other in rounded_otherwise(folder, args.mixed)(pixels)]
                        *differences, moving = settle(entry["detections"], detections(values, 0), others[picture], args.min_score, args.tolerance)
                        if max(differences) > args.tolerance and (values_so := stage_by_stage(folder, name)(pixels)) is not None:
                            so = others[picture] + [detections(values_so, 0)]
                            *differences, moving = settle(entry["detections"], detections(values, 0), so, args.min_score, args.tolerance)
                        moves += moving
                    if max(differences) > args.tolerance:
                        over.append(f"{os.path.basename(picture)} ({differences[0]:.1e}, {differences[1]:.1e})")
                    score, box = max(score, differences[0]), max(box, differences[1])
                    found += len(entry["detections"])
                if args.sizes and fixed:
                    batched(run, args.tolerance)
                worst = max(worst, score, box)
                print(f"{model:56} {name:13} {len(expected):8} {found:6} {moves:5} {score:9.2e} {box:9.2e} {statistics.median(times):8.3f} {size:7.1f}", flush=True)
                if over:
                    print("  over the tolerance: " + ", ".join(over), flush=True)
                del run
    print(f"largest difference {worst:.2e}, tolerance {args.tolerance}")
    if worst > args.tolerance:
        sys.exit(1)


main()
