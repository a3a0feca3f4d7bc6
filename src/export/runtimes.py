# Runs a file of an export with the runtime that this Python has, on pictures that odh has decoded.
#
# Arguments: the format; the file or folder; a folder that has pictures.json ([[file, height, width], ...]) and the pictures' bytes, RGB.
# Writes FORMAT.json there: {"missing": what}, {"loading": runtime} before the file is touched, and in its place, when all is done,
# {"runtime": name, "seconds": [...], "found": [{boxes, scores, classes}, ...]}. So whoever finds no answer knows that the runtime never came
# as far as the file.
import json
import os
import sys
import time

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
FORMAT, PATH, FOLDER = sys.argv[1:]
OUTPUTS = ["detection_boxes", "detection_scores", "detection_classes", "num_detections"]


def tell(value):
    with open(os.path.join(FOLDER, FORMAT + ".json"), "w", encoding="utf-8") as file:
        json.dump(value, file)


def done(value):
    tell(value)
    sys.exit(0)


def imported():
    import numpy

    if FORMAT == "onnx":
        import onnxruntime

        onnxruntime.InferenceSession
        return numpy, onnxruntime
    import tensorflow

    tensorflow.compat.v1.Session
    return numpy, tensorflow


def session(runtime):
    if FORMAT == "onnx":
        onnxruntime = runtime
        loaded = onnxruntime.InferenceSession(PATH, providers=["CPUExecutionProvider"])
        return "onnxruntime %s (Python)" % onnxruntime.__version__, lambda x: loaded.run(OUTPUTS, {"image_tensor": x})
    tf = runtime
    name = "TensorFlow " + tf.__version__
    if FORMAT == "saved_model":
        if not hasattr(tf.saved_model, "load"):
            done({"missing": "TensorFlow 2 (this Python has %s)" % tf.__version__})
        loaded = tf.saved_model.load(PATH)
        function = loaded.signatures["serving_default"]

        def run(x, loaded=loaded):
            found = function(inputs=tf.constant(x))
            return [found[output].numpy() for output in OUTPUTS]

        return name, run
    v1 = tf.compat.v1
    definition = v1.GraphDef()
    with open(PATH, "rb") as file:
        definition.ParseFromString(file.read())
    graph = tf.Graph()
    with graph.as_default():
        v1.import_graph_def(definition, name="")
    loaded = v1.Session(graph=graph)
    return name, lambda x: loaded.run([output + ":0" for output in OUTPUTS], {"image_tensor:0": x})


try:
    numpy, library = imported()
except Exception as error:  # Whatever a broken installation raises.
    done({"missing": str(error) if isinstance(error, ImportError) else "%s: %s" % (type(error).__name__, error)})
tell({"loading": library.__name__})
runtime, run = session(library)
with open(os.path.join(FOLDER, "pictures.json"), encoding="utf-8") as file:
    pictures = json.load(file)
found, seconds = [], []
for name, height, width in pictures:
    pixels = numpy.fromfile(os.path.join(FOLDER, name), numpy.uint8).reshape(1, height, width, 3)
    start = time.perf_counter()
    boxes, scores, classes, count = run(pixels)
    seconds.append(time.perf_counter() - start)
    n = int(count[0])
    values = [numpy.nan_to_num(v[0][:n].astype(float), nan=1e30, posinf=1e30, neginf=-1e30) for v in (boxes, scores, classes)]
    found.append(dict(zip(["boxes", "scores", "classes"], [v.tolist() for v in values])))
done({"runtime": runtime, "seconds": seconds, "found": found})
