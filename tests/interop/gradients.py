#!/usr/bin/env python3
"""Runs the reference's own training graphs in float64 and compares every variable's gradient with odh's in float64.

    python3.11 -m venv venv && venv/bin/pip install -r tests/interop/requirements.txt
    cargo build --release --example compare_tensors
    venv/bin/python tests/interop/gradients.py ../shared/reference [MODEL ...]

In float32 a training step of these networks is not determined to a thousandth: their batch norms amplify roundings, so that TensorFlow's
runs with other kernels differ from each other by more. In float64 what is left is what the programs compute. The golden step's two pictures
go twice into the graph of batch 4, which is the same as once to exact arithmetic. The graph is taken node by node, each float32 as float64;
three operators that TensorFlow has in float32 alone are put in place of: the fused batch norm by its formula, suppression (which only
chooses) and resizing (whose result is the input) by casts. Prints how far odh is from TensorFlow in float64, and the golden file's float32
values from TensorFlow's own. Exit code 1 if one of odh's is off by more than 1e-3.
"""
import gzip
import os
import subprocess
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import numpy as np
import tensorflow.compat.v1 as tf
from PIL import Image

tf.disable_eager_execution()
MODELS = ["ssd_mobilenet_v1_coco_2017_11_17", "ssd_mobilenet_v2_coco_2018_03_29", "ssd_inception_v2_coco_2017_11_17"]
PICTURES = ["image1", "image2"]
FLOAT, DOUBLE = tf.float32.as_datatype_enum, tf.float64.as_datatype_enum


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


def fused_batch_norm(x, gamma, beta, epsilon):
    mean = tf.reduce_mean(x, [0, 1, 2])
    variance = tf.reduce_mean(tf.square(x - mean), [0, 1, 2])
    return [(x - mean) / tf.sqrt(variance + epsilon) * gamma + beta, mean, variance, mean, variance, mean]


def fused_batch_norm_grad(dy, x, gamma, epsilon):
    """Gradients of `fused_batch_norm`, from the input itself."""
    mean = tf.reduce_mean(x, [0, 1, 2])
    centred = x - mean
    inverse = 1 / tf.sqrt(tf.reduce_mean(tf.square(centred), [0, 1, 2]) + epsilon)
    normed = centred * inverse
    dbeta, dgamma = tf.reduce_sum(dy, [0, 1, 2]), tf.reduce_sum(dy * normed, [0, 1, 2])
    count = tf.cast(tf.size(x) / tf.size(gamma), tf.float64)
    return [gamma * inverse * (dy - dbeta / count - normed * dgamma / count), dgamma, dbeta, dbeta, dbeta]


def rebuild(nodes, wanted, given):
    """The tensors `wanted` of a graph in float64, in the default graph. `given` has tensors that take the place of nodes."""
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
            return fused_batch_norm(*x[:3], meant(node.attr["epsilon"].f))
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


