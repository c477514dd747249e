"""The names in a model's file that loading it would look up and call, read without loading it."""

import ast
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dagster_mlops.core.archives import check_one_reading
from dagster_mlops.core.extras import extra

# Operators that compute and nothing else: `aten.from_file` would read or write one, and `torch.load` is an attribute
# of torch like any other.
_OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims)\.(?!from_file\b)\w+(\.\w+)?"
    r"|torch\.ops\.higher_order\.(cond|while_loop|scan|map_impl|wrap_with_(set_grad_enabled|autocast))"
    r"|torch\.sym_\w+|math\.\w+"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|pos|lt|le|eq|ne|ge|gt|and_|or_|not_|getitem)"
)
# Of a container, or of a device.
_TYPE = re.compile(r"builtins\.(tuple|list|dict)|collections\.OrderedDict|torch\.return_types\.\w+|[a-z]+")
# PyTorch writes the names of a graph into Python code, and runs it.
_WORD = re.compile(r"[\w.+/-]*")
# MLflow takes what begins so for numbers; PyTorch takes the weights of a model of such a name for a pickle.
_PAYLOAD = re.compile(r"(weight|tensor)_\d+")
_TEXT = re.compile(r"[\w.,:+/> -]*")  # such as the equation of an einsum, which becomes a literal
_PATTERNS = {"type": _TYPE, "as_string": _TEXT, "as_strings": _TEXT, "path_name": _PAYLOAD}
# Sizes are Python expressions, which SymPy evaluates. These are the nodes of those that PyTorch writes.
_EXPRESSION = re.compile(r"[\w ()\[\].,='+\-*/<>%!]*")
_NODES = (
    *(ast.Expression, ast.Constant, ast.Name, ast.Call, ast.keyword, ast.Load, ast.Subscript, ast.Attribute),
    *(ast.BinOp, ast.UnaryOp, ast.Compare, ast.BoolOp, ast.operator, ast.unaryop, ast.cmpop, ast.boolop),
)
_FUNCTION = re.compile(
    r"max|min|Symbol|Integer|Rational|Float|Add|Mul|Pow|Mod|Max|Min|Abs|floor|ceiling|"
    r"Equality|Unequality|StrictLessThan|LessThan|StrictGreaterThan|GreaterThan|And|Or|Not|"
    r"Piecewise|ExprCondPair|FloorDiv|ModularIndexing|Where|PythonMod|CleanDiv|CeilToInt|"
    r"FloorToInt|CeilDiv|LShift|RShift|PowByNatural|FloatPow|FloatTrueDiv|IntTrueDiv|TruncToFloat|"
    r"TruncToInt|IsNonOverlappingAndDenseIndicator|RoundToInt|RoundDecimal|ToFloat|Identity"
)
_METHOD = re.compile(r"size|stride|storage_offset|shape|isnan|inf")
_MOST = 60  # letters of a strange text that are shown
# Keras finds each function of its own by name: some of its other modules read files, fetch them or change settings.
_KERAS_PARTS = (
    "layers|activations|constraints|initializers|losses|metrics|ops|optimizers|quantizers|random|regularizers"
    "|dtype_policies"
)
_KERAS_CLASS = re.compile(
    r"keras\.(Sequential|Model|Variable|KerasTensor|\w*DTypePolicy)"
    r"|keras\.src\.models\.(\w+\.)?(Sequential|Functional|Model)"
    rf"|keras\.(src\.(backend\.\w+\.)?)?({_KERAS_PARTS})(\.\w+)+|\w+"
)
_KERAS_FUNCTION = re.compile(rf"(builtins|keras\.({_KERAS_PARTS}))\.\w+")
# Those that run a function, a pickle or a graph of TensorFlow from the file.
_KERAS_CODE = re.compile(r"__lambda__|__typespec__|(.*\.)?(Lambda|TFSMLayer|TorchModuleWrapper|JaxLayer|FlaxLayer)")


