import asyncio
import math
import time

import pytest

from envs.base import WorldError
from envs.messages import ParseStatus
from envs.tools import ToolError, assistant_message, describe_tools, dispatch, parse_calls, tool


@tool
def calc(expression: str) -> str:
    """Compute one operation.

    This paragraph is for programmers.
    """
    return f"<{expression}>"


@tool
def move(steps: int, direction: str, fast: bool = False, scale: float = 1.0) -> str:
    """Move the piece."""
    return f"{steps!r} {direction!r} {fast!r} {scale!r}"


@tool
def look() -> str:
    """Look around."""
    return "a wall"


@tool
def refuse(reason: str) -> str:
    """Always refuses."""
    raise ToolError(f"no, {reason}")


@tool
async def slow(delay: float) -> str:
    """Answers late."""
    await asyncio.sleep(delay)
    return f"slept {delay}"


TOOLS = {t.spec.name: t for t in (calc, move, look, refuse, slow)}
SPECS = [t.spec for t in TOOLS.values()]


def test_a_signature_becomes_a_json_schema_in_its_order():
    assert move.spec.description == "Move the piece."
    assert calc.spec.description == "Compute one operation."
    assert move.spec.parameters == {
        "type": "object",
        "properties": {
            "steps": {"type": "integer"},
            "direction": {"type": "string"},
            "fast": {"type": "boolean", "default": False},
            "scale": {"type": "number", "default": 1.0},
        },
        "required": ["steps", "direction"],
        "additionalProperties": False,
    }
    assert list(move.spec.parameters["properties"]) == ["steps", "direction", "fast", "scale"]


def test_functions_that_a_policy_could_not_call_are_refused():
    def undocumented(x: int) -> str: ...

    def untyped(x) -> str:
        """Doc."""

    def nested(x: list[int]) -> str:
        """Doc."""

    def variadic(*x: int) -> str:
        """Doc."""

    def returns_int(x: int) -> int:
        """Doc."""

    for function, complaint in [
        (undocumented, "no docstring"),
        (untyped, "parameter 'x' must be"),
        (nested, r"parameter 'x: list\[int\]' must be"),
        (variadic, r"parameter '\*x: int' must be"),
        (returns_int, "annotated '-> str'"),
    ]:
        with pytest.raises(TypeError, match=complaint):
            tool(function)
    with pytest.raises(ValueError, match="timeout_s is 0"):
        tool(timeout_s=0)


@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        ("[calc 12+34]", "calc", {"expression": "12+34"}),
        ('[calc it\'s "raw" [1, 2] \\n]', "calc", {"expression": 'it\'s "raw" [1, 2] \\n'}),
        ("[calc  two  spaces ]", "calc", {"expression": " two  spaces "}),
        ("so [look] now", "look", {}),
        ("[ look ]", "look", {}),
        ("[move 3 left]", "move", {"steps": 3, "direction": "left"}),
        (
            "[move -3 'far left' TRUE 2.5]",
            "move",
            {"steps": -3, "direction": "far left", "fast": True, "scale": 2.5},
        ),
    ],
)
def test_a_well_formed_call_gives_typed_arguments(text, name, arguments):
    (call,) = parse_calls(text, SPECS)
    assert (call.status, call.name, dict(call.arguments)) == (ParseStatus.OK, name, arguments)
    assert [type(value) for value in call.arguments.values()] == [type(value) for value in arguments.values()]


@pytest.mark.parametrize(
    ("text", "status", "problem"),
    [
        ("[clac 1+2]", "unknown_tool", "unknown tool clac, did you mean calc"),
        ("[1, 2]", "unknown_tool", "unknown tool 1,, tools: calc move look refuse slow"),
        (f"[{'z' * 500}]", "unknown_tool", f"unknown tool {'z' * 20}, tools: calc move look refuse slow"),
        ("[calc]", "malformed", "calc: missing expression"),
        ("[calc  ]", "malformed", "calc: missing expression"),
        ("[]", "malformed", "empty call"),
        ("[move 3]", "malformed", "move: missing direction"),
        ("[move x left]", "malformed", "move: steps must be integer, got x"),
        ("[move 3 left perhaps]", "malformed", "move: fast must be boolean, got perhaps"),
        ("[move 3 left no nan]", "malformed", "move: fast must be boolean, got no"),
        ("[move 3 left true nan]", "malformed", "move: scale must be number, got nan"),
        ("[move 3 left true 1 2]", "malformed", "move: takes 4 arguments, got 5"),
        ("[move 3 'left]", "malformed", "move: No closing quotation"),
        ("[look here]", "malformed", "look: takes 0 arguments, got 1"),
        ("[calc 1+2", "unclosed", "call not closed, ] is missing"),
        ("[calc [1+2]", "unclosed", "call not closed, ] is missing"),
    ],
)
def test_every_failed_attempt_says_what_is_wrong(text, status, problem):
    (call,) = parse_calls(text, SPECS)
    assert (call.status, call.problem, call.arguments) == (status, problem, {})


