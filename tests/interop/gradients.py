#!/usr/bin/env python3
"""Runs the reference's own training graphs in float64 and compares every variable's gradient with odh's in float64.

    python3.11 -m venv venv && venv/bin/pip install -r tests/interop/requirements.txt
    cargo build --release --example compare_tensors
    venv/bin/python tests/interop/gradients.py ../shared/reference [MODEL ...]

In float32 a training step of these networks is not determined to a thousandth: their batch norms amplify roundings, so that TensorFlow's
runs with other kernels differ from each other by more. In float64 what is left is what the programs compute. The graph is taken node by node,
each float32 as float64; operators that TensorFlow has in float32 alone are put in place of: the fused batch norm and crop_and_resize by their
formulas, suppression (which only chooses) and resizing (whose result is the input) by casts.

SSD: the golden step's two pictures go twice into the graph of batch 4, which is the same as once to exact arithmetic. Faster R-CNN: the golden
step's one picture, shuffles replaced by identity, and on both sides the golden step's proposals, of which a rounding may choose others. Only the
forward half of the graph is taken, which TensorFlow differentiates anew: so the sizes in its constants can be changed where the golden step was
made with smaller pictures (NAS).

Prints how far odh is from TensorFlow in float64, and the golden file's float32 values from TensorFlow's own. Exit code 1 if one of odh's is off
by more than 1e-3. faster_rcnn_nas takes 18 GiB.
"""
import gzip
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import numpy as np
import tensorflow.compat.v1 as tf
from PIL import Image

tf.disable_eager_execution()
MODELS = ["ssd_mobilenet_v1_coco_2017_11_17", "ssd_mobilenet_v2_coco_2018_03_29", "ssd_inception_v2_coco_2017_11_17", "faster_rcnn_nas_coco_2018_01_28"]
PICTURES = ["image1", "image2"]
# Of a golden step with smaller pictures: the resizer, and what the graph's constants say of its own as they are with that.
SMALLER = {
    "faster_rcnn_nas_coco_2018_01_28": (
        "fixed_shape_resizer { height: 300 width: 300 }",
        {1200: 300, 75: 19, 75 * 75 * 12: 19 * 19 * 12},
    ),
}
FLOAT, DOUBLE = tf.float32.as_datatype_enum, tf.float64.as_datatype_enum
INTEGERS = (tf.int32.as_datatype_enum, tf.int64.as_datatype_enum)


def meant(value):
    """The number that a float32 constant was written as: 0.001, not 0.0010000000475."""
    return next((c for c in [2 / 255] if np.float32(c) == np.float32(value)), float(f"{value:.7g}"))


def widened(attr):
    """A node's attributes with float64 for float32."""
    out = {}
    for key, value in attr.items():
        new = type(value)()
        new.CopyFrom(value)
        if new.type == FLOAT:
            new.type = DOUBLE
        for i, t in enumerate(new.list.type):
            if t == FLOAT:
                new.list.type[i] = DOUBLE
        if new.HasField("tensor") and new.tensor.dtype == FLOAT:
            wide = tf.make_ndarray(value.tensor).astype(np.float64)
            if wide.size == 1:
                wide = np.full(wide.shape, meant(wide.item()))
            new.tensor.CopyFrom(tf.make_tensor_proto(wide))
        if not key.startswith("_"):
            out[key] = new
    return out


def fused_batch_norm(x, gamma, beta, frozen, epsilon):
    """`frozen`: mean and variance to take in place of the batch's own. Of a large tensor only the input is kept for the gradient."""
    if frozen:
        factor = gamma / tf.sqrt(frozen[1] + epsilon)
        return [x * factor + (beta - frozen[0] * factor)]

    @tf.custom_gradient
    def norm(x, gamma, beta):
        mean = tf.reduce_mean(x, [0, 1, 2])
        variance = tf.reduce_mean(tf.square(x - mean), [0, 1, 2])
        factor = gamma / tf.sqrt(variance + epsilon)
        return x * factor + (beta - mean * factor), lambda dy: fused_batch_norm_grad(dy, x, gamma, epsilon)[:3]

    # The other outputs are for the graph's own gradient nodes, whose formula makes its own.
    return [norm(x, gamma, beta), *[tf.constant(0, tf.float64)] * 5]


