"""What imports what, how soon, and which names and calls are not to be found."""

import ast
import builtins
import subprocess
import symtable
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "transformer_lens", "transformers", "pandas", "plotly", "datasets", "scipy")
SOURCES = sorted(path for package in ("sat_lens", "analyses") for path in (ROOT / package).rglob("*.py"))
SHARED = {
    "arms",
    "cli",
    "explain",
    "figures",
    "labels",
    "masks",
    "metrics",
    "needs",
    "page",
    "page_style",
    "provenance",
    "random_weights",
    "result",
    "static_figures",
    "statistics",
    "terminal",
    "texts",
    "unit_streams",
}
COLLECTORS = {"report", "report_page", "paper"}  # put the answers of the questions on one page, so they know them
COMMANDS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for path in SOURCES
    if '\nif __name__ == "__main__":' in path.read_text(encoding="utf-8")
)


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it; `from a import b` counts as a and as a.b."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide what imports what"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def question(path: Path) -> str | None:
    """The question of `analyses` that a file belongs to, None for what the questions share."""
    name = path.relative_to(ROOT / "analyses").parts[0].removesuffix(".py")
    return None if name in SHARED or name.startswith("__") else name


def of(package: str) -> list[Path]:
    return [path for path in SOURCES if path.relative_to(ROOT).parts[0] == package]


def test_there_are_sources_and_commands_to_look_at():
    assert len(of("sat_lens")) > 20 and len(of("analyses")) > 5
    assert {"sat_lens", "sat_lens.train", "sat_lens.doctor", "analyses.localization"} <= set(COMMANDS)


def test_the_library_knows_nothing_of_the_analyses():
    for path in of("sat_lens"):
        assert not {name for name in imports(path) if name.split(".")[0] in ("analyses", "tests", "notebooks")}, path


def test_questions_never_import_one_another():
    questions = {question(path) for path in of("analyses")} - {None}
    assert "localization" in questions
    for path in of("analyses"):
        own = question(path)
        others = {name.split(".")[1] for name in imports(path) if name.startswith("analyses.")} & (questions - {own})
        assert not others or own in COLLECTORS, f"{path} imports {others}"
        assert not others & COLLECTORS or own in COLLECTORS, f"{path} imports the report"


def test_what_the_questions_share_imports_no_question():
    questions = {question(path) for path in of("analyses")} - {None}
    for path in of("analyses"):
        if question(path) is None:
            assert not {name for name in imports(path) if name.split(".")[-1] in questions and "analyses" in name}, path


def test_one_file_alone_names_what_transformer_lens_4_removed():
    removed = ("HookedTransformer", "HookedTransformerConfig")
    for path in SOURCES:
        if path.name == "_tl.py":
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "transformer_lens":
                named = {alias.name for alias in node.names} & set(removed)
                assert not named and not set(node.module.split(".")) & set(removed), (
                    f"{path} names {named or node.module}"
                )


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(node.func), node) for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]


PICKLES = ("load", "loads", "Unpickler", "read_pickle", "to_pickle", "save")
"""Names that, taken out of these packages by `from ... import`, would hide from the test below."""


def test_nothing_is_unpickled():
    for path in SOURCES:
        assert not imports(path) & {"joblib", "dill", "cloudpickle", "marshal", "shelve"}, path
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom) and (node.module or "") in ("torch", "numpy", "pandas", "pickle"):
                assert not {alias.name for alias in node.names} & set(PICKLES), path
            if isinstance(node, ast.Import):
                assert not [a for a in node.names if a.name == "_pickle" or a.name == "pickle" and a.asname], path
            if isinstance(node, ast.Attribute):
                of_pickle = ast.unparse(node.value) == "pickle" and node.attr != "UnpicklingError"
                assert not of_pickle and node.attr not in ("read_pickle", "to_pickle"), path
        for name, call in calls(path):
            if name == "torch.load":
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
                assert given.get("weights_only") == "True", path
            if name in ("np.load", "numpy.load"):
                assert "allow_pickle" not in {keyword.arg for keyword in call.keywords}, path


