"""Names in a model's file that are more than data are found without the library that would load it."""

import copy
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest

from dagster_mlops.core.model_contents import foreign_names
from dagster_mlops.core.model_formats import stored_format
from dagster_mlops.core.model_judgement import named_types
from dagster_mlops.errors import ModelVersionError

CODE = "__import__('os').system('true')"
SIZE = {"as_expr": {"expr_str": "Symbol('s31', positive=True, integer=True)", "hint": {"as_int": 2}}}
INPUT = {"name": "input", "arg": {"as_tensor": {"name": "x"}}, "kind": 1}
NODE = {
    "target": "torch.ops.aten.einsum.default",
    "inputs": [INPUT, {"name": "equation", "arg": {"as_string": "bij, bkj -> bik"}, "kind": 1}],
    "metadata": {"stack_trace": 'File "net.py", line 3, in forward\n    return f(x)'},
}
SPEC = [1, {"type": "builtins.dict", "context": '["x"]', "children_spec": [{"type": None, "context": None}]}]
# As PyTorch 2.13 writes it, shortened.
GRAPH: dict[str, Any] = {
    "graph_module": {
        "graph": {
            "nodes": [NODE, {"target": "_operator.mul"}, {"target": "torch.sym_float"}],
            "tensor_values": {"x": {"sizes": [SIZE, {"as_int": 3}], "device": {"type": "cpu"}}},
        },
        "module_call_graph": [{"fqn": "layers.0", "signature": {"in_spec": json.dumps(SPEC)}}],
    },
    "range_constraints": {"s31": {"min_val": 0}},
    "torch_version": "2.13.0+cpu",
    "guards_code": ["((L['x'].size()[0]) // 2) != 1", "max(1, (-2) + L['x'].size()[1]) >= 2"],
}
LAYER = {"module": "keras.layers", "class_name": "Dense", "config": {"units": 1}, "registered_name": None}
RELU = {"module": "builtins", "class_name": "function", "config": "relu", "registered_name": "function"}


def graph(folder: Path, content: Any, **members: bytes) -> Path:
    with zipfile.ZipFile(file := folder / "model.pt2", "w") as archive:
        archive.writestr("model/models/model.json", json.dumps(content))
        archive.writestr("model/data/weights/weight_0", b"\x00\x00\x80\x3f")
        for name, inner in members.items():
            archive.writestr(name, inner)
    return file


def changed(place: str, value: Any) -> dict[str, Any]:
    """The graph with one value exchanged; the last step of the place may be new."""
    content = copy.deepcopy(GRAPH)
    *steps, last = [int(step) if step.isdigit() else step for step in place.split("/")]
    inner: Any = content
    for step in steps:
        inner = inner[step]
    inner[last] = value
    return content


def network(folder: Path, *layers: dict[str, Any]) -> Path:
    with zipfile.ZipFile(file := folder / "model.keras", "w") as archive:
        config = {"module": "keras", "class_name": "Sequential", "config": {"layers": [LAYER, *layers]}}
        archive.writestr("config.json", json.dumps(config))
    return file


def test_a_graph_as_pytorch_writes_it_names_nothing_foreign(tmp_path):
    assert foreign_names(graph(tmp_path, GRAPH)) == []


NODES = "graph_module/graph/nodes"
EXPRESSION = "graph_module/graph/tensor_values/x/sizes/0/as_expr/expr_str"


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (EXPRESSION, CODE),
        (EXPRESSION, "Add(Symbol('s0'), sympify('s0'))"),
        (EXPRESSION, "Symbol('s0').__class__"),
        (EXPRESSION, "Symbol('s0)"),
        (EXPRESSION, "[Symbol('s0') for s0 in (1, 2)]"),
        (EXPRESSION, "Symbol('a\\\n')"),
        (EXPRESSION, "lambdify('x', 'x')"),
        ("guards_code", ["L['x'].to_file()"]),
        (f"{NODES}/0/target", "torch.load"),
        (f"{NODES}/0/target", "torch.ops.load_library"),
        (f"{NODES}/0/target", "torch.ops.aten.from_file.default"),
        (f"{NODES}/0/target", "torch.ops.shop.sell.default"),
        (f"{NODES}/0/target", "_operator.methodcaller"),
        (f"{NODES}/0/target", "#shop:sell"),
        (f"{NODES}/0/inputs/0/arg", {"as_operator": "torch.hub.load"}),
        (f"{NODES}/0/inputs/0/arg/as_tensor/name", f"x={CODE}"),
        (f"{NODES}/0/inputs/1/arg/as_string", CODE),
        ("graph_module/graph/tensor_values/a(b)", {}),
        ("graph_module/graph/tensor_values/metadata", {"sizes": [{"as_expr": {"expr_str": CODE}}]}),
        ("graph_module/graph/tensor_values/metadata", [{"as_expr": {"expr_str": CODE}}]),
        ("path_name", "Weight_0"),
        ("path_name", "weight_x.pt"),
        ("path_name", "custom_obj_0"),
        ("graph_module/module_call_graph/0/fqn", CODE),
        ("graph_module/module_call_graph/0/signature/in_spec", json.dumps([1, {"type": "shop.Order"}])),
        ("graph_module/module_call_graph/0/signature/in_spec", json.dumps([1, {"context": json.dumps([CODE])}])),
    ],
)
def test_what_is_more_than_a_graph_is_foreign(tmp_path, place, value):
    [name] = foreign_names(graph(tmp_path, changed(place, value)))
    assert name.rstrip("…") in repr([place, value]).replace("\\", "") or "\n" in name