def fused_batch_norm_grad(dy, x, gamma, epsilon):
    """Gradients of `fused_batch_norm`, from the input itself."""
    mean = tf.reduce_mean(x, [0, 1, 2])
    centred = x - mean
    inverse = 1 / tf.sqrt(tf.reduce_mean(tf.square(centred), [0, 1, 2]) + epsilon)
    normed = centred * inverse
    dbeta, dgamma = tf.reduce_sum(dy, [0, 1, 2]), tf.reduce_sum(dy * normed, [0, 1, 2])
    count = tf.cast(tf.size(x) / tf.size(gamma), tf.float64)
    return [gamma * inverse * (dy - dbeta / count - normed * dgamma / count), dgamma, dbeta, dbeta, dbeta]


def crop_and_resize(maps, boxes, size):
    """Bilinear samples of one picture's map within normalized boxes, 0 for those outside of it: a weight for each row and column of the map.
    Where a sample is, is float32's business, as in TensorFlow's own: one rounding decides whether the last is still inside."""

    def weights(start, end, count, side):
        last = tf.cast(side - 1, tf.float32)
        step = (end - start) * last / tf.cast(count - 1, tf.float32)
        at = (start * last)[:, None] + tf.range(tf.cast(count, tf.float32)) * step[:, None]
        inside = tf.cast((at >= 0) & (at <= last), tf.float64)
        distance = tf.abs(tf.cast(at, tf.float64)[:, :, None] - tf.range(tf.cast(side, tf.float64)))
        return tf.maximum(1 - distance, 0) * inside[:, :, None]

    height, width = tf.unstack(tf.shape(maps))[1:3]
    top, left, bottom, right = tf.unstack(tf.cast(boxes, tf.float32), axis=1)
    rows = tf.tensordot(weights(top, bottom, size[0], height), maps[0], [[2], [0]])
    return tf.einsum("nywc,nxw->nyxc", rows, weights(left, right, size[1], width))


def resized(value, sizes):
    """An integer constant with other sizes in place of some."""
    out = value.copy()
    for old, new in sizes.items():
        out[value == old] = new
    return out


def rebuild(nodes, wanted, given, sizes=None):
    """The tensors `wanted` of a graph in float64, in the default graph. `given` has tensors that take the place of nodes, `sizes` what takes the
    place of integers in constants."""
    built, operations = {}, {}

    def name_of(inp):
        name, _, index = inp.partition(":")
        return name.lstrip("^"), int(index or 0)

    def needed(node):
        # A constant in a branch belongs to it by its control input alone; others only say what runs with what.
        return [i for i in node.input if not i.startswith("^") or "/cond/" in i]

    def build(node):
        x = [built[n][i] for n, i in (name_of(i) for i in node.input if not i.startswith("^"))]
        if node.op == "FusedBatchNormV3":
            return fused_batch_norm(*x[:3], None if node.attr["is_training"].b else x[3:5], meant(node.attr["epsilon"].f))
        if node.op == "RandomShuffle":
            return x
        if node.op == "CropAndResize":
            return [crop_and_resize(x[0], x[1], x[3])]
        if sizes and node.op == "Const" and node.attr["dtype"].type in INTEGERS:
            return [tf.constant(resized(tf.make_ndarray(node.attr["value"].tensor), sizes))]
        if node.op == "FusedBatchNormGradV3":
            return fused_batch_norm_grad(*x[:3], meant(node.attr["epsilon"].f))
        attr = widened(node.attr)
        if node.op == "ResizeBilinear":
            return [tf.cast(tf.raw_ops.ResizeBilinear(images=tf.cast(x[0], tf.float32), size=x[1]), tf.float64)]
        if node.op == "NonMaxSuppressionV3":
            x = [tf.cast(t, tf.float32) if t.dtype == tf.float64 else t for t in x]
            attr = {k: v for k, v in node.attr.items() if not k.startswith("_")}
        with tf.control_dependencies([operations[name_of(i)[0]] for i in needed(node) if i.startswith("^")]):
            operations[node.name] = tf.get_default_graph()._create_op_internal(node.op, x, name=node.name, attrs=attr)
        return operations[node.name].outputs

    # Depth first, without recursion: the graph is thousands of nodes deep.
    stack = [name for name, _ in map(name_of, wanted)]
    while stack:
        name = stack[-1]
        if name in built:
            stack.pop()
            continue
        node = nodes[name]
        missing = [] if name in given else [n for n, _ in map(name_of, needed(node)) if n not in built]
        if missing:
            stack.extend(missing)
        else:
            built[name] = [given[name]] if name in given else build(node)
            stack.pop()
    return [built[n][i] for n, i in map(name_of, wanted)]