def tensorflow(reference, model, golden):
    """Losses and gradients of the golden batch, regularization included, as {key: value} of the golden file's keys."""
    with gzip.open(os.path.join(reference, f"tf/{model}__train_b4.meta.gz")) as file:
        meta = tf.MetaGraphDef()
        meta.ParseFromString(file.read())
    nodes = {node.name: node for node in meta.graph_def.node}
    sys.path.insert(0, os.path.join(reference, "tf"))
    source = open(os.path.join(reference, "tf/run.py"), encoding="utf-8").read()
    recipe = {}
    exec(source.split("def main")[0].replace("__file__", repr(os.path.join(reference, "tf/run.py"))), recipe)
    graph = tf.Graph()
    with graph.as_default():
        given, order = {}, [0, 1, 0, 1]
        placeholders = [n for n in nodes if n.startswith("Placeholder") and nodes[n].op == "Placeholder"]
        boxes = [n for n in nodes if nodes[n].op == "PlaceholderWithDefault"]
        classes = sorted((n for n in nodes if n == "one_hot" or n.startswith("one_hot_") and "/" not in n), key=len)
        assert len(placeholders) == len(boxes) == len(classes) == 4, (placeholders, boxes, classes)
        for i, placeholder, box, label in zip(order, placeholders, boxes, classes):
            picture = PICTURES[i]
            pixels = np.asarray(Image.open(os.path.join(reference, f"images/{picture}.jpg")).convert("RGB"))
            given[placeholder] = tf.constant(pixels)
            given[box] = tf.constant(golden[f"gt/{picture}/boxes"].astype(np.float64))
            given[label] = tf.constant(np.eye(5)[golden[f"gt/{picture}/classes0"]])
        variables = {n.name: n for n in nodes.values() if n.op == "VariableV2"}
        for name, node in variables.items():
            shape = [d.size for d in node.attr["shape"].shape.dim]
            value = recipe["weight"](name, shape)
            if value is not None and not name.endswith(("/RMSProp", "/RMSProp_1", "/Momentum")):
                given[name] = tf.constant(value.astype(np.float64))
        updates = {n.input[0]: n.input[7] for n in nodes.values() if n.op == "ApplyRMSProp"}
        losses = ["Loss/localization_loss", "Loss/classification_loss"]
        names = losses + list(updates)
        tensors = rebuild(nodes, losses + list(updates.values()), given)
        assert all(t.dtype == tf.float64 for t in tensors)
        with tf.Session(graph=graph) as session:
            values = session.run(tensors)
    out = {f"t/loss/{name.split('/')[1]}": value for name, value in zip(losses, values)}
    for name, value in zip(names[2:], values[2:]):
        flat = value.ravel()
        n = flat.size
        out[f"grad/{name}/l2"] = np.sqrt(np.sum(np.square(flat)))
        out[f"grad/{name}/sum"] = flat.sum()
        out[f"grad/{name}/s"] = flat if golden[f"grad/{name}/s"].size == n else flat[[min(n * i // 16 + n // 32, n - 1) for i in range(16)]]
        out[f"grad/{name}/max"] = np.abs(flat).max()
    out["t/gnorm"] = np.sqrt(sum(np.square(v).sum() for v in values[2:]))
    return out


def main():
    reference, *models = sys.argv[1:]
    here = os.path.dirname(os.path.abspath(__file__))
    root = os.path.dirname(os.path.dirname(here))
    status = 0
    for model in models or MODELS:
        golden = np.load(os.path.join(reference, f"golden/{model}__train.npz"))
        exact = tensorflow(reference, model, golden)
        names = sorted(k[5:-3] for k in exact if k.startswith("grad/") and k.endswith("/l2"))
        floor = 1e-6 * exact["t/gnorm"]
        relative = lambda mine, other: max(abs(mine - other) - floor, 0) / max(other, floor)
        off = np.array([relative(golden[f"grad/{n}/l2"], exact[f"grad/{n}/l2"]) for n in names])
        print(f"{model}: {len(names)} gradients; golden file (float32) from TensorFlow in float64: {(off <= 1e-3).sum()} norms within 1e-3, largest {off.max():.1e}")
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "exact.npz")
            truth = {k: golden[k] for k in golden.files if k.startswith("gt/")}
            np.savez(path, batch=np.float64(2), float64=np.float64(1), **truth, **exact)
            config = os.path.join(folder, f"{model}.config")
            with open(os.path.join(root, f"configs/{model}.config"), encoding="utf-8") as file, open(config, "w", encoding="utf-8") as copy:
                copy.write(file.read().replace("num_classes: 90", "num_classes: 5"))
            tool = os.environ.get("COMPARE_TENSORS", os.path.join(root, "target/release/examples/compare_tensors"))
            status |= subprocess.run([tool, os.path.join(reference, "images"), config, path], check=False).returncode
    return status


if __name__ == "__main__":
    sys.exit(main())