def test_text_without_a_bracket_is_no_call():
    assert parse_calls("the answer is 46", SPECS) == ()
    assert parse_calls("a ] alone", SPECS) == ()


def test_a_message_keeps_the_text_outside_its_calls():
    action = assistant_message("first [calc 1+2] then [look]. [calc", SPECS, first_id=4)
    assert action.text == "first  then . "
    assert [(call.id, call.text) for call in action.tool_calls] == [
        ("call_4", "calc 1+2"),
        ("call_5", "look"),
        ("call_6", "calc"),
    ]
    assert assistant_message("[look]", SPECS).content == ()
    assert assistant_message("46", SPECS).tool_calls == ()


async def test_replies_come_in_the_order_of_the_calls_with_their_ids():
    calls = parse_calls("[slow 0.05][calc 1+2][refuse never][mov][calc 3", SPECS)
    result = await dispatch(calls, TOOLS)
    assert [(m.tool_call_id, m.text, m.is_error) for m in result.messages] == [
        ("call_0", "slept 0.05", False),
        ("call_1", "<1+2>", False),
        ("call_2", "error: no, never", True),
        ("call_3", "error: unknown tool mov, did you mean move", True),
        ("call_4", "error: call not closed, ] is missing", True),
    ]
    assert result.metrics == {
        "tool_calls": 5,
        "tool_errors": 3,
        "tool_timeouts": 0,
        "parse/ok": 3,
        "parse/unknown_tool": 1,
        "parse/unclosed": 1,
        "parse/malformed": 0,
    }
    assert not result.done


async def test_a_failing_world_and_a_bug_propagate():
    @tool
    def down() -> str:
        """Doc."""
        raise WorldError("tool server down")

    @tool
    def bug() -> str:
        """Doc."""
        raise KeyError("x")

    @tool
    def lies() -> str:
        """Doc."""
        return 3  # type: ignore[return-value]

    for broken, error in ((down, WorldError), (bug, KeyError), (lies, TypeError)):
        with pytest.raises(error):
            await dispatch(parse_calls(f"[{broken.spec.name}]", [broken.spec]), {broken.spec.name: broken})


@pytest.mark.alone
async def test_an_overdue_tool_is_an_error_for_the_policy():
    @tool(timeout_s=0.05)
    def blocks() -> str:
        """Doc."""
        time.sleep(1)
        return "late"

    @tool(timeout_s=0.05)
    async def awaits() -> str:
        """Doc."""
        await asyncio.sleep(math.inf)
        return "late"

    tools = {"blocks": blocks, "awaits": awaits}
    start = time.monotonic()
    result = await dispatch(parse_calls("[blocks][awaits]", [blocks.spec, awaits.spec]), tools)
    assert [(m.text, m.is_error) for m in result.messages] == [("error: no result after 0.05 s", True)] * 2
    assert time.monotonic() - start < 0.9


async def test_a_long_output_is_cut_and_says_so():
    call = parse_calls("[calc " + "9" * 98 + "]", SPECS)
    result = await dispatch(call, TOOLS, max_output_chars=10)
    assert result.messages[0].text == "<999999999... (90 characters cut)"  # 100 characters with < and >


async def test_a_call_that_was_parsed_for_other_tools_is_a_bug():
    with pytest.raises(ValueError, match=r"parsed for tool 'look', which is not among \['calc'\]"):
        await dispatch(parse_calls("[look]", SPECS), {"calc": calc})


def test_instructions_show_how_each_tool_is_called():
    text = describe_tools([calc.spec, move.spec, look.spec])
    assert text.splitlines()[1:] == [
        "[calc expression]: Compute one operation.",
        "[move steps direction fast scale]: Move the piece.",
        "[look]: Look around.",
    ]