def nodes_of(reference, graph):
    """The nodes of a training graph of the reference, by name."""
    with gzip.open(os.path.join(reference, f"tf/{graph}.meta.gz")) as file:
        meta = tf.MetaGraphDef()
        meta.ParseFromString(file.read())
    return {node.name: node for node in meta.graph_def.node}


def recipe(reference):
    """The function that makes a variable's value from its name (tf/run.py)."""
    path = os.path.join(reference, "tf/run.py")
    with open(path, encoding="utf-8") as file:
        source = file.read()
    names = {}
    exec(source.split("def main")[0].replace("__file__", repr(path)), names)
    return names["weight"]


def picture(reference, name):
    return tf.constant(np.asarray(Image.open(os.path.join(reference, f"images/{name}.jpg")).convert("RGB")))


def variables_of(reference, nodes):
    """The variables that are not an optimizer's, as tensors by name."""
    weight, out = recipe(reference), {}
    for node in nodes.values():
        if node.op == "VariableV2" and not node.name.endswith(("/RMSProp", "/RMSProp_1", "/Momentum")):
            value = weight(node.name, [d.size for d in node.attr["shape"].shape.dim])
            if value is not None:
                out[node.name] = tf.constant(value.astype(np.float64))
    return out


def ssd(reference, model, golden):
    """Losses and gradients by name, regularization included: the graph's own, of the golden batch."""
    nodes = nodes_of(reference, f"{model}__train_b4")
    given, order = variables_of(reference, nodes), [0, 1, 0, 1]
    placeholders = [n for n in nodes if n.startswith("Placeholder") and nodes[n].op == "Placeholder"]
    boxes = [n for n in nodes if nodes[n].op == "PlaceholderWithDefault"]
    classes = sorted((n for n in nodes if n == "one_hot" or n.startswith("one_hot_") and "/" not in n), key=len)
    assert len(placeholders) == len(boxes) == len(classes) == 4, (placeholders, boxes, classes)
    for i, placeholder, box, label in zip(order, placeholders, boxes, classes):
        given[placeholder] = picture(reference, PICTURES[i])
        given[box] = tf.constant(golden[f"gt/{PICTURES[i]}/boxes"].astype(np.float64))
        given[label] = tf.constant(np.eye(5)[golden[f"gt/{PICTURES[i]}/classes0"]])
    updates = {n.input[0]: n.input[7] for n in nodes.values() if n.op == "ApplyRMSProp"}
    losses = ["Loss/localization_loss", "Loss/classification_loss"]
    tensors = rebuild(nodes, losses + list(updates.values()), given)
    return dict(zip(losses, tensors)), dict(zip(updates, tensors[len(losses):]))


def faster_rcnn(reference, model, golden):
    """Losses and gradients by name, regularization included, of the golden step's forward half with its proposals."""
    nodes = nodes_of(reference, f"{model}__train_b1")
    variables = variables_of(reference, nodes)
    (placeholder,) = (n for n in nodes if nodes[n].op == "Placeholder")
    given = {placeholder: picture(reference, PICTURES[0]), **variables}
    given["PlaceholderWithDefault"] = tf.constant(golden[f"gt/{PICTURES[0]}/boxes"].astype(np.float64))
    given["one_hot"] = tf.constant(np.eye(5)[golden[f"gt/{PICTURES[0]}/classes0"]])
    given["global_step"] = tf.constant(0, tf.int64)
    # Proposals as the crops take them, as the loss takes them, and how many.
    given["Reshape_7"] = tf.constant(golden["pred/proposal_boxes_normalized"][0].astype(np.float64))
    given["stack_14"] = tf.constant(golden["pred/proposal_boxes"].astype(np.float64))
    given["stack_11"] = tf.constant(golden["pred/num_proposals"].astype(np.int32))
    assert [nodes[n].op for n in ["Reshape_7", "stack_14", "stack_11"]] == ["Reshape", "Pack", "Pack"] and nodes["CropAndResize"].input[1] == "Reshape_7"
    losses = [f"Loss/{n}_loss" for n in ["RPNLoss/localization", "RPNLoss/objectness", "BoxClassifierLoss/localization", "BoxClassifierLoss/classification"]]
    *tensors, total = rebuild(nodes, [*losses, "AddN"], given, SMALLER.get(model, (None, None))[1])
    trained = [n.input[0] for n in nodes.values() if n.op == "ApplyMomentum"]
    return dict(zip(losses, tensors)), dict(zip(trained, tf.gradients(total, [variables[n] for n in trained])))