def test_compiled_code_in_a_graph_is_foreign(tmp_path):
    name = "model/data/aotinductor/model/model.so"
    assert foreign_names(graph(tmp_path, GRAPH, **{name: b"\x7fELF"})) == [name]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["model/models/model.json", "model/models/MODEL.json"])
def test_a_file_whose_readers_could_see_different_members_is_refused(tmp_path, name):
    graph(tmp_path, GRAPH, **{name: b"{}"})
    with pytest.raises(ModelVersionError, match=r"a pt2 file of the model cannot be read: .*two members of one name"):
        named_types(tmp_path)


def with_two_directories(file: Path) -> None:
    """PyTorch reads the directory in the middle, which the end names, and Python the one before the end."""
    other = file.read_bytes()
    start = struct.unpack("<4s4H2LH", other[-22:])[-2]
    file.write_bytes(other[:-22] + bytes(7) + other[start:-22] + other[-22:])


@pytest.mark.parametrize(
    "change",
    [
        with_two_directories,
        lambda file: file.write_bytes(b"#!" + file.read_bytes()),
        lambda file: file.write_bytes(file.read_bytes() + b"PK"),
        lambda file: file.write_bytes(file.read_bytes()[:-2] + b"\2\0PK"),
    ],
)
@pytest.mark.parametrize("suffix", ["pt2", "keras"])
def test_a_file_whose_readers_could_see_different_directories_is_refused(tmp_path, suffix, change):
    file = graph(tmp_path, GRAPH) if suffix == "pt2" else network(tmp_path)
    assert foreign_names(file) == []
    change(file)
    with pytest.raises(ModelVersionError, match=rf"a {suffix} file of the model cannot be read"):
        named_types(tmp_path)


def test_an_archive_of_very_many_members_has_one_reading_too(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)  # beyond it, the end has a second form
    file = graph(tmp_path, GRAPH)
    assert b"PK\x06\x07" in file.read_bytes()[-42:]
    assert foreign_names(file) == []
    file.write_bytes(b"#!" + file.read_bytes())
    with pytest.raises(ValueError, match="its directory is not where it says"):
        foreign_names(file)


@pytest.mark.parametrize("suffix", ["pt2", "keras", "skops"])
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path, suffix):
    (tmp_path / f"model.{suffix}").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelVersionError, match=rf"a {suffix} file of the model cannot be read"):
        named_types(tmp_path)


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (RELU, None),
        ({**LAYER, "class_name": "Lambda"}, "keras.layers.Lambda"),
        ({**LAYER, "class_name": "TorchModuleWrapper"}, "keras.layers.TorchModuleWrapper"),
        ({"class_name": "__lambda__", "config": {"value": "4wAA"}}, "__lambda__"),
        ({**LAYER, "module": "shop.layers"}, "shop.layers.Dense"),
        ({**LAYER, "registered_name": "shop>Dense"}, "shop>Dense"),
        ({**RELU, "module": "os", "config": "system"}, "os.system"),
        ({**LAYER, "config": {"activation": {**LAYER, "module": "shop"}}}, "shop.Dense"),
        ({**LAYER, "module": "keras", "class_name": "layers.TFSMLayer"}, "keras.layers.TFSMLayer"),
        ({**LAYER, "class_name": "FlaxLayer"}, "keras.layers.FlaxLayer"),
        ({**LAYER, "module": "keras.src.utils.torch_utils", "class_name": "Net"}, "keras.src.utils.torch_utils.Net"),
        ({**LAYER, "module": "keras.models", "class_name": "load_model"}, "keras.models.load_model"),
        ({**LAYER, "module": "keras.callbacks", "class_name": "CSVLogger"}, "keras.callbacks.CSVLogger"),
        ({**LAYER, "module": ["keras"]}, "['keras'].Dense"),
        ({**RELU, "module": "keras.utils", "config": "get_file"}, "keras.utils.get_file"),
        ({**RELU, "module": "keras.datasets.mnist", "config": "load_data"}, "keras.datasets.mnist.load_data"),
        ({**RELU, "config": "shop>sell"}, "builtins.shop>sell"),
        ({**LAYER, "class_name": "StringLookup", "config": {"vocabulary": "/etc/passwd"}}, "/etc/passwd"),
        ({**LAYER, "class_name": "StringLookup", "config": {"vocabulary": ["passwd"]}}, None),
        ({**LAYER, "module": "keras.src.backend.torch.optimizers.torch_sgd", "class_name": "SGD"}, None),
        ({**RELU, "module": "keras.activations"}, None),
        ({**LAYER, "module": "keras.src.ops.numpy", "class_name": "Add"}, None),
        ({**LAYER, "module": "keras", "class_name": "DTypePolicy"}, None),
        ({"class_name": "__tensor__", "config": {"value": 1.0, "dtype": "float32"}}, None),
    ],
)
def test_layers_and_functions_that_are_not_of_keras_or_run_code_are_foreign(tmp_path, layer, name):
    assert foreign_names(network(tmp_path, layer)) == ([name] if name else [])


def test_other_files_name_nothing(tmp_path):
    (tmp_path / "model.ubj").write_bytes(b"{L")
    assert named_types(tmp_path) == {"model.ubj": []}


@pytest.mark.parametrize("place", ["../other/model.ubj", "/srv/model.ubj"])
def test_data_outside_of_the_folder_is_refused_whoever_would_load_it(place):
    """The hash of a model covers its folder."""
    flavors = {"xgboost": {"data": place}}
    assert "is outside of its folder" in stored_format(flavors, files={}).runs_code
    python = {"loader_module": "mlflow.xgboost", "data": place}
    assert stored_format({**flavors, "python_function": python}, files={}).runs_code
    assert not stored_format({"xgboost": {"data": "model.ubj"}}, files={}).runs_code
