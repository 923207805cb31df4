"""The rules of docs/security.md that can be read off the source: a walk over its syntax tree."""

import ast
from collections.abc import Callable, Iterator

CODE_IN_DATA = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
"""Modules that run code when they read data."""
SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "commands.getoutput"}
UNPACKERS = {"extractall", "extract", "unpack_archive"}
EVERYWHERE = {"0.0.0.0", "::"}
SAYING = {"print", "str", "repr", "format", "debug", "info", "warning", "error", "exception", "dump", "dumps"}
SAYING |= {"write_json", "log_params", "log_dict", "log_text", "set_tags"}


def name_of(node: ast.AST) -> str:
    """`a.b.c` of a name or an attribute; '' of anything else in the last place."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return ""


def is_set(call: ast.Call, keyword: str, wanted: object) -> bool:
    """Whether the call says `keyword=wanted` in so many words."""
    return any(
        k.arg == keyword and isinstance(k.value, ast.Constant) and k.value.value is wanted
        for k in call.keywords
    )


def imports(node: ast.AST) -> Iterator[str]:
    modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
    modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
    for module in modules:
        if module.partition(".")[0] in CODE_IN_DATA:
            yield f"imports {module}: what it reads may hold code"
        if module.partition(".")[0] == "yaml":
            yield "imports PyYAML; ruamel's YAML(typ='safe') is what the project reads with"


def calls(node: ast.AST) -> Iterator[str]:
    if not isinstance(node, ast.Call):
        return
    name = name_of(node.func)
    last = name.rpartition(".")[2]
    if name in ("eval", "exec"):
        yield f"{name} runs text"
    if name in SHELLS or (any(k.arg == "shell" for k in node.keywords) and not is_set(node, "shell", False)):
        yield f"{name}: a shell reads the command"
    if name == "torch.load" and not is_set(node, "weights_only", True):
        yield "torch.load without weights_only=True"
    if name in ("np.load", "numpy.load") and not is_set(node, "allow_pickle", False):
        yield f"{name} without allow_pickle=False"
    if last == "read_array" and not is_set(node, "allow_pickle", False):
        yield "read_array without allow_pickle=False"
    if last in ("read_pickle", "to_pickle", "unsafe_load", "mktemp"):
        yield f"{last} is not safe"
    if last == "YAML" and any(
        k.arg == "typ" and not (isinstance(k.value, ast.Constant) and k.value.value in ("safe", "rt"))
        for k in node.keywords
    ):
        yield "YAML of another type than safe or rt"
    if last in UNPACKERS and "." in name:
        yield f"{last}: archives are read member by member (ikddit.mpom.archive), never unpacked"
    if name in ("torch.hub.load", "torch.hub.load_state_dict_from_url") or is_set(
        node, "trust_remote_code", True
    ):
        yield f"{name}: code or weights from elsewhere, unchecked"
    if is_set(node, "verify", False) or last == "_create_unverified_context":
        yield f"{name}: certificates are not looked at"
    if last == "Environment" and not any(k.arg == "autoescape" for k in node.keywords):
        yield "Jinja Environment that does not say whether it escapes"
    if last in SAYING and any(
        name_of(a) == "os.environ" for a in [*node.args, *(k.value for k in node.keywords)]
    ):
        yield f"{last}: the environment holds secrets"


def texts(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.FormattedValue) and name_of(node.value) == "os.environ":
        yield "an f-string of the environment, which holds secrets"


def listens_everywhere(tree: ast.AST) -> Iterator[tuple[int, str]]:
    compared = {inner for node in ast.walk(tree) if isinstance(node, ast.Compare) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in EVERYWHERE and node not in compared:
            yield node.lineno, f"{node.value} is every address of the machine"


RULES: tuple[Callable[[ast.AST], Iterator[str]], ...] = (imports, calls, texts)


def broken_rules(source: str) -> list[str]:
    """`line: what` for every rule that the source breaks."""
    tree = ast.parse(source)
    found = [(getattr(n, "lineno", 0), what) for n in ast.walk(tree) for rule in RULES for what in rule(n)]
    return [f"{line}: {what}" for line, what in sorted([*found, *listens_everywhere(tree)])]