def foreign_names(file: Path) -> list[str]:
    """The names in a file that may be more than data, apart from those that the library of its format always uses.

    Of skops files, those that skops asks about; of Keras's, classes and functions that are not its own, or run code; of
    PyTorch's graphs, operators and texts that are not of the graph's own language. None of other files.

    Raises:
        ValueError, LookupError, TypeError, OSError, zipfile.BadZipFile: it is not what its name says.
    """
    readers: dict[str, Callable[[Path], Iterator[str]]] = {".skops": _of_skops, ".keras": _of_keras, ".pt2": _of_graph}
    if file.suffix not in readers:
        return []
    check_one_reading(file)
    return sorted(set(readers[file.suffix](file)))


def _of_skops(file: Path) -> Iterator[str]:
    yield from extra("skops.io").get_untrusted_types(file=file)


def _of_keras(file: Path) -> Iterator[str]:
    with zipfile.ZipFile(file) as archive:
        yield from _keras_names(json.loads(archive.read("config.json")))


def _keras_names(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for inner in value:
            yield from _keras_names(inner)
    if not isinstance(value, dict):
        return
    if "class_name" in value:
        name, module, registered = (str(value.get(key) or "") for key in ("class_name", "module", "registered_name"))
        is_function = name == "function"
        path = f"{module}.{value.get('config') if is_function else name}".lstrip(".")
        if ">" in registered:  # of a registered class, which Keras prefers to its own
            yield path if module.partition(".")[0] not in ("", "builtins", "keras") else registered
        elif _KERAS_CODE.fullmatch(path) or not (_KERAS_FUNCTION if is_function else _KERAS_CLASS).fullmatch(path):
            yield path
        if isinstance(config := value.get("config"), dict) and isinstance(file := config.get("vocabulary"), str):
            yield file
    for inner in value.values():
        yield from _keras_names(inner)


def _of_graph(file: Path) -> Iterator[str]:
    """MLflow looks for pickles in the same file, as it loads it."""
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if "aotinductor" in member.filename:  # compiled code
                yield member.filename
            elif (content := _json(archive.read(member))) is not None:
                yield from _graph_names(content)


def _json(content: bytes) -> Any:
    try:
        return json.loads(content.decode())
    except (UnicodeDecodeError, ValueError):
        return None  # numbers, or what MLflow takes for a pickle


def _graph_names(value: Any, key: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from [] if _WORD.fullmatch(name) else [_short(name)]
            if name != "metadata" or not _is_comment(inner):
                yield from _graph_names(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _graph_names(inner, key)
    elif isinstance(value, str):
        if key in ("in_spec", "out_spec", "context"):
            yield from _graph_names(json.loads(value), key="")
        elif not _is_of_graph(value, key):
            yield _short(value)


def _is_comment(value: Any) -> bool:
    """True for texts about the graph, which run nowhere; a tensor could have the same name."""
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _is_of_graph(text: str, key: str) -> bool:
    if key in ("target", "as_operator"):
        return bool(_OPERATOR.fullmatch(text))
    if key in ("expr_str", "guards_code"):
        return _is_arithmetic(text)
    return bool(_PATTERNS.get(key, _WORD).fullmatch(text))


def _is_arithmetic(text: str) -> bool:
    """True for an expression of sizes, which calls functions of numbers only.

    >>> _is_arithmetic("Add(Symbol('s0', positive=True), Integer(1))"), _is_arithmetic("__import__('os').getcwd()")
    (True, False)
    """
    if not _EXPRESSION.fullmatch(text):
        return False
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(isinstance(node, _NODES) and _is_of_arithmetic(node) for node in nodes)


def _is_of_arithmetic(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Name):
            return bool(_FUNCTION.fullmatch(node.func.id))
        return isinstance(node.func, ast.Attribute)
    if isinstance(node, ast.Attribute):
        return bool(_METHOD.fullmatch(node.attr))
    return not isinstance(node, ast.Constant) or not isinstance(node.value, str) or bool(_WORD.fullmatch(node.value))


def _short(text: str) -> str:
    return text if len(text) <= _MOST else f"{text[:_MOST]}…"
