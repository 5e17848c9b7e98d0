"""A template comes from a stranger's file: whatever it does ends in one line, in bounded time and memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from chat_cases import PLAIN, tokenizer
from conftest import SHARED

from mixkv.engine.chat import worker
from mixkv.engine.chat.sandbox import RENDERER, TOO_SLOW, Outcome, Renderer
from mixkv.engine.chat.template import ChatTemplate
from mixkv.kernels.errors import InputError, TemplateError

BIG = 10**9
LOOPS = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3
DOUBLES = "{% set n = namespace(s='x') %}{% for i in range(64) %}{% set n.s = n.s + n.s %}{% endfor %}"
HOSTILE = {
    "endless loops": (LOOPS, "takes longer than 1.5 s"),
    "a loop that counts up": ("{% for i in range(10**9) %}x{% endfor %}", "Range too big"),
    "a large product": (f"{{{{ 'x' * {BIG} }}}}", "needs more than 192 MiB"),
    "a large product of a message": (f"{{{{ messages[0].content * {BIG} }}}}", "needs more than 192 MiB"),
    "doubling": (DOUBLES, "needs more than 192 MiB"),
    "a wide format": (f"{{{{ '%{BIG}d' % 1 }}}}", "needs more than 192 MiB"),
    "a wide filter": (f"{{{{ 'x' | center({BIG}) }}}}", "needs more than 192 MiB"),
    "a large power": ("{{ 7 ** (7 ** 20) }}", "takes longer|needs more"),
    "slow text": ("{{ ((('ab' * 99999) | wordwrap(1)) * 9) | wordwrap(1) | length }}" * 9, "takes longer|needs more"),
    "huge output": ("{% for i in range(99999) %}{% for j in range(99999) %}12345678{% endfor %}{% endfor %}",
                    "writes more than 16777216 characters"),
    "recursion": ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "calls itself too often"),
    "a recursive loop": ("{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}", "calls itself too often"),
    "deep nesting": ("{{ " + "(" * 9000 + "1" + ")" * 9000 + " }}", "calls itself too often"),
    "a long source": ("{{ x }}" * 300_000, "takes longer|needs more"),
    "classes": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "attribute '__class__'"),
    "globals": ("{{ raise_exception.__globals__.os }}", "attribute '__globals__'"),
    "a format's attributes": ("{{ '{0.__class__.__init__.__globals__}'.format(1) }}", "attribute '__init__'"),
    "self": ("{{ self.__init__.__globals__ }}", "attribute '__init__'"),
    "a cycler's": ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "attribute '__init__'"),
    "other files": ("{% include '/etc/passwd' %}", "no loader"),
    "a changed list": ("{{ messages.append(1) }}", "attribute 'append'"),
    "nothing there": ("{{ messages[0].nothing.there }}", "has no attribute 'nothing'"),
    "no template": ("{% for %}", "cannot be read: line 1"),
    "an unknown tag": ("a\n{% do x %}", "cannot be read: line 2"),
    "lines in a refusal": ("{{ raise_exception('no\n\n  such role') }}", "refuses these messages: no such role"),
    "a long refusal": ("{{ raise_exception('x' * 100000) }}", "refuses these messages: x{300}$"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_template_is_one_line(case: str) -> None:
    """Loops, products, powers, recursion and attributes hung the process, took its memory, or ran code."""
    source, said = HOSTILE[case]
    with pytest.raises(TemplateError, match=said) as caught:
        ChatTemplate(source, tokenizer()).render(PLAIN)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert ChatTemplate("{{ messages[0].content }}", tokenizer()).render(PLAIN).text == PLAIN[0]["content"]


@pytest.mark.parametrize("source", [
    "{{ [''] | map(attribute='__class__') | join }}", "{{ '' | attr('__class__') }}", "{{ '{0.__class__}'.format(1) }}",
    "{{ ''.__class__ }}", "{{ raise_exception.__self__ }}", "{{ strftime_now.__self__ }}", "{{ tojson }}",
])  # fmt: skip
def test_what_is_hidden_is_nothing(source: str) -> None:
    """Names with underscores lead from a text to the interpreter."""
    assert ChatTemplate(source, tokenizer()).render(PLAIN).text == ""


def test_the_bounds_are_the_kernels_own() -> None:
    """A bound that is counted in Python stands still within one long operation in C: the limits are the system's."""
    renderer = Renderer()
    assert renderer.render("x", {}).text == "x"
    pid = renderer._child.pid  # type: ignore[union-attr]
    limits = Path(f"/proc/{pid}/limits").read_text()
    size = next(line for line in limits.splitlines() if line.startswith("Max address space")).split()[3]
    used = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    assert used < int(size) < (256 << 20), "the process is small, and may not become larger than this"
    assert worker.SECONDS <= 1.5
    outcome = renderer.render(LOOPS, {})
    assert outcome.bounded and renderer._child is None
    renderer.close()