def test_no_foreign_code_is_trusted_or_evaluated():
    for path in SOURCES:
        for name, call in calls(path):
            assert name not in ("eval", "exec", "os.system", "yaml.load", "yaml.unsafe_load"), path
            for keyword in call.keywords:
                trusts = keyword.arg in ("trust_remote_code", "shell") and ast.unparse(keyword.value) != "False"
                assert not trusts, f"{path}: {ast.unparse(call)}"


def test_no_module_has_a_name_that_says_nothing():
    for path in SOURCES:
        assert path.stem not in ("utils", "helpers", "common", "misc", "types"), path


def test_files_are_of_a_size_to_be_read():
    sizes = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert max(sizes.values()) <= 400, max(sizes, key=sizes.get)
    assert sorted(sizes.values())[len(sizes) // 2] <= 160


def test_the_library_prints_nothing_behind_the_caller_s_back():
    for path in SOURCES:
        assert not [1 for name, _ in calls(path) if name == "print"], path


def test_every_module_says_what_it_is():
    for path in SOURCES:
        assert ast.get_docstring(tree(path)), path


def undefined(source: str) -> set[str]:
    """Names that functions look up in their module and that it never binds; annotations in quotes are not looked at."""

    def tables(table: symtable.SymbolTable) -> list[symtable.SymbolTable]:
        return [table, *(inner for child in table.get_children() for inner in tables(child))]

    top, *inner = tables(symtable.symtable(source, "a module", "exec"))
    symbols = [symbol for table in [top, *inner] for symbol in table.get_symbols()]
    bound = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported() or s.is_namespace()}
    bound |= {s.get_name() for s in symbols if s.is_declared_global() and s.is_assigned()}
    return {s.get_name() for s in symbols if s.is_global() and s.is_referenced()} - bound - {*dir(builtins), "__file__"}


def test_every_name_that_is_used_is_bound():
    """Linters are told not to look: they take jaxtyping's axis names for undefined ones."""
    assert undefined("import os\ndef f(x: 'pos') -> int:\n    return os.x(x) + missing + len([i for i in x])") == {
        "missing"
    }
    for path in SOURCES:
        assert not undefined(path.read_text(encoding="utf-8")), path


def run_module(module: str, *argv: str) -> tuple[int, str, str, set[str]]:
    """Exit code, stdout, stderr, and which of HEAVY a module run as a command had imported when it ended."""
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{module!r}, *{list(argv)!r}]\n"
        "code = 0\n"
        "try:\n"
        f"    runpy.run_module({module!r}, run_name='__main__', alter_sys=True)\n"
        "except SystemExit as exit_:\n"
        "    code = exit_.code or 0\n"
        f"sys.stderr.write('\\n#' + ' '.join(name for name in {HEAVY!r} if name in sys.modules))\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    stderr, _, heavy = done.stderr.rpartition("\n#")
    return done.returncode, done.stdout, stderr, set(heavy.split())


@pytest.mark.parametrize("package", ["sat_lens", "analyses"])
def test_importing_a_package_imports_nothing_heavy(package):
    code = f"import sys, {package}; dir({package}); print([n for n in {HEAVY!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("module", COMMANDS)
def test_help_of_a_command_imports_nothing_heavy(module):
    code, out, err, heavy = run_module(module, "--help")
    assert (code, err, heavy) == (0, "", set())
    assert out.strip()


@pytest.mark.parametrize("module", [m for m in COMMANDS if m not in ("sat_lens", "analyses")])
def test_a_wrong_flag_costs_nothing_and_gets_one_line(module):
    code, out, err, heavy = run_module(module, "--no-such-flag")
    assert (code, out, heavy) == (2, "", set())
    assert err.strip().count("\n") == 0 and err.strip()


def test_the_lists_of_commands_name_every_command():
    for package in ("sat_lens", "analyses"):
        _, out, _, heavy = run_module(package)
        listed = {line.split()[2] for line in out.splitlines() if line.startswith("  python -m ")}
        assert listed == {m for m in COMMANDS if m.startswith(package + ".")} and not heavy


def test_public_names_are_there_and_an_unknown_one_is_an_attribute_error():
    import sat_lens

    for name in sat_lens.__all__:
        assert getattr(sat_lens, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = sat_lens.nothing
