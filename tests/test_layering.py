"""The shape of the code: where imports point, where heavy packages may appear, no branch in train_step."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("recipes", "rl", "rollout", "rewards", "envs")  # an import may only point right
MAX_LINES = 300

# Loaded inside vLLM's worker process by its weight-transfer API.
WEIGHT_TRANSFER = (
    "rollout/weight_transfer*.py",
    "rollout/weight_sketch.py",
    "rollout/served*.py",
    "rollout/sabotage.py",
)
# Seconds to import, hardware to match, or a server behind it: each has its place. "*" stays within a folder.
HEAVY = {
    "vllm": ("rollout/engine*.py", "rollout/weight_transfer*.py", "rollout/served_experts.py"),
    "ray": ("rollout/workers.py", "rl/workers.py", "rl/ranks.py", "recipes/*.py"),
    "torch": (
        "rollout/engine.py",
        "rollout/hf_policy.py",
        "rewards/reward_model.py",
        "rl/*.py",
        "rl/backends/*.py",
        "recipes/*.py",
        *WEIGHT_TRANSFER,
    ),
    "transformers": (
        "rollout/hf_policy.py",
        "rollout/tokenizer.py",
        "rewards/reward_model.py",
        "rl/model*.py",
        "rl/backends/sharded.py",  # a plain model, made of gathered tensors
        "rl/trie_attention.py",  # registers attention with it
        "rl/weights.py",  # a checkpoint's names for what a model holds under others
        "recipes/*.py",
    ),
    "math_verify": ("rewards/math_answer.py",),
    "peft": ("rl/model*.py",),
    "deepspeed": ("rl/backends/zero.py",),
    "bitsandbytes": ("rl/model_nf4.py",),
    "accelerate": (),
    "datasets": ("recipes/*.py",),
    "wandb": ("rl/tracker.py",),
    "tensorboard": ("rl/tracker.py",),
    "torchvision": (),
    "gymnasium": ("envs/adapters/gymnasium*.py",),
    "mcp": ("envs/adapters/mcp*.py",),
    "openenv": ("envs/adapters/openenv*.py",),
    "verifiers": ("envs/adapters/verifiers*.py",),
    "reasoning_gym": ("envs/adapters/reasoning_gym*.py",),
}


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and module of every import, those inside functions and by a constant string included."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, name.name) for name in names)
            case ast.ImportFrom(module=str(module), level=0):
                yield node.lineno, module
            case ast.ImportFrom(level=level) if level > 0:
                yield node.lineno, "."  # hides which layer it reaches; ruff refuses it too
            case ast.Call(
                func=ast.Name(id="__import__" | "import_module") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(module)), *_],
            ):
                yield node.lineno, module


def misplaced(file: str, source: str) -> list[str]:
    """What is wrong with the imports of one file, named from the repository's root."""
    layer = LAYERS.index(file.split("/")[0])
    wrong = []
    for line, module in imports(ast.parse(source)):
        package = module.split(".")[0]
        if package == "" or package in LAYERS[:layer]:
            wrong.append(f"{file}:{line} {LAYERS[layer]} may not import {module}")
        places = HEAVY.get(package)
        if places is not None and not any(PurePosixPath(file).match(place) for place in places):
            wrong.append(f"{file}:{line} {package} belongs in {' or '.join(places) or 'no file of ours'}")
    return wrong


def branches(source: str, function: str) -> list[str]:
    """What in the body of `function` lets it do different things: a branch, or dispatch on a name."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == function:
            for inner in (part for statement in node.body for part in ast.walk(statement)):
                match inner:
                    case (
                        ast.If()
                        | ast.IfExp()
                        | ast.Match()
                        | ast.BoolOp()
                        | ast.Compare()
                        | ast.Try()
                        | ast.TryStar()
                        | ast.While()
                        | ast.Assert()
                        | ast.comprehension(ifs=[_, *_])
                        | ast.Call(func=ast.Name(id="getattr" | "globals" | "locals" | "eval" | "isinstance"))
                    ):
                        found.append(ast.unparse(inner))
                    case ast.Subscript(slice=key) if not isinstance(key, ast.Constant):
                        found.append(ast.unparse(inner))  # a table looked up by a name
            return found
    raise LookupError(f"there is no function {function}")


def test_imports_point_right_and_heavy_packages_stay_in_their_files() -> None:
    files = python_files(*LAYERS)
    assert len(files) > 20, "the packages are not where this test looks for them"
    assert [wrong for path in files for wrong in misplaced(relative(path), path.read_text())] == []


@pytest.mark.parametrize(
    ("file", "source", "wrong"),
    [
        ("envs/base.py", "import rewards.base", 1),
        ("envs/base.py", "import envs.tools", 0),
        ("rl/losses.py", "from rollout.trajectory import Turn\nimport torch", 0),
        ("rollout/agent.py", "def f():\n    from rl import losses", 1),
        ("rollout/agent.py", "import torch.nn.functional as F", 1),
        ("rollout/engine.py", "import vllm, torch", 0),
        ("rollout/engine.py", "import ray", 1),
        ("envs/tools.py", "import importlib\nimportlib.import_module('vllm')", 1),
        ("envs/tasks/calc.py", "from . import desk", 1),
        ("rl/deep/losses.py", "import torch", 1),  # "rl/*.py" is the folder, not what lies below it
    ],
)
def test_a_misplaced_import_is_seen(file: str, source: str, wrong: int) -> None:
    assert len(misplaced(file, source)) == wrong


def test_no_file_is_longer_than_a_reader_can_hold() -> None:
    lengths = {
        relative(path): len(path.read_text().splitlines())
        for path in python_files(*LAYERS, "scripts", "tests")
    }
    assert {file: length for file, length in lengths.items() if length > MAX_LINES} == {}


def test_no_file_shadows_the_standard_library() -> None:
    """`python rl/train.py` puts rl/ first on the path: an rl/types.py would then be everybody's `types`."""
    files = python_files(*LAYERS, "scripts", "tests")
    assert [relative(path) for path in files if path.stem in sys.stdlib_module_names] == []


@pytest.mark.parametrize(
    ("file", "step"), [("train.py", "train_step"), ("preference_learner.py", "preference_step")]
)
def test_the_training_step_has_no_branch(file: str, step: str) -> None:
    assert branches((ROOT / "rl" / file).read_text(), step) == []


@pytest.mark.parametrize(
    "body",
    [
        "if a:\n  b()",
        "x = a if b else c",
        "x = a or b",
        "x = a > b",
        "x = [a for a in b if a]",
        "try:\n  a()\nfinally:\n  b()",
        "while a:\n  b()",
        "match a:\n  case 1: b()",
        "assert a",
        "getattr(a, name)()",
        "STEPS[name]()",
        "for a in b:\n  x = a and b",
    ],
)
def test_a_branch_is_seen(body: str) -> None:
    indented = "".join(f"    {line}\n" for line in body.splitlines())
    assert branches(f"async def train_step(x: int | None = a or b):\n{indented}", "train_step") != []


def test_straight_lines_pass() -> None:
    body = "    updates = [await learner.update(m) for m in batch.minibatches(n)]\n    return a(b)['c'] | d\n"
    assert branches(f"async def train_step(x: dict[str, int]):\n{body}", "train_step") == []