def test_a_slow_template_is_not_tried_again_and_again() -> None:
    """What a template wants is found out by rendering: each try would have taken its second."""
    chosen = ChatTemplate(LOOPS, tokenizer())
    calls = 0

    def counted(variables: dict[str, object]) -> object:
        nonlocal calls
        calls += 1
        return RENDERER.render(chosen.source, variables)

    chosen._outcome = counted  # type: ignore[method-assign,assignment]
    with pytest.raises(TemplateError, match="takes longer"):
        chosen.render(PLAIN)
    assert calls == 1


def test_all_that_is_rendered_for_one_prompt_has_one_bound() -> None:
    """A template that takes most of its time, each of the six times that it is rendered, took six times that."""
    chosen = ChatTemplate("{% for m in messages %}{{ m.content | trim }}{% endfor %}", tokenizer())
    left: list[float] = []
    outcome = chosen._outcome

    def noted(variables: dict[str, object]) -> Outcome:
        left.append(getattr(chosen._budget, "left", 0.0))
        return outcome(variables)

    chosen._outcome = noted  # type: ignore[method-assign]
    chosen.prompt([{"role": "user", "content": "<s> <" * 100_000}])
    assert len(left) >= 4 and left[0] == worker.SECONDS and left == sorted(left, reverse=True)
    assert len(set(left)) >= 3, "each rendering leaves less for the next, as far as the clock can tell"
    chosen._budget.left = 0.0
    assert chosen._outcome({"messages": PLAIN}) == TOO_SLOW, "nothing is left"
    assert chosen.prompt(PLAIN).ids, "the next prompt has all of it again"


def test_threads_share_the_process() -> None:
    """Answers of one thread's template went to another's."""
    texts: dict[int, set[str | None]] = {i: set() for i in range(8)}

    def work(i: int) -> None:
        for _ in range(20):
            texts[i].add(RENDERER.render("{{ x }}", {"x": str(i) * (i + 1) * 5000}).text)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {i: {str(i) * (i + 1) * 5000} for i in range(8)}


def test_a_child_that_was_killed_is_replaced() -> None:
    """Somebody clears the machine's memory: the next conversation must not find a closed pipe."""
    renderer = Renderer()
    assert renderer.render("x", {}).text == "x"
    assert renderer._child is not None
    os.kill(renderer._child.pid, signal.SIGKILL)
    assert renderer.render("{{ y }}", {"y": "é\ud800"}).text == "é\ud800"
    renderer.close()


def test_what_json_cannot_hold_is_a_mistake_of_the_caller() -> None:
    """A set among the variables was a traceback of the JSON module."""
    with pytest.raises(InputError, match="what JSON can hold"):
        ChatTemplate("{{ x }}", tokenizer()).render(PLAIN, variables={"x": {1, 2}})


SCRIPT = """
import os, sys
from mixkv.engine.chat.sandbox import RENDERER
def show(x): assert RENDERER.render("{{ x }}", {"x": x}).text == x
assert "jinja2" not in sys.modules
show("parent")
first = RENDERER._child.pid
pid = os.fork()
if pid == 0:
    show("child")
    assert RENDERER._child.pid != first
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
show("parent")
assert RENDERER._child.pid == first and "jinja2" not in sys.modules
print(first)
"""


def test_a_forked_process_has_a_child_of_its_own_and_none_is_left_behind() -> None:
    """Two processes on one pipe read each other's answers; a child that outlives its parent is never ended."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert not Path(f"/proc/{int(done.stdout)}").exists()


def test_a_template_is_not_asked_for_where_nobody_chats() -> None:
    """jinja2, and the process that renders, would make every start of the program longer."""
    code = "import sys, mixkv.engine.load, mixkv.cli.generate; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "mixkv.engine.load" in loaded and "mixkv.engine.llm" in loaded
    assert [m for m in loaded if m.startswith(("jinja2", "mixkv.engine.chat.")) and m != "mixkv.engine.chat.api"] == []


@pytest.mark.skipif(not (SHARED / "data" / "templates").is_dir(), reason="no templates there")
def test_the_largest_template_is_compiled_once() -> None:
    """Compiling takes 50 ms, rendering less than one: a turn must not pay for both."""
    path = max((SHARED / "data" / "templates").glob("*.jinja"), key=lambda p: p.stat().st_size)
    renderer = Renderer()
    variables = {"messages": PLAIN, "bos_token": "", "eos_token": ""}
    renderer.render(path.read_text("utf-8"), variables)
    pid = renderer._child.pid  # type: ignore[union-attr]

    def ticks() -> int:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = ticks()
    for _ in range(20):
        renderer.render(path.read_text("utf-8"), variables)
    assert ticks() - before < 0.3 * os.sysconf("SC_CLK_TCK"), "20 compilations take a second of computing"
    renderer.close()