def tensorflow(reference, model, golden):
    """Losses and gradients of the golden batch as {key: value} of the golden file's keys."""
    with tf.Graph().as_default():
        losses, gradients = (ssd if model.startswith("ssd") else faster_rcnn)(reference, model, golden)
        assert all(t.dtype == tf.float64 for t in [*losses.values(), *gradients.values()])
        # Constants are not to be folded: that would copy them.
        config = tf.ConfigProto()
        config.graph_options.rewrite_options.disable_meta_optimizer = True
        config.graph_options.optimizer_options.opt_level = -1
        with tf.Session(config=config) as session:
            losses, gradients = session.run((losses, gradients))
    out = {f"t/loss/{name.removeprefix('Loss/')}": value for name, value in losses.items()}
    for name, value in gradients.items():
        flat = value.ravel()
        n = flat.size
        out[f"grad/{name}/l2"] = np.sqrt(np.sum(np.square(flat)))
        out[f"grad/{name}/sum"] = flat.sum()
        out[f"grad/{name}/s"] = flat if golden[f"grad/{name}/s"].size == n else flat[[min(n * i // 16 + n // 32, n - 1) for i in range(16)]]
        out[f"grad/{name}/max"] = np.abs(flat).max()
    out["t/gnorm"] = np.sqrt(sum(np.square(v).sum() for v in gradients.values()))
    return out


def main():
    reference, *models = sys.argv[1:]
    here = os.path.dirname(os.path.abspath(__file__))
    root = os.path.dirname(os.path.dirname(here))
    status = 0
    for model in models or MODELS:
        resizer, _ = SMALLER.get(model, (None, None))
        golden = np.load(os.path.join(reference, f"golden/{model}{'_min300' if resizer else ''}__train.npz"))
        # In a process of its own, whose memory is odh's afterwards.
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            exact = process.submit(tensorflow, reference, model, dict(golden)).result()
        names = sorted(k[5:-3] for k in exact if k.startswith("grad/") and k.endswith("/l2"))
        floor = 1e-6 * exact["t/gnorm"]
        relative = lambda mine, other: max(abs(mine - other) - floor, 0) / max(other, floor)
        off = np.array([relative(golden[f"grad/{n}/l2"], exact[f"grad/{n}/l2"]) for n in names])
        print(f"{model}: {len(names)} gradients; golden file (float32) from TensorFlow in float64: {(off <= 1e-3).sum()} norms within 1e-3, largest {off.max():.1e}")
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "exact.npz")
            truth = {k: golden[k] for k in golden.files if k.startswith("gt/")}
            truth.update({f"t/{k}": golden[k] for k in golden.files if k.startswith(("pred/proposal_boxes", "pred/num_proposals"))})
            batch = 2 if model.startswith("ssd") else 1
            np.savez(path, batch=np.float64(batch), float64=np.float64(1), **truth, **exact)
            config = os.path.join(folder, f"{model}.config")
            with open(os.path.join(root, f"configs/{model}.config"), encoding="utf-8") as file, open(config, "w", encoding="utf-8") as copy:
                text = file.read().replace("num_classes: 90", "num_classes: 5")
                if resizer:
                    text = re.sub(r"image_resizer \{.*?\}\s*\}", f"image_resizer {{ {resizer} }}", text, flags=re.S)
                copy.write(text)
            tool = os.environ.get("COMPARE_TENSORS", os.path.join(root, "target/release/examples/compare_tensors"))
            status |= subprocess.run([tool, os.path.join(reference, "images"), config, path], check=False).returncode
    return status


if __name__ == "__main__":
    sys.exit(main())
